import { addSinks, type ForwardModel, rotateHeads, runLayer } from '../model/forward.js'
import { layerPlaces } from '../model/layer-kinds.js'
import type { Scratch } from '../model/scratch.js'
import { flashAttention, type Tensor } from '../ops/index.js'
import {
  embedAll,
  gatherProbes,
  type PassState,
  passRecurrent,
  seenKeys,
  slicePass,
} from './prefill.js'
import type { RowStore, RowWriter } from './row-store.js'

/** Tokens on their way through the model and into a row store. */
export interface RowPass {
  readonly model: ForwardModel
  readonly store: RowStore
  readonly writer: RowWriter
  /** Null: no layer is recurrent. */
  readonly state: PassState | null
  readonly ids: Int32Array
  readonly scratch: Scratch
  /** Resolves when the next slice may be enqueued; rejects when the pass is no longer wanted. */
  turn(): Promise<void>
}

/**
 * Passes tokens, a prompt's or a generated one, over dequantized rows: each layer's rows are put
 * before the new ones, all attend to all before them, then the store takes the new ones. So the rows
 * of one layer exist in full at a time. Resolves to the residual stream (rows, hidden_size) f32.
 *
 * The writer is begun and published, or discarded, by the caller.
 */
export async function prefillRows(pass: RowPass): Promise<Tensor<'f32'>> {
  const { model, store, writer, ids, scratch, turn } = pass
  const nPast = store.nRows
  const sliced = slicePass(pass, nPast, store.length)
  const { stream } = sliced
  const rows = sliced.slices.map((slice) => ({
    ...slice,
    seen: seenKeys(stream, slice, nPast, scratch),
  }))
  const observers = Int32Array.from(
    { length: writer.nObservers },
    (_, i) => ids.length - writer.nObservers + i,
  )
  const probesOf =
    observers.length > 0 ? gatherProbes(model, ids.length, nPast, () => observers, scratch) : null
  await embedAll(pass, sliced)
  for (const [layer, { isRecurrent, index }] of layerPlaces(model.config).entries()) {
    if (isRecurrent) {
      await passRecurrent(pass, layer, index, sliced)
      continue
    }
    const options = { scale: sliced.scale, slidingWindow: sliced.windowOf(layer) }
    const probes = probesOf?.(index) ?? null
    for (const slice of rows) {
      await turn()
      if (slice.first === 0 && nPast > 0) writer.read(index, stream.k, stream.v)
      const { heads } = slice.block
      const { q, out, lse } = heads
      runLayer(model, layer, slice.block, () => {
        rotateHeads(model, layer, slice.block)
        flashAttention({ q, out, lse, ...slice.seen, ...options, causal: true })
        addSinks(model, layer, heads)
        probes?.store(slice, heads)
      })
    }
    await turn()
    await writer.write(index, stream.k, stream.v, probes)
  }
  return stream.x
}
