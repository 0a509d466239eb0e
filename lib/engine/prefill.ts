/**
 * Prompts on their way through the model and into a sequence's cache (Alg. 2 of ZipCache, arXiv
 * 2405.14256), layer by layer and, within a layer, a block of rows at a time: one such slice is
 * what other work may have to wait for. How a pass is sliced never changes a token.
 */
import type { CacheMemory, KvCache, RecurrentState } from '../cache/index.js'
import { gateWidth } from '../model/config.js'
import {
  type AttentionHeads,
  addSinks,
  embedRows,
  type ForwardModel,
  makeStream,
  makeWorkspace,
  type RopeTurns,
  type RowBlock,
  rotateHeads,
  runLayer,
  runRecurrentLayer,
  type StateRows,
  type StreamRows,
  turnsOf,
} from '../model/forward.js'
import { layerPlaces } from '../model/layer-kinds.js'
import type { Scratch } from '../model/scratch.js'
import {
  type DeviceInfo,
  flashAttention,
  mergeAttention,
  mixedAttention,
  ropeAppend,
  setTailLengths,
  storeProbes,
  type Tensor,
  unpackSegment,
} from '../ops/index.js'
import type { Compression } from '../policy/policy.js'
import type { Seed } from '../random.js'
import { type HeadShares, makePromptCompressor } from './compress-group.js'
import type { SaliencyRecord } from './saliency-record.js'
import type { WindowProbes } from './window-probes.js'

/** How a pass shares the stream with what else runs. */
export interface Slicing {
  /**
   * Resolves when the next slice may be enqueued; rejects when the pass is no longer wanted, or with
   * what went wrong in an earlier slice.
   */
  turn(): Promise<void>
  /** Resolves when all slices have run; rejects as `turn`. */
  end(): Promise<void>
}

/** The state that a pass writes, of the pass's own: nobody goes back to it. */
export interface PassState {
  readonly memory: CacheMemory
  readonly state: RecurrentState
  /** It holds anything: no token came before. */
  readonly isNew: boolean
}

/** Tokens on their way through the model. */
export interface PrefillPass {
  readonly model: ForwardModel
  readonly cache: KvCache
  /** Null: no layer is recurrent. */
  readonly state: PassState | null
  readonly ids: Int32Array
  readonly scratch: Scratch
  /** Resolves when the next slice may be enqueued; rejects when the pass is no longer wanted. */
  turn(): Promise<void>
}

/**
 * Multiplications and additions of one slice's products, and its most rows: some tens of milliseconds
 * of one core; a few of a large GPU, which reads a layer's weights once a slice and needs hundreds of
 * rows before its products take longer than that. There, compressing a layer takes some tens of
 * microseconds, and is no slice by itself.
 */
const SLICES = {
  cpu: { products: 2 ** 29, mostRows: 512, compressesApart: true },
  gpu: { products: 2 ** 39, mostRows: 2048, compressesApart: false },
} satisfies Record<DeviceInfo['kind'], object>

/** An expert's weights are read for so many rows at least, on average: fewer take as long. */
const EXPERT_ROWS = 8

/**
 * Rows of a slice: a power of two, by the size of a layer, or of what its experts are for a row, and the
 * kind of device.
 */
export function sliceRows({ config, device }: Pick<ForwardModel, 'config' | 'device'>): number {
  const { hiddenSize, experts, nHeads, nKvHeads, headDim } = config
  const attention = hiddenSize * headDim * (2 * nHeads + 2 * nKvHeads)
  const layer = attention + 3 * hiddenSize * gateWidth(config)
  const { products, mostRows } = SLICES[device.info.kind]
  const spread = experts ? (EXPERT_ROWS * experts.count) / experts.perRow : 0
  const least = Math.max(32, 2 ** Math.ceil(Math.log2(spread)))
  return Math.min(mostRows, Math.max(least, 2 ** Math.round(Math.log2(products / layer))))
}

/** Rows [first, first + nRows) of a pass. */
interface Slice {
  readonly first: number
  readonly nRows: number
  readonly end: number
  readonly block: RowBlock
  readonly positions: Tensor<'i32'>
  readonly cuSeqlens: Tensor<'i32'>
  /** Null: no layer is recurrent. */
  readonly states: StateRows | null
}

/** What the slices of a pass share. */
interface SlicedPass {
  readonly slices: readonly Slice[]
  readonly stream: StreamRows
  readonly scale: number
  windowOf(layer: number): number
}

/**
 * Passes tokens whose K and V stay in the 16-bit tail: prompts shorter than a window, and those of
 * policies that do not compress. `probes` keeps the rows that are probes of the running window; null
 * where none are needed. Resolves to the residual stream (rows, hidden_size) f32.
 *
 * On failure the caller takes the room back (`shrinkTail`).
 */
export async function prefillIntoTail(
  pass: PrefillPass,
  probes: WindowProbes | null,
): Promise<Tensor<'f32'>> {
  const { model, cache, ids, scratch, turn } = pass
  const hasPast = cache.length > 0
  const nTail = cache.tailLength
  const { pool, tables, probes: probeSlots } = cache.memory
  const slots = probes && scratch.ints(probes.take(nTail, ids.length))
  const sliced = slicePass(pass, 0, cache.length)
  cache.extendTail(ids.length)
  const start = scratch.ints(Int32Array.of(cache.start))
  const paged = { pool: pool.memory, tables: tables.memory, starts: start }

  const rows = sliced.slices.map((slice) => ({
    ...slice,
    tailLength: scratch.ints(Int32Array.of(nTail + slice.end)),
    slots: slots && scratch.keep(slots.view([slice.nRows], slice.first)),
    seen: seenKeys(sliced.stream, slice, 0, scratch),
  }))
  await embedAll(pass, sliced)
  for (const [layer, { isRecurrent, index }] of layerPlaces(model.config).entries()) {
    if (isRecurrent) {
      await passRecurrent(pass, layer, index, sliced)
      continue
    }
    const options = { layer: index, scale: sliced.scale, slidingWindow: sliced.windowOf(layer) }
    for (const slice of rows) {
      await turn()
      const { block, cuSeqlens, positions } = slice
      const { rawHeads } = block
      const turns = turnsOf(model, layer, block)
      const { q, k, v, out, lse } = block.heads
      runLayer(model, layer, block, () => {
        setTailLengths({ ...paged, lengths: slice.tailLength })
        const heads = { ...rawHeads, v, ...turns, qOut: q, kOut: k }
        ropeAppend({ ...heads, ...paged, cuSeqlens, layer: index })
        if (hasPast) mixedAttention({ q, out, lse, ...paged, cuSeqlens, positions, ...options })
        else flashAttention({ q, out, lse, ...slice.seen, ...options, causal: true })
        addSinks(model, layer, block.heads)
        if (!slice.slots) return
        const kept = probeSlots.layers[index] as { q: Tensor; lse: Tensor }
        storeProbes({ q, lse, slots: slice.slots, probeQ: kept.q, probeLse: kept.lse })
      })
    }
  }
  return sliced.stream.x
}

/**
 * Passes a prompt that is compressed as soon as a layer has attended to it, so that only one
 * layer's K and V exist in full (Alg. 2). Attention among the prompt's tokens, and to the tail, is
 * exact; attention to what was compressed before goes over the packed cache and is merged in by its
 * log-sum-exp. The tail's tokens are compressed together with the prompt. Resolves to the residual
 * stream (rows, hidden_size) f32, and each head's share of salient tokens where they differ.
 *
 * The group is staged here; the caller publishes it, or takes it back on failure (`unstage`).
 */
export async function prefillCompressed(
  pass: PrefillPass,
  compression: Compression,
  seed: Seed,
  record: SaliencyRecord | null,
): Promise<{ x: Tensor<'f32'>; shares: HeadShares | null }> {
  const { model, cache, ids, scratch, turn } = pass
  const { nHeads, headDim } = model.config
  const nTail = cache.tailLength
  const hasPacked = cache.tailStart > 0
  const nTokens = nTail + ids.length
  const dtype = model.attentionDtype
  const watch = record?.begin(cache.tailStart, nTokens) ?? null
  const group = { cache, compression, nTokens, mostLayers: 1, dtype, scratch, watch }
  const compressor = makePromptCompressor(group)
  const sliced = slicePass(pass, nTail, cache.length)
  const { stream } = sliced
  const start = scratch.ints(Int32Array.of(cache.start))
  const { pool, tables } = cache.memory
  const paged = { pool: pool.memory, tables: tables.memory, starts: start }
  const nPast = hasPacked ? (sliced.slices[0]?.nRows ?? 0) : 0
  const pastOut = scratch.tensor(model.attentionDtype, [nPast, nHeads, headDim])
  const pastLse = scratch.tensor('f32', [nPast, nHeads])

  const rows = sliced.slices.map((slice) => ({
    ...slice,
    seen: seenKeys(stream, slice, nTail, scratch),
    past: hasPacked && {
      out: scratch.keep(pastOut.view([slice.nRows, nHeads, headDim])),
      lse: scratch.keep(pastLse.view([slice.nRows, nHeads])),
    },
  }))
  const table = scratch.keep(cache.tableView())
  const probesOf = compressor.looks ? promptProbes(pass, compression, seed) : null
  const { compressesApart } = SLICES[model.device.info.kind]
  await embedAll(pass, sliced)
  for (const [layer, { isRecurrent, index }] of layerPlaces(model.config).entries()) {
    if (isRecurrent) {
      await passRecurrent(pass, layer, index, sliced)
      continue
    }
    const options = { layer: index, scale: sliced.scale, slidingWindow: sliced.windowOf(layer) }
    const probes = probesOf?.(index) ?? null
    for (const slice of rows) {
      await turn()
      if (slice.first === 0 && nTail > 0) {
        const { k, v } = stream
        const base = cache.tailStart
        unpackSegment({ pool: pool.memory, table, k, v, layer: index, segment: 0, base })
      }
      const { heads } = slice.block
      const { q, out, lse } = heads
      runLayer(model, layer, slice.block, () => {
        rotateHeads(model, layer, slice.block)
        flashAttention({ q, out, lse, ...slice.seen, ...options, causal: true })
        if (slice.past) {
          const { cuSeqlens, positions, past } = slice
          const noTail = { tail: false, causal: false }
          mixedAttention({ q, ...past, ...paged, cuSeqlens, positions, ...options, ...noTail })
          mergeAttention({ outA: out, lseA: lse, outB: past.out, lseB: past.lse, out, lse })
        }
        addSinks(model, layer, heads)
        probes?.store(slice, heads)
      })
    }
    if (compressesApart) await turn()
    await compressor.compress(index, stream.k, stream.v, probes, options.slidingWindow)
  }
  return { x: stream.x, shares: compressor.shares }
}

/** A recurrent layer, slice by slice: each goes on from the state that the one before has left. */
export async function passRecurrent(
  { model, turn }: Pick<PrefillPass, 'model' | 'turn'>,
  layer: number,
  index: number,
  { slices }: SlicedPass,
): Promise<void> {
  for (const { block, states } of slices) {
    await turn()
    runRecurrentLayer(model, layer, index, block, states as StateRows)
  }
}

/**
 * A layer's probe rows, gathered slice by slice for `LayerCompressor.compress`. Layers share the
 * room.
 */
function promptProbes(pass: PrefillPass, compression: Compression, seed: Seed) {
  const { model, cache, ids, scratch } = pass
  const nTokens = ids.length
  const specialRows = compression.usesSpecialTokens ? specialRowsOf(model, ids) : null
  const choose = (layer: number) => compression.promptProbes(nTokens, seed, layer, specialRows)
  return gatherProbes(model, nTokens, cache.tailLength, choose, scratch)
}

/**
 * The rows that `choose` names of each layer's `nTokens`, which come after `nBefore` others. All that
 * a layer needs to know is one copy to the device, lest several hold up the kernels behind them.
 */
export function gatherProbes(
  model: ForwardModel,
  nTokens: number,
  nBefore: number,
  choose: (layer: number) => Int32Array,
  scratch: Scratch,
) {
  const { nHeads, headDim, softmaxScale: scale } = model.config
  let room = 0
  let q: Tensor
  let lse: Tensor<'f32'>
  return (layer: number) => {
    const chosen = choose(layer)
    const n = chosen.length
    if (n > room) {
      room = n
      q = scratch.tensor(model.attentionDtype, [room, nHeads, headDim])
      lse = scratch.tensor('f32', [room, nHeads])
    }
    // The slot of each row, -1 of those that are no probes; then each slot, and its position.
    const words = new Int32Array(nTokens + 2 * n).fill(-1, 0, nTokens)
    for (const [slot, row] of chosen.entries()) {
      words[row] = slot
      words[nTokens + slot] = slot
      words[nTokens + n + slot] = nBefore + row
    }
    const all = scratch.ints(words)
    const part = (length: number, first: number) => scratch.keep(all.view([length], first))
    return {
      q,
      lse,
      rows: part(n, nTokens),
      positions: part(n, nTokens + n),
      scale,
      store(slice: Slice, heads: AttentionHeads) {
        const slots = part(slice.nRows, slice.first)
        storeProbes({ q: heads.q, lse: heads.lse, slots, probeQ: q, probeLse: lse })
      },
    }
  }
}

/** Rows of a prompt whose token is special or punctuation. */
function specialRowsOf({ specialTokens }: ForwardModel, ids: Int32Array): Int32Array {
  const isSpecial = specialTokens?.()
  return Int32Array.from(ids.keys()).filter((row) => isSpecial?.[ids[row] as number] === 1)
}

/** Cuts a pass from position `first` on into slices; K and V have room for `nBefore` more rows in front. */
export function slicePass(
  { model, state, ids, scratch }: Pick<PrefillPass, 'model' | 'state' | 'ids' | 'scratch'>,
  nBefore: number,
  first: number,
): SlicedPass {
  const { config } = model
  const nRows = ids.length
  const perSlice = Math.min(nRows, sliceRows(model))
  const stream = makeStream(model, nRows, nBefore + nRows, scratch)
  const makeBlock = makeWorkspace(model, perSlice, scratch)
  const positions = scratch.ints(new Int32Array(nRows).map((_, i) => first + i))
  const places = state && {
    pool: state.memory.pool.memory,
    tables: state.memory.tables.memory,
    states: scratch.ints(Int32Array.of(state.state.start)),
  }
  const slices: Slice[] = []
  for (let row = 0; row < nRows; row += perSlice) {
    const n = Math.min(perSlice, nRows - row)
    const rowsOf = <T extends Tensor>(tensor: T, at: number) => {
      const rest = tensor.shape.slice(1)
      const width = rest.reduce((product, size) => product * size, 1)
      return scratch.keep(tensor.view([n, ...rest], at * width) as T)
    }
    const turns = ({ cos, sin }: RopeTurns) => ({ cos: rowsOf(cos, row), sin: rowsOf(sin, row) })
    const block = makeBlock(n, {
      x: rowsOf(stream.x, row),
      k: rowsOf(stream.k, nBefore + row),
      v: rowsOf(stream.v, nBefore + row),
      ropes: stream.ropes.map(({ key, query }) => {
        const own = turns(key)
        return { key: own, query: query === key ? own : turns(query) }
      }),
    })
    const cuSeqlens = scratch.ints(Int32Array.of(0, n))
    slices.push({
      first: row,
      nRows: n,
      end: row + n,
      block,
      positions: rowsOf(positions, row),
      cuSeqlens,
      states: places && { ...places, cuSeqlens, fromZero: state?.isNew === true && row === 0 },
    })
  }
  return {
    slices,
    stream,
    scale: config.softmaxScale,
    windowOf: (layer) => config.slidingWindow[layer] ?? 0,
  }
}

/** K and V of everything in the stream that a slice may see, for flashAttention. */
export function seenKeys({ k, v }: StreamRows, slice: Slice, nBefore: number, scratch: Scratch) {
  const shape = [nBefore + slice.end, ...k.shape.slice(1)]
  return {
    k: scratch.keep(k.view(shape)),
    v: scratch.keep(v.view(shape)),
    cuSeqlensQ: slice.cuSeqlens,
    cuSeqlensK: scratch.ints(Int32Array.of(0, nBefore + slice.end)),
  }
}

export async function embedAll(
  pass: Pick<PrefillPass, 'model' | 'ids' | 'scratch' | 'turn'>,
  { slices }: SlicedPass,
): Promise<void> {
  const { model, ids, scratch, turn } = pass
  const all = scratch.ints(ids)
  await turn()
  for (const { block, first, nRows, positions } of slices) {
    embedRows(model, block, scratch.keep(all.view([nRows], first)), positions)
  }
}
