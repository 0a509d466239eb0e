/**
 * Prompts on their way through the model and into a sequence's cache (Alg. 2 of ZipCache, arXiv
 * 2405.14256), layer by layer and, within a layer, a block of rows at a time: one such slice is
 * what other work may have to wait for. How a pass is sliced never changes a token.
 */
import type {
  CacheMemory,
  KvCache,
  ProbeRows,
  RecurrentState,
  SequenceCache,
} from '../cache/index.js'
import { gateWidth } from '../model/config.js'
import {
  type AttentionHeads,
  addSinks,
  embedRows,
  type ForwardModel,
  type KeyValueRows,
  makeStream,
  makeWorkspace,
  type RopeTurns,
  type RowBlock,
  rotateHeads,
  rotateQueries,
  runLayer,
  runRecurrentLayer,
  type StateRows,
  type StreamRows,
  turnsOf,
} from '../model/forward.js'
import { headShapes, layerPlaces } from '../model/layer-kinds.js'
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
import type { SaliencyRecord, ScoreWatcher } from './saliency-record.js'
import { type SalientBudget, salientBudget } from './salient-budget.js'
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
  readonly cache: SequenceCache
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
  const { hiddenSize, experts, nHeads } = config
  const ofShapes = headShapes(config).map(
    ({ nKvHeads, headDim }) => headDim * (2 * nHeads + 2 * nKvHeads),
  )
  const attention = hiddenSize * Math.max(...ofShapes)
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
  const ofShapes = cache.starts.map((start) => {
    const starts = scratch.ints(Int32Array.of(start))
    return { pool: pool.memory, tables: tables.memory, starts }
  })

  const rows = sliced.slices.map((slice) => ({
    ...slice,
    tailLength: scratch.ints(Int32Array.of(nTail + slice.end)),
    slots: slots && scratch.keep(slots.view([slice.nRows], slice.first)),
    seen: seenKeys(sliced.stream, slice, 0, scratch),
  }))
  await embedAll(pass, sliced)
  for (const [layer, { isRecurrent, shape, index, borrows }] of layerPlaces(
    model.config,
  ).entries()) {
    if (isRecurrent) {
      await passRecurrent(pass, layer, index, sliced)
      continue
    }
    const options = { layer: index, scale: sliced.scale, slidingWindow: sliced.windowOf(layer) }
    const paged = ofShapes[shape] as (typeof ofShapes)[number]
    for (const slice of rows) {
      await turn()
      const { block, cuSeqlens, positions } = slice
      runLayer(model, layer, shape, block, ({ rawHeads, heads }) => {
        const { q, k, v, out, lse } = heads
        setTailLengths({ ...paged, lengths: slice.tailLength })
        if (borrows) rotateQueries(model, layer, block, { rawHeads, heads })
        else {
          const turns = turnsOf(model, layer, block)
          const own = { ...rawHeads, v, ...turns, qOut: q, kOut: k }
          ropeAppend({ ...own, ...paged, cuSeqlens, layer: index })
        }
        if (hasPast) mixedAttention({ q, out, lse, ...paged, cuSeqlens, positions, ...options })
        else flashAttention({ q, out, lse, ...slice.seen[shape], ...options, causal: true })
        addSinks(model, layer, heads)
        if (!slice.slots || borrows) return
        const { layers } = probeSlots.ofShapes[shape] as ProbeRows
        const kept = layers[index] as { q: Tensor; lse: Tensor }
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
): Promise<{ x: Tensor<'f32'>; shares: readonly HeadShares[] | null }> {
  const { model, cache, ids, scratch, turn } = pass
  const nTail = cache.tailLength
  const base = cache.tailStart
  const hasPacked = base > 0
  const watch = record?.begin(base, nTail + ids.length) ?? null
  // Before anything is staged, what is there is what stays.
  const budget = salientBudget(cache, compression, nTail + ids.length)
  const sliced = slicePass(pass, nTail, cache.length)
  const { stream, slices } = sliced
  const ofShapes = cache.ofShapes.map((own) =>
    makeCompressedLayers(pass, { cache: own, compression, seed, budget, watch, slices, hasPacked }),
  )
  const rows = slices.map((slice) => ({
    ...slice,
    seen: seenKeys(stream, slice, nTail, scratch),
  }))
  const { compressesApart } = SLICES[model.device.info.kind]
  await embedAll(pass, sliced)
  for (const [layer, { isRecurrent, shape, index, borrows }] of layerPlaces(
    model.config,
  ).entries()) {
    if (isRecurrent) {
      await passRecurrent(pass, layer, index, sliced)
      continue
    }
    const options = { layer: index, scale: sliced.scale, slidingWindow: sliced.windowOf(layer) }
    const { compressor, paged, table, pasts, probesOf } = ofShapes[shape] as CompressedLayers
    const { k, v } = stream.ofShapes[shape] as KeyValueRows
    const probes = borrows ? null : (probesOf?.(index) ?? null)
    for (const [i, slice] of rows.entries()) {
      await turn()
      if (i === 0 && nTail > 0 && !borrows) {
        unpackSegment({ pool: paged.pool, table, k, v, layer: index, segment: 0, base })
      }
      runLayer(model, layer, shape, slice.block, (attention) => {
        const { q, out, lse } = attention.heads
        rotateHeads(model, layer, slice.block, attention)
        flashAttention({ q, out, lse, ...slice.seen[shape], ...options, causal: true })
        const past = pasts[i]
        if (past) {
          const { cuSeqlens, positions } = slice
          const noTail = { tail: false, causal: false }
          mixedAttention({ q, ...past, ...paged, cuSeqlens, positions, ...options, ...noTail })
          mergeAttention({ outA: out, lseA: lse, outB: past.out, lseB: past.lse, out, lse })
        }
        addSinks(model, layer, attention.heads)
        probes?.store(slice, attention.heads)
      })
    }
    if (borrows) continue
    if (compressesApart) await turn()
    await compressor.compress(index, k, v, probes, options.slidingWindow)
  }
  const shares = ofShapes.flatMap(({ compressor }) => compressor.shares ?? [])
  return { x: stream.x, shares: shares.length > 0 ? shares : null }
}

/** What a prompt is compressed by in the layers whose heads have one shape, and what it attends to there. */
type CompressedLayers = ReturnType<typeof makeCompressedLayers>

/** How those layers take part in a pass. */
interface CompressedPass {
  readonly cache: KvCache
  readonly compression: Compression
  readonly seed: Seed
  readonly budget: SalientBudget
  readonly watch: ScoreWatcher | null
  readonly slices: readonly Slice[]
  /** Something was compressed before, and is attended to. */
  readonly hasPacked: boolean
}

/** Stages the group. */
function makeCompressedLayers(
  pass: PrefillPass,
  { cache, compression, seed, budget, watch, slices, hasPacked }: CompressedPass,
) {
  const { model, ids, scratch } = pass
  const { attentionDtype: dtype } = model
  const { nHeads } = model.config
  const { headDim } = cache.shape
  const nTokens = cache.tailLength + ids.length
  const group = { cache, compression, nTokens, mostLayers: 1, dtype, scratch, watch }
  const compressor = makePromptCompressor(group, budget)
  const { pool, tables } = cache.memory
  const nPast = hasPacked ? (slices[0]?.nRows ?? 0) : 0
  const out = scratch.tensor(dtype, [nPast, nHeads, headDim])
  const lse = scratch.tensor('f32', [nPast, nHeads])
  const starts = scratch.ints(Int32Array.of(cache.start))
  return {
    compressor,
    paged: { pool: pool.memory, tables: tables.memory, starts },
    table: scratch.keep(cache.tableView()),
    /** Where each slice's attention to what was compressed before goes; none without. */
    pasts: slices.slice(0, hasPacked ? undefined : 0).map(({ nRows }) => ({
      out: scratch.keep(out.view([nRows, nHeads, headDim])),
      lse: scratch.keep(lse.view([nRows, nHeads])),
    })),
    probesOf: compressor.looks ? promptProbes(pass, headDim, compression, seed) : null,
  }
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
function promptProbes(pass: PrefillPass, headDim: number, compression: Compression, seed: Seed) {
  const { model, cache, ids, scratch } = pass
  const nTokens = ids.length
  const specialRows = compression.usesSpecialTokens ? specialRowsOf(model, ids) : null
  const choose = (layer: number) => compression.promptProbes(nTokens, seed, layer, specialRows)
  return gatherProbes({ model, headDim, nTokens, nBefore: cache.tailLength, choose, scratch })
}

/** Rows that are looked at, of layers whose heads have one shape. */
interface GatheredRows {
  readonly model: ForwardModel
  readonly headDim: number
  readonly nTokens: number
  /** Keys before them. */
  readonly nBefore: number
  choose(layer: number): Int32Array
  readonly scratch: Scratch
}

/**
 * The rows that `choose` names of each layer's `nTokens`. All that a layer needs to know is one copy to the device, lest
 * several hold up the kernels behind them.
 */
export function gatherProbes({ model, headDim, nTokens, nBefore, choose, scratch }: GatheredRows) {
  const { nHeads, softmaxScale: scale } = model.config
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
  stream.ids.write(ids)
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
      ids: rowsOf(stream.ids, row),
      x: rowsOf(stream.x, row),
      ofShapes: stream.ofShapes.map(({ k, v }) => ({
        k: rowsOf(k, nBefore + row),
        v: rowsOf(v, nBefore + row),
      })),
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

/** (n_shapes) keys and values of everything in the stream that a slice may see, for flashAttention. */
export function seenKeys(
  { ofShapes }: StreamRows,
  slice: Slice,
  nBefore: number,
  scratch: Scratch,
) {
  const nSeen = nBefore + slice.end
  const cuSeqlensK = scratch.ints(Int32Array.of(0, nSeen))
  return ofShapes.map(({ k, v }) => {
    const shape = [nSeen, ...k.shape.slice(1)]
    const seen = { k: scratch.keep(k.view(shape)), v: scratch.keep(v.view(shape)) }
    return { ...seen, cuSeqlensQ: slice.cuSeqlens, cuSeqlensK }
  })
}

export async function embedAll(
  { model, turn }: Pick<PrefillPass, 'model' | 'turn'>,
  { slices }: SlicedPass,
): Promise<void> {
  await turn()
  for (const { block, positions } of slices) embedRows(model, block, positions)
}
