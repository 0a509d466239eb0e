import {
  addSinks,
  type ForwardModel,
  type KeyValueRows,
  rotateHeads,
  runLayer,
} from '../model/forward.js'
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
  const { headDim } = model.config // of all layers: `checkRowPlan`
  const gathered = { model, headDim, nTokens: ids.length, nBefore: nPast, scratch }
  const probesOf =
    observers.length > 0 ? gatherProbes({ ...gathered, choose: () => observers }) : null
  await embedAll(pass, sliced)
  for (const [layer, { isRecurrent, shape, index, borrows }] of layerPlaces(
    model.config,
  ).entries()) {
    if (isRecurrent) {
      await passRecurrent(pass, layer, index, sliced)
      continue
    }
    const options = { scale: sliced.scale, slidingWindow: sliced.windowOf(layer) }
    const { k, v } = stream.ofShapes[shape] as KeyValueRows
    const probes = borrows ? null : (probesOf?.(index) ?? null)
    for (const slice of rows) {
      await turn()
      if (slice.first === 0 && nPast > 0 && !borrows) writer.read(index, k, v)
      runLayer(model, layer, shape, slice.block, (attention) => {
        const { q, out, lse } = attention.heads
        rotateHeads(model, layer, slice.block, attention)
        flashAttention({ q, out, lse, ...slice.seen[shape], ...options, causal: true })
        addSinks(model, layer, attention.heads)
        probes?.store(slice, attention.heads)
      })
    }
    if (borrows) continue
    await turn()
    await writer.write(index, k, v, probes)
  }
  return stream.x
}
