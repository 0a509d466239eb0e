/** What a sequence comes to in memory, computed before anything is allocated. */
import {
  bitmapBytes,
  CacheDemand,
  type Format,
  hiddenPages,
  type KvShape,
  pageBytes,
  pageCount,
  paramsBytes,
  stateBytes,
  stateTableBytes,
  TableArena,
  tableWords,
} from '../cache/index.js'
import {
  gateWidth,
  hasOutputNorms,
  type ModelConfig,
  type RecurrenceConfig,
} from '../model/config.js'
import type { ForwardModel } from '../model/forward.js'
import { attentionShapes, channelsOf, headShapes, stateShape } from '../model/layer-kinds.js'
import { namedTensors } from '../model/weights.js'
import { DTYPE_BYTES } from '../ops/index.js'
import type { CachePolicy } from '../policy/index.js'
import type { Compression, RowPlan } from '../policy/policy.js'
import { deriveSeed, toSeed } from '../random.js'
import { closingSlices } from './close-window.js'
import { groupPlan } from './group-plan.js'
import { sliceRows } from './prefill.js'
import { BLOCK_ROWS } from './quantized-rows.js'
import { chunkBytes, chunkRows } from './row-coder.js'
import { checkRowPlan } from './row-stores.js'
import { allRegularBytes, classPageBytes } from './salient-budget.js'
import { tieredActivationBytes, tieredBytes } from './tiered-rows.js'

/** Memory that a prompt takes, in bytes. */
export interface MemoryEstimate {
  /** The weights, which all sequences share. */
  readonly weights: number
  /** The cache once the prompt is in it: `Sequence.bytes.resident`. */
  readonly cache: number
  /** K and V of one layer in full, while the prompt runs: of one for each shape that heads have. */
  readonly keysAndValues: number
  /** Everything else while the prompt runs: the residual stream, and what a slice needs. */
  readonly activations: number
  /** The sum: what has to be there at a time. */
  readonly peak: number
}

/** What a prompt of `nTokens` in an empty context comes to. */
export function estimatePrompt(
  model: ForwardModel,
  policy: CachePolicy,
  nTokens: number,
): MemoryEstimate {
  const shapes = attentionShapes(model.config)
  /** Of the layers of each shape, all together. */
  const ofAll = (bytesOf: (shape: KvShape) => number) =>
    shapes.reduce((sum, shape) => sum + bytesOf(shape), 0)
  const tailFormat = policy.tail === 'f16' ? 'f16' : model.attentionDtype
  const { compression, rows } = policy
  if (rows) checkRowPlan(model, rows)
  const isCompressed = compression !== null && nTokens >= compression.window
  // A token by itself is no prompt: it goes the way of generated ones, and fills a window of one.
  const isWindow = isCompressed && nTokens === 1
  const weights = weightBytes(model)
  let cache = ofAll((shape) =>
    isCompressed
      ? packedBytes(shape, compression, nTokens)
      : tailBytes(shape, tailFormat, rows ? 0 : nTokens),
  )
  if (rows) cache += ofAll((shape) => rowBytes(shape, rows, nTokens))
  const budget = isCompressed ? compression?.auto?.budgetBytes : null
  if (budget && compression) {
    const least = ofAll((shape) => {
      const words = tableWords(shape, 3, pageCount(nTokens) + 1)
      return allRegularBytes(shape, compression, nTokens) + 4 * TableArena.capacityOf(words)
    })
    cache = Math.min(cache, Math.max(budget, least))
  }
  // As the first window of seed 0 draws them.
  const drawn = compression?.windowProbes(deriveSeed(toSeed(0), 0)) ?? []
  const nProbes = drawn.filter((step) => step < nTokens).length
  const probes = nProbes * ofAll((shape) => shape.nLayers * probeRowBytes(model, shape))
  if (!isCompressed) cache += probes
  const state = stateShape(model.config)
  if (state) cache += stateBytes(state) + stateTableBytes(state)
  // Given back once the prompt is in.
  let hidden = 0
  if (isCompressed) hidden = ofAll((shape) => hiddenBytes(shape, compression, nTokens))
  else if (!compression && !rows) {
    hidden = ofAll((shape) => hiddenTailBytes(shape, tailFormat, nTokens))
  }
  const keyValueBytes = ({ nKvHeads, headDim }: KvShape) =>
    2 * nTokens * nKvHeads * headDim * DTYPE_BYTES[model.attentionDtype]
  const keysAndValues = ofAll(keyValueBytes)
  let activations = rows
    ? rowActivationBytes(model, rows, nTokens)
    : activationBytes(model, nTokens, compression, isCompressed && !isWindow)
  if (isWindow) {
    // The tail's page is there until the window is packed, of K and V read back from it.
    activations += probes
    activations += ofAll((shape) => {
      const { nLayers, nKvHeads, headDim } = shape
      const tail = nLayers * nKvHeads * pageBytes(tailFormat, tailFormat, headDim)
      const slices = closingSlices(model, shape, nTokens)
      const mostLayers = Math.max(...slices.map((slice) => slice.nLayers))
      return tail + mostLayers * (keyValueBytes(shape) + 4 * nKvHeads)
    })
  }
  return {
    weights,
    cache: cache - hidden,
    keysAndValues,
    activations,
    peak: weights + cache + keysAndValues + activations,
  }
}

/** q and log-sum-exp of one row in one layer. */
function probeRowBytes({ config, attentionDtype }: ForwardModel, { headDim }: HeadDim): number {
  return config.nHeads * (headDim * DTYPE_BYTES[attentionDtype] + 4)
}

type HeadDim = Pick<ModelConfig, 'headDim'>

/** What every pass of `n` rows allocates, but for K and V. */
function passBytes(model: ForwardModel, n: number): { bytes: number; nSlices: number } {
  const { hiddenSize, experts, recurrence, gatesAttention, normalizesValues, nHeads } = model.config
  const shapes = headShapes(model.config)
  const headDim = Math.max(...shapes.map((shape) => shape.headDim))
  const kvWidth = Math.max(...shapes.map((shape) => shape.nKvHeads * shape.headDim))
  const compute = DTYPE_BYTES[model.dtype]
  const attention = DTYPE_BYTES[model.attentionDtype]
  const rounds = model.attentionDtype !== 'f32'
  const perSlice = Math.min(n, sliceRows(model))
  const nTables = model.config.queryGrowth ? 2 : 1
  const angles = nTables * model.ropes.reduce((sum, { invFreq }) => sum + invFreq.length, 0)
  // residual stream, RoPE's tables, token ids, positions
  const stream = n * (4 * hiddenSize + 8 * angles + 8)
  const gate = gatesAttention ? 4 * nHeads * headDim : 0
  const query = nHeads * headDim * (4 + attention + (rounds ? attention : 0)) + 4 * nHeads + gate
  const key = rounds ? 4 * kvWidth * (normalizesValues ? 2 : 1) : 0
  const mlp = gateWidth(model.config) * (8 + (model.dtype === 'f32' ? 0 : compute))
  // logits; of each chosen one its weight, which it is, its pair, and what it gives
  const routed = experts ? 4 * (experts.count + experts.perRow * (3 + hiddenSize)) : 0
  const offsets = experts ? 4 * (experts.count + 1) : 0
  const branches = (hasOutputNorms(model.config) ? 1 : 0) + (experts?.besideMlp ? 1 : 0)
  const branch = branches * 4 * hiddenSize
  const recurrent = recurrence ? recurrentRowBytes(recurrence, compute) : 0
  const row = compute * hiddenSize + query + key + mlp + routed + branch + recurrent
  const slice = perSlice * row + offsets + (recurrence ? 4 : 0)
  return { bytes: stream + slice, nSlices: Math.ceil(n / perSlice) }
}

/** `RecurrentRows`, of one row. */
function recurrentRowBytes(recurrence: RecurrenceConfig, compute: number): number {
  const { nValueHeads, valueDim } = recurrence
  const width = nValueHeads * valueDim
  return 8 * channelsOf(recurrence) + 8 * nValueHeads + (8 + compute) * width
}

/** What compress-by-head.ts and gains.ts allocate, at most. */
function headPackerBytes(model: ForwardModel, shape: KvShape, n: number): number {
  const { nHeads } = model.config
  const { headDim, nKvHeads, nLayers } = shape
  const attention = DTYPE_BYTES[model.attentionDtype]
  const gathered = n * (4 * nKvHeads + 2 * headDim * attention + 4)
  const table = 4 * tableWords(shape, 3, pageCount(n) + 1)
  const looked = (64 * nHeads + 256 * nKvHeads) * headDim * (attention + 4) + 4 * (64 + 256)
  return gathered + table + nLayers * looked
}

/** What prefill-rows.ts allocates for a first prompt, but for K and V. */
function rowActivationBytes(model: ForwardModel, plan: RowPlan, n: number): number {
  const [shape] = attentionShapes(model.config) as [KvShape] // `checkRowPlan`
  const { headDim, nKvHeads, nLayers } = shape
  const pass = passBytes(model, n)
  const bytes = pass.bytes + 16 * pass.nSlices
  if (plan.kind === 'quantized') {
    const codecs = [plan.key, plan.value]
    const inRoom = codecs.filter((codec) => codec.rotated || codec.correction)
    const chunks = inRoom.flatMap((codec) => chunkRows(codec, codec.nQuantized(n, 0)))
    if (chunks.length === 0) return bytes
    const matrix = codecs.some((codec) => codec.rotated) ? 4 * headDim * headDim : 0
    return bytes + 4 * Math.max(...chunks) * nKvHeads * headDim + matrix
  }
  if (plan.kind === 'tiered') {
    const attention = DTYPE_BYTES[model.attentionDtype]
    const own = tieredActivationBytes(model.config, plan, n, attention)
    return bytes + own + n * (probeRowBytes(model, shape) + 8 * nLayers) + 4 * n * nLayers
  }
  const facts = { nRows: n, promptLength: n, isPrompt: true }
  const nKept = plan.nKept(facts)
  const looks = plan.accumulates || nKept < n
  const nProbes = looks ? plan.nObservers(facts, n) : 0
  const probes = nProbes * (probeRowBytes(model, shape) + 8 * nLayers) + 4 * n * nLayers
  const picked = nKept * nKvHeads * (4 + headDim * DTYPE_BYTES[model.attentionDtype])
  return bytes + picked + (looks ? probes + 4 * nKvHeads * n : 0)
}

/** Bytes of the row store of one prompt. */
export function rowBytes(shape: KvShape, plan: RowPlan, n: number): number {
  const width = shape.nKvHeads * shape.headDim
  if (plan.kind === 'kept') {
    const nKept = plan.nKept({ nRows: n, promptLength: n, isPrompt: true })
    const scores = plan.accumulates ? 4 * shape.nKvHeads : 0
    return shape.nLayers * nKept * (4 * width + scores)
  }
  if (plan.kind === 'tiered') return shape.nLayers * tieredBytes(shape, plan, n)
  let bytes = 0
  for (const codec of [plan.key, plan.value]) {
    const nQuantized = codec.nQuantized(n, 0)
    for (const nRows of chunkRows(codec, nQuantized)) {
      bytes += chunkBytes(codec, shape, nRows)
    }
    bytes += Math.ceil((n - nQuantized) / BLOCK_ROWS) * BLOCK_ROWS * width * 2
  }
  return shape.nLayers * bytes
}

/** What prefill.ts allocates for a prompt, but for K and V. */
function activationBytes(
  model: ForwardModel,
  n: number,
  compression: Compression | null,
  isCompressed: boolean,
): number {
  const shapes = attentionShapes(model.config)
  const { bytes, nSlices } = passBytes(model, n)
  const lengths = 4 * shapes.length + 16 * nSlices
  if (!compression || !isCompressed) {
    const slots = compression ? 4 * n : 0
    return bytes + lengths + 4 * nSlices + slots
  }
  return shapes.reduce(
    (sum, shape) => sum + compressingBytes(model, shape, n, compression),
    bytes + lengths,
  )
}

/** What compresses a prompt in the layers whose heads have one shape. */
function compressingBytes(
  model: ForwardModel,
  shape: KvShape,
  n: number,
  compression: Compression,
): number {
  const { nKvHeads, nLayers } = shape
  const isAuto = compression.auto !== null
  const isMixed = isAuto || (compression.nSalient(n) > 0 && compression.nSalient(n) < n)
  const looks = isMixed && compression.metric !== 'locality'
  // scores, and the ids of both classes
  const selection = nKvHeads * n * (looks ? 8 : 4)
  const nProbes = looks ? compression.promptProbes(n, toSeed(0), 0).length : 0
  const weights = looks && compression.metric === 'causal' ? 4 * n : 0
  const row = probeRowBytes(model, shape) + 8 * nLayers
  const probes = looks ? nProbes * row + 4 * n * nLayers : 0
  const byHead = isAuto ? headPackerBytes(model, shape, n) : 0
  return selection + weights + probes + byHead
}

function weightBytes({ weights }: ForwardModel): number {
  const tensors = new Set(namedTensors(weights).map(([, tensor]) => tensor))
  return [...tensors].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
}

/** Bytes of a cache whose tail holds so many tokens, and nothing else. */
function tailBytes(shape: KvShape, format: Format, nTokens: number): number {
  const nPages = pageCount(nTokens)
  const bytes = nPages * pageBytes(format, format, shape.headDim)
  const words = tableWords(shape, 1, nPages)
  return shape.nLayers * shape.nKvHeads * bytes + TableArena.capacityOf(words) * 4
}

/** Bytes of a cache that holds one compression of so many tokens, and nothing else. */
function packedBytes(shape: KvShape, compression: Compression, nTokens: number): number {
  const group = groupPlan(compression, nTokens)
  const { headDim } = shape
  const demand = new CacheDemand()
  let words: number
  if (compression.auto) {
    // At most: all of a head's tokens in the larger pages, both classes with a broken one.
    const { high, low } = compression
    const page = Math.max(classPageBytes(high, headDim), classPageBytes(low, headDim))
    demand.addEach(shape, page, pageCount(nTokens) + 1)
    demand.addEach(shape, paramsBytes(headDim), 2)
    demand.addEach(shape, bitmapBytes(nTokens), 1)
    words = tableWords(shape, 3, pageCount(nTokens) + 1)
  } else {
    demand.addGroups(shape, group)
    const counts = [group.nSalient, nTokens - group.nSalient].filter((n) => n > 0)
    const nPages = counts.reduce((sum, n) => sum + pageCount(n), 0)
    words = tableWords(shape, 1 + counts.length, nPages)
  }
  return demand.bytes + TableArena.capacityOf(words) * 4
}

/** Bytes of a prompt's packed pages that no later row sees; none where heads differ in how many. */
function hiddenBytes(shape: KvShape, compression: Compression, nTokens: number): number {
  if (compression.auto) return 0
  const { nSalient, high, low } = groupPlan(compression, nTokens)
  return (
    hiddenPagesOf(shape, nTokens, nSalient, false) * pageBytes(high.k, high.v, shape.headDim) +
    hiddenPagesOf(shape, nTokens, nTokens - nSalient, false) *
      pageBytes(low.k, low.v, shape.headDim)
  )
}

/** The same of a prompt that stays in the tail for good. */
function hiddenTailBytes(shape: KvShape, format: Format, nTokens: number): number {
  return hiddenPagesOf(shape, nTokens, nTokens, true) * pageBytes(format, format, shape.headDim)
}

/** Pages of `n` of a prompt's tokens that no later row sees, but for the one that stands in for others. */
function hiddenPagesOf(shape: KvShape, nTokens: number, n: number, wholeOnly: boolean): number {
  let nPages = 0
  for (const window of shape.slidingWindow) {
    const nSeen = Math.min(nTokens, window - 1)
    if (window > 0) nPages += shape.nKvHeads * hiddenPages(n, nSeen, wholeOnly)
  }
  return Math.max(0, nPages - 1)
}
