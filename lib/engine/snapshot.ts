/**
 * A sequence as a file, and back. What is stored is logical: tokens, codes, parameters, positions
 * and 16-bit rows, not pages, so that a file of one device serves another.
 */
import {
  addStates,
  type CacheDemand,
  type CacheMemory,
  codeBytes,
  FORMATS,
  type Format,
  type GroupPlan,
  joinCodes,
  type KvCache,
  type KvShape,
  type ProbeRows,
  pageBytes,
  pageCount,
  type RecurrentState,
  type SequenceCache,
  splitCodes,
  stateBytes,
} from '../cache/index.js'
import { ZipCacheError } from '../errors.js'
import { fingerprintOf } from '../model/fingerprint.js'
import type { ForwardModel } from '../model/forward.js'
import { Scratch } from '../model/scratch.js'
import {
  appendKv,
  convert,
  DTYPE_BYTES,
  type DType,
  exportSegment,
  gatherRows,
  importSegment,
  setTailLengths,
  storeProbes,
  type Tensor,
  TYPED_ARRAYS,
  type TypedArrays,
  unpackSegment,
} from '../ops/index.js'
import { type CachePolicy, type PolicySpec, resolvePolicy } from '../policy/index.js'
import { deriveSeed } from '../random.js'
import { Context } from './context.js'
import { segmentTensors } from './segment-tensors.js'
import {
  readSnapshot,
  type SnapshotInput,
  type SnapshotOutput,
  snapshotError,
  writeSnapshot,
} from './snapshot-file.js'

/** Makes room for what is added to `demand`, or throws. */
type Reserve = (add: (demand: CacheDemand) => void) => void

/** What a file says before its bytes. */
interface SnapshotHeader {
  readonly fingerprint: string
  readonly policy: PolicySpec
  /** Tokens of a window, which a policy's name alone may not always say; null: it has none. */
  readonly window?: number | null
  readonly seed: { readonly lo: number; readonly hi: number }
  readonly nTokens: number
  readonly pending: number | null
  readonly nGroups: number
  readonly tailTokens: number
  readonly hasLogits: boolean
  /** Compressions, oldest first. */
  readonly groups: readonly GroupPlan[]
}

/**
 * Writes a context to a file, atomically.
 *
 * Rejects with `ERR_ZC_UNSUPPORTED` for a policy that keeps rows, `ERR_ZC_IO`.
 */
export async function saveContext(context: Context, file: string): Promise<void> {
  const { cache, model, spec, seed, tokens, pending, nextLogits } = context
  if (cache.isUneven) {
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      "policy: a sequence whose heads differ in their salient tokens (saliencyRatio: 'auto') cannot be saved",
      { argument: 'policy' },
    )
  }
  if (context.rows) {
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      `policy: a sequence of ${context.policy.name}, whose rows lie in no pages, cannot be saved`,
      { argument: 'policy' },
    )
  }
  const { nGroups } = context.windowState
  const header: SnapshotHeader = {
    fingerprint: await fingerprintOf(model),
    policy: spec,
    window: context.policy.compression?.window ?? null,
    seed,
    nTokens: tokens.length,
    pending,
    nGroups,
    tailTokens: cache.tailLength,
    hasLogits: nextLogits !== null,
    groups: groupsOf(cache),
  }
  await writeSnapshot(file, header, async (output) => {
    await output.write(Int32Array.from(tokens))
    for (const [shape, own] of cache.ofShapes.entries()) {
      for (let layer = 0; layer < own.shape.nLayers; layer++) {
        for (const place of groupPlaces(header.groups)) await saveGroup(output, own, layer, place)
        await saveTail(output, context, shape, layer)
      }
    }
    if (context.state) await saveState(output, context.state)
    if (nextLogits) await output.write(await nextLogits.read())
  })
}

/**
 * A context as a file has it, which goes on with the same tokens. `reserve` makes room for what is
 * added to its argument, which is taken at once, or throws.
 *
 * Rejects with `ERR_ZC_SNAPSHOT` for a file that is damaged or of another model, `ERR_ZC_IO`,
 * `ERR_ZC_OUT_OF_MEMORY`, what `reserve` throws; nothing stays allocated then.
 */
export async function restoreContext(
  model: ForwardModel,
  memory: CacheMemory,
  file: string,
  reserve: Reserve,
): Promise<Context> {
  return readSnapshot(file, async (raw, input, bodyBytes) => {
    const header = checkHeader(file, raw, model)
    if (header.fingerprint !== (await fingerprintOf(model))) {
      throw snapshotError(file, 'is of another model, or of other weights or another compute type')
    }
    const policy = policyOf(file, header)
    if (policy.rows) throw snapshotError(file, 'is of a policy whose sequences are not saved')
    const window = policy.compression?.window ?? null
    const saved = header.window === undefined ? window && windowBefore(header) : header.window
    if (saved !== window) {
      // Other tokens of the running window would be probes, and it would end elsewhere.
      const what = `is of ${policy.name} with windows of ${saved} tokens, which are of ${window} now`
      throw snapshotError(file, what)
    }
    const context = Context.open(model, memory, header.policy, header.seed)
    try {
      const expected = bodyBytesOf(header, context)
      if (bodyBytes !== expected) {
        throw snapshotError(file, `holds ${bodyBytes} bytes, expected ${expected}`)
      }
      await restoreBody(context, header, input, file, reserve)
      return context
    } catch (error) {
      context.dispose()
      throw error
    }
  })
}

/** The windows of files that do not say: of 100 tokens, unless the policy was given others. */
function windowBefore({ policy }: SnapshotHeader): unknown {
  return (policy as { readonly window?: unknown }).window ?? 100
}

function policyOf(file: string, { policy }: SnapshotHeader): CachePolicy {
  try {
    return resolvePolicy(policy)
  } catch (cause) {
    throw snapshotError(file, 'names a policy that is none', cause)
  }
}

async function restoreBody(
  context: Context,
  header: SnapshotHeader,
  input: SnapshotInput,
  file: string,
  reserve: Reserve,
): Promise<void> {
  const { cache, model } = context
  const { vocabSize } = model.config
  const tokens = await readArray(input, 'i32', header.nTokens)
  if (tokens.some((id) => id < 0 || id >= vocabSize)) throw snapshotError(file, 'holds no tokens')
  for (const id of tokens) context.tokens.push(id)
  context.pending = header.pending
  const { nGroups, tailTokens } = header
  reserve((demand) => {
    for (const shape of cache.memory.shapes) {
      for (const group of header.groups) demand.addGroups(shape, group)
      const tailPage = pageBytes(cache.tailFormat, cache.tailFormat, shape.headDim)
      demand.addEach(shape, tailPage, pageCount(tailTokens))
    }
    demand.probeSlots += tailProbes(header, context)
    const { stateShape } = cache.memory
    if (stateShape && tokens.length > 0) addStates(demand, stateShape, 1)
  })
  for (const group of header.groups) {
    cache.stage(group)
    cache.publish(group.nTokens)
  }
  const slots = context.reopenWindow(nGroups, tailTokens)
  for (const [shape, own] of cache.ofShapes.entries()) {
    for (let layer = 0; layer < own.shape.nLayers; layer++) {
      for (const place of groupPlaces(header.groups)) await restoreGroup(input, own, layer, place)
      await restoreTail(input, context, shape, layer, slots)
    }
  }
  if (tokens.length > 0) await restoreState(input, context.reopenState())
  cache.dropHidden()
  context.dropHidden()
  if (header.hasLogits) {
    const logits = model.device.from(
      await readArray(input, 'f32', vocabSize),
      [1, vocabSize],
      'f32',
    )
    context.keepLogits(logits, 0)
    logits.dispose()
  }
  try {
    await model.device.sync()
  } catch (cause) {
    throw snapshotError(file, 'holds what no cache holds', cause)
  }
}

// ---- packed segments ----

/** One class of a compression. */
interface ClassPlan {
  readonly k: Format
  readonly v: Format
  readonly nTokens: number
}

/** A compression and where it lies. */
interface GroupPlace {
  readonly nTokens: number
  /** Position of its first token. */
  readonly start: number
  /** Its first segment's number in the page table. */
  readonly firstSegment: number
  /** The classes that have tokens, the salient one first. */
  readonly classes: readonly ClassPlan[]
}

function groupsOf(cache: SequenceCache): GroupPlan[] {
  const groups = new Map<number, GroupPlan>()
  for (const { precision, k, v, nTokens, start } of cache.segments) {
    const group = groups.get(start)
    const format = { k, v }
    groups.set(start, {
      nTokens: (group?.nTokens ?? 0) + nTokens,
      nSalient: (group?.nSalient ?? 0) + (precision === 'high' ? nTokens : 0),
      high: precision === 'high' ? format : (group?.high ?? format),
      low: precision === 'low' ? format : (group?.low ?? format),
    })
  }
  return [...groups.values()]
}

function groupPlaces(groups: readonly GroupPlan[]): GroupPlace[] {
  let start = 0
  let firstSegment = 1
  return groups.map(({ nTokens, nSalient, high, low }) => {
    const classes = [
      { ...high, nTokens: nSalient },
      { ...low, nTokens: nTokens - nSalient },
    ].filter((each) => each.nTokens > 0)
    const place = { nTokens, start, firstSegment, classes }
    start += nTokens
    firstSegment += classes.length
    return place
  })
}

/**
 * One layer of a compression: where there are two classes, which tokens are salient, one bit a token
 * and KV head; then for each class K's and V's codes, and the parameters in float16.
 */
async function saveGroup(
  output: SnapshotOutput,
  cache: KvCache,
  layer: number,
  { nTokens, start, firstSegment, classes }: GroupPlace,
): Promise<void> {
  const scratch = new Scratch(cache.memory.device)
  try {
    for (const [index, plan] of classes.entries()) {
      const content = segmentTensors(cache.shape, plan.nTokens, scratch)
      const table = scratch.keep(cache.tableView())
      const segment = firstSegment + index
      exportSegment({ pool: cache.memory.pool.memory, table, ...content, layer, segment })
      const params = [content.kParams, content.vParams, content.vChannel].map((x) => {
        const exact = scratch.tensor('f16', x.shape) // what the pages hold
        convert({ x, out: exact })
        return exact
      })
      // All together: each wait may be as long as a decode step of others.
      const [positions, kCodes, vCodes, ...exact] = await Promise.all([
        ...([content.positions.read(), content.kCodes.read(), content.vCodes.read()] as const),
        ...params.map((x) => x.read()),
      ])
      if (index === 0 && classes.length > 1) {
        const rows = positions.map((position) => position - start)
        await output.write(joinBitmaps(rows, nTokens, cache.shape.nKvHeads))
      }
      await output.write(joinCodes(kCodes, FORMATS[plan.k]))
      await output.write(joinCodes(vCodes, FORMATS[plan.v]))
      for (const values of exact) await output.write(values)
    }
  } finally {
    scratch.dispose()
  }
}

async function restoreGroup(
  input: SnapshotInput,
  cache: KvCache,
  layer: number,
  { nTokens, start, firstSegment, classes }: GroupPlace,
): Promise<void> {
  const { nKvHeads } = cache.shape
  const scratch = new Scratch(cache.memory.device)
  try {
    const isMixed = classes.length > 1
    const bitmapBytes = Math.ceil(nTokens / 8)
    const bitmaps = isMixed ? await input.read(nKvHeads * bitmapBytes) : null
    for (const [index, plan] of classes.entries()) {
      const content = segmentTensors(cache.shape, plan.nTokens, scratch)
      const nCodes = content.kCodes.length
      for (const [tensor, format] of [
        [content.kCodes, plan.k],
        [content.vCodes, plan.v],
      ] as const) {
        const bytes = await input.read(codeBytes(nCodes, FORMATS[format]))
        tensor.write(splitCodes(bytes, nCodes, FORMATS[format]))
      }
      for (const params of [content.kParams, content.vParams, content.vChannel]) {
        const exact = scratch.tensor('f16', params.shape)
        convert({ x: exact.write(await readArray(input, 'f16', params.length)), out: params })
      }
      const positions: number[] = []
      for (let head = 0; head < nKvHeads; head++) {
        for (let row = 0; row < nTokens; row++) {
          const byte = bitmaps?.[head * bitmapBytes + (row >> 3)] ?? 0
          const isSalient = (byte & (1 << (row & 7))) !== 0
          if (!isMixed || isSalient === (index === 0)) positions.push(start + row)
        }
      }
      // A bitmap of another count is refused by the op: no shape would fit.
      content.positions.write(Int32Array.from(positions).subarray(0, nKvHeads * plan.nTokens))
      const table = scratch.keep(cache.tableView())
      const segment = firstSegment + index
      importSegment({ pool: cache.memory.pool.memory, table, ...content, layer, segment })
    }
  } finally {
    scratch.dispose()
  }
}

/** Bits of the named rows of each KV head: (n_kv_heads, ceil(n / 8)) bytes. */
function joinBitmaps(rows: Int32Array, nTokens: number, nKvHeads: number): Uint8Array {
  const bytes = Math.ceil(nTokens / 8)
  const bitmaps = new Uint8Array(nKvHeads * bytes)
  const perHead = rows.length / nKvHeads
  rows.forEach((row, i) => {
    const at = Math.floor(i / perHead) * bytes + (row >> 3)
    bitmaps[at] = (bitmaps[at] as number) | (1 << (row & 7))
  })
  return bitmaps
}

// ---- the running window ----

/** Rows of the tail, and of its probes. */
function tailTensors(
  cache: KvCache,
  { config, attentionDtype }: ForwardModel,
  nProbes: number,
  scratch: Scratch,
) {
  const { nKvHeads, headDim } = cache.shape
  const { nHeads } = config
  const dtype = cache.tailFormat as DType
  return {
    k: scratch.tensor(dtype, [cache.tailLength, nKvHeads, headDim]),
    v: scratch.tensor(dtype, [cache.tailLength, nKvHeads, headDim]),
    q: scratch.tensor(attentionDtype, [nProbes, nHeads, headDim]),
    lse: scratch.tensor('f32', [nProbes, nHeads]),
  }
}

async function saveTail(
  output: SnapshotOutput,
  context: Context,
  shape: number,
  layer: number,
): Promise<void> {
  const { model } = context
  const cache = context.cache.ofShapes[shape] as KvCache
  if (cache.tailLength === 0) return
  const { pool, probes } = cache.memory
  const slots = context.windowState.probeSlots
  const scratch = new Scratch(model.device)
  try {
    const { k, v, q, lse } = tailTensors(cache, model, slots.length, scratch)
    const place = { layer, segment: 0, base: cache.tailStart }
    unpackSegment({ pool: pool.memory, table: scratch.keep(cache.tableView()), k, v, ...place })
    const { layers } = probes.ofShapes[shape] as ProbeRows
    const kept = layers[layer] as { q: Tensor; lse: Tensor }
    const rows = scratch.ints(slots)
    for (const [from, to] of [
      [kept.q, q],
      [kept.lse, lse],
    ] as const) {
      const [capacity, ...rest] = from.shape as [number, ...number[]]
      const width = rest.reduce((product, size) => product * size, 1)
      const x = scratch.keep(from.view([capacity, width]))
      gatherRows({ x, rows, out: scratch.keep(to.view([slots.length, width])) })
    }
    const rowsAndProbes = await Promise.all([k, v, q, lse].map((tensor) => tensor.read()))
    for (const values of rowsAndProbes) await output.write(values)
  } finally {
    scratch.dispose()
  }
}

async function restoreTail(
  input: SnapshotInput,
  context: Context,
  shape: number,
  layer: number,
  slots: Int32Array,
): Promise<void> {
  const { model } = context
  const cache = context.cache.ofShapes[shape] as KvCache
  if (cache.tailLength === 0) return
  const { pool, tables, probes } = cache.memory
  const held = slots.filter((slot) => slot >= 0)
  const scratch = new Scratch(model.device)
  try {
    const { k, v, q, lse } = tailTensors(cache, model, held.length, scratch)
    for (const tensor of [k, v, q, lse] as Tensor[]) {
      tensor.write(await readArray(input, tensor.dtype, tensor.length))
    }
    const starts = scratch.ints(Int32Array.of(cache.start))
    const cuSeqlens = scratch.ints(Int32Array.of(0, cache.tailLength))
    const paged = { pool: pool.memory, tables: tables.memory, starts }
    setTailLengths({ ...paged, lengths: scratch.ints(Int32Array.of(cache.tailLength)) })
    appendKv({ k, v, ...paged, cuSeqlens, layer })
    const { layers } = probes.ofShapes[shape] as ProbeRows
    const kept = layers[layer] as { q: Tensor; lse: Tensor }
    const into = { slots: scratch.ints(held), probeQ: kept.q, probeLse: kept.lse }
    storeProbes({ q, lse, ...into })
  } finally {
    scratch.dispose()
  }
}

// ---- the state of recurrent layers ----

async function saveState(output: SnapshotOutput, state: RecurrentState): Promise<void> {
  for (const pages of state.pagesOfLayers()) {
    const reads = pages.map((page) => page.read())
    for (const page of pages) page.dispose() // once it was read
    for (const own of await Promise.all(reads)) await output.write(own)
  }
}

async function restoreState(input: SnapshotInput, state: RecurrentState | null): Promise<void> {
  for (const pages of state?.pagesOfLayers() ?? []) {
    try {
      for (const page of pages) page.write(await readArray(input, 'u8', page.length))
    } finally {
      for (const page of pages) page.dispose()
    }
  }
}

// ---- reading with care: whoever can write a checksum can write any header ----

async function readArray<D extends DType>(
  input: SnapshotInput,
  dtype: D,
  length: number,
): Promise<TypedArrays[D]> {
  const bytes = await input.read(length * DTYPE_BYTES[dtype])
  const { buffer } = bytes.slice() // aligned
  return new TYPED_ARRAYS[dtype](buffer, 0, length) as TypedArrays[D]
}

/** Probes among the tokens of the tail. */
function tailProbes({ seed, nGroups, tailTokens }: SnapshotHeader, { policy }: Context): number {
  const steps = policy.compression?.windowProbes(deriveSeed(seed, nGroups)) ?? new Int32Array(0)
  return steps.filter((step) => step < tailTokens).length
}

function bodyBytesOf(header: SnapshotHeader, context: Context): number {
  const { cache, model } = context
  const layers = cache.memory.shapes.reduce(
    (sum, shape) => sum + shape.nLayers * layerBytesOf(header, context, shape),
    0,
  )
  const { stateShape } = cache.memory
  const state = stateShape && header.nTokens > 0 ? stateBytes(stateShape) : 0
  const logits = header.hasLogits ? 4 * model.config.vocabSize : 0
  return 4 * header.nTokens + layers + state + logits
}

function layerBytesOf(
  header: SnapshotHeader,
  context: Context,
  { nKvHeads, headDim }: KvShape,
): number {
  const { cache, model } = context
  const { nHeads } = model.config
  let layer = 0
  for (const { nTokens, classes } of groupPlaces(header.groups)) {
    if (classes.length > 1) layer += nKvHeads * Math.ceil(nTokens / 8)
    for (const { k, v, nTokens: n } of classes) {
      for (const format of [k, v]) layer += codeBytes(nKvHeads * n * headDim, FORMATS[format])
      layer += 2 * nKvHeads * (3 * headDim + 2 * n)
    }
  }
  if (header.tailTokens > 0) {
    const rowBytes = nKvHeads * headDim * DTYPE_BYTES[cache.tailFormat as DType]
    layer += 2 * header.tailTokens * rowBytes
    const nProbes = tailProbes(header, context)
    layer += nProbes * nHeads * (headDim * DTYPE_BYTES[model.attentionDtype] + 4)
  }
  return layer
}

/** Throws `ERR_ZC_SNAPSHOT` for a header that cannot be one of this model's. */
function checkHeader(file: string, raw: unknown, model: ForwardModel): SnapshotHeader {
  const header = raw as Partial<Record<keyof SnapshotHeader, unknown>> | null
  const { maxPositions, vocabSize } = model.config
  const isCount = (value: unknown, max: number): value is number =>
    Number.isInteger(value) && (value as number) >= 0 && (value as number) <= max
  const isFormat = (value: unknown) => {
    const { k, v } = (value ?? {}) as { k?: unknown; v?: unknown }
    return [k, v].every((name) => typeof name === 'string' && /^u[2348]$/.test(name))
  }
  const isGroup = (value: unknown) => {
    const { nTokens, nSalient, high, low } = (value ?? {}) as Partial<GroupPlan>
    const counts = isCount(nTokens, maxPositions) && nTokens > 0 && isCount(nSalient, nTokens)
    return counts && isFormat(high) && isFormat(low)
  }
  const { seed, groups, pending } = header ?? {}
  const { lo, hi } = (seed ?? {}) as { lo?: unknown; hi?: unknown }
  const good =
    typeof header === 'object' &&
    header !== null &&
    typeof header.fingerprint === 'string' &&
    isCount(lo, 2 ** 32 - 1) &&
    isCount(hi, 2 ** 32 - 1) &&
    isCount(header.nTokens, maxPositions) &&
    (pending === null || isCount(pending, vocabSize - 1)) &&
    isCount(header.nGroups, maxPositions) &&
    isCount(header.tailTokens, maxPositions) &&
    (header.window == null || isCount(header.window, 65536)) &&
    typeof header.hasLogits === 'boolean' &&
    Array.isArray(groups) &&
    groups.every(isGroup)
  if (!good) throw snapshotError(file, 'has a header that says nothing sensible')
  const checked = header as unknown as SnapshotHeader
  const held = checked.groups.reduce((sum, { nTokens }) => sum + nTokens, checked.tailTokens)
  if (held !== checked.nTokens) throw snapshotError(file, 'does not hold as many tokens as it says')
  return checked
}
