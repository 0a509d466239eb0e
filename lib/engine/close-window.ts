/** Full windows of generated tokens (Alg. 3 of ZipCache, arXiv 2405.14256), some layers at a time. */
import type { KvCache, KvShape, ProbeRows, SequenceCache } from '../cache/index.js'
import type { ForwardModel } from '../model/forward.js'
import type { Scratch } from '../model/scratch.js'
import { type DeviceInfo, DTYPE_BYTES, unpackSegment } from '../ops/index.js'
import type { Compression } from '../policy/policy.js'
import { type HeadShares, makeWindowCompressor } from './compress-group.js'
import type { SaliencyRecord, ScoreWatcher } from './saliency-record.js'
import type { WindowProbes } from './window-probes.js'

/** Layers that attend and follow each other, compressed by the same calls of ops. */
interface LayerSlice {
  readonly first: number
  readonly nLayers: number
  /** Keys that a probe sees, its own included; 0: all of the window. */
  readonly slidingWindow: number
}

/**
 * The most bytes of K and V in a slice: what a closing window takes beside the cache. A single layer
 * has a megabyte or less, which keeps a GPU busy for less time than the next kernel's launch takes. On
 * a CPU, what was unpacked should still be in a core's cache when it is packed.
 */
const SLICE_BYTES = { cpu: 2 ** 20, gpu: 2 ** 24 } satisfies Record<DeviceInfo['kind'], number>

/** The slices, of no more than `mostLayers`, in which a window of `nTokens` is compressed in layers of a shape. */
export function closingSlices(
  { attentionDtype, device }: Pick<ForwardModel, 'attentionDtype' | 'device'>,
  shape: KvShape,
  nTokens: number,
  mostLayers: number = Number.POSITIVE_INFINITY,
): LayerSlice[] {
  const { nLayers, nKvHeads, headDim, slidingWindow: windows } = shape
  const layerBytes = 2 * nTokens * nKvHeads * headDim * DTYPE_BYTES[attentionDtype]
  const fitting = Math.floor(SLICE_BYTES[device.info.kind] / layerBytes)
  const most = Math.min(mostLayers, Math.max(1, fitting))
  const windowOf = (layer: number) => {
    const slidingWindow = windows[layer] ?? 0
    return slidingWindow < nTokens ? slidingWindow : 0
  }
  const slices: LayerSlice[] = []
  for (let first = 0; first < nLayers; ) {
    const slidingWindow = windowOf(first)
    let end = first + 1
    while (end < nLayers && windowOf(end) === slidingWindow) end++
    // Slices of a size, rather than a small one at the end.
    const perSlice = Math.ceil((end - first) / Math.ceil((end - first) / most))
    for (; first < end; first += perSlice) {
      slices.push({ first, nLayers: Math.min(perSlice, end - first), slidingWindow })
    }
    first = end
  }
  return slices
}

/** A window that is full, in the tail of `cache`, and what its compression takes. */
export interface FullWindow {
  readonly model: ForwardModel
  readonly cache: SequenceCache
  readonly compression: Compression
  /** null: nobody looks at the tokens. */
  readonly probes: WindowProbes | null
  /** (n_shapes) what the last prompt gave each head; null: all heads have the same. */
  readonly shares: readonly HeadShares[] | null
  readonly scratch: Scratch
  /** Where scores are kept; null where nobody wants to see them. */
  readonly record: SaliencyRecord | null
}

/**
 * Compresses a full window (Alg. 3): its tokens are scored by the window's own probes, the closing
 * token among them, split and packed; what was compressed before is not touched. Staged, for the
 * caller to publish.
 */
export function closeWindow(window: FullWindow): void {
  const { cache, record } = window
  const watch = record?.begin(cache.tailStart, cache.tailLength) ?? null
  for (const shape of cache.ofShapes.keys()) closeLayers(window, shape, watch)
}

/** The same in the layers whose heads have one shape. */
function closeLayers(
  { model, cache: ofAll, compression, probes, shares, scratch }: FullWindow,
  shape: number,
  watch: ScoreWatcher | null,
): void {
  const cache = ofAll.ofShapes[shape] as KvCache
  const { nKvHeads, headDim } = cache.shape
  const nTokens = cache.tailLength
  const dtype = model.attentionDtype
  // Heads with shares of their own are packed one by one, whatever is unpacked with them.
  const slices = closingSlices(model, cache.shape, nTokens, shares ? 1 : undefined)
  const mostLayers = Math.max(...slices.map(({ nLayers }) => nLayers))
  const group = { cache, compression, nTokens, mostLayers, dtype, scratch, watch }
  const compressor = makeWindowCompressor(group, shares?.[shape] ?? null)
  const allK = scratch.tensor(dtype, [nTokens, mostLayers * nKvHeads, headDim])
  const allV = scratch.tensor(dtype, [nTokens, mostLayers * nKvHeads, headDim])
  const table = scratch.keep(cache.tableView())
  const { pool, probes: probeSlots } = cache.memory
  const probeRows = probeSlots.ofShapes[shape] as ProbeRows
  const { softmaxScale: scale } = model.config
  const kept =
    compressor.looks && probes
      ? { rows: scratch.ints(probes.slots), positions: scratch.ints(probes.steps), scale }
      : null
  const rowsOf = (first: number, nLayers: number) => {
    const { q, lse } = probeRows.ofLayers(first, nLayers)
    return { q: scratch.keep(q), lse: scratch.keep(lse) }
  }
  for (const { first, nLayers, slidingWindow } of slices) {
    const shape = [nTokens, nLayers * nKvHeads, headDim]
    const k = scratch.keep(allK.view(shape))
    const v = scratch.keep(allV.view(shape))
    const base = cache.tailStart
    unpackSegment({ pool: pool.memory, table, k, v, layer: first, segment: 0, base })
    compressor.compress(first, k, v, kept && { ...rowsOf(first, nLayers), ...kept }, slidingWindow)
  }
}
