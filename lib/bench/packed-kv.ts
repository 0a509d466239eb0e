/** The ops over page tables, and a cache of one layer to run them on. */
import {
  ENTRY_HEADER,
  entryWords,
  headerWords,
  PAGE_UNIT_BYTES,
  pageBytes,
  pageCount,
  paramsBytes,
  SEGMENT,
  SEGMENT_WORDS,
  segmentWords,
  TABLE_HEADER,
} from '../cache/format.js'
import {
  appendKv,
  exportSegment,
  mixedAttention,
  packSegment,
  packSegments,
  type QuantRange,
  type Tensor,
  unpackSegment,
} from '../ops/index.js'
import type { FloatDtype, Segment } from '../reference/index.js'
import { type BenchTensors, uniforms, widened } from './bench-tensors.js'

/** How the tokens of one class are stored, K and V alike. */
export type CodeFormat = 'u2' | 'u3' | 'u4' | 'u8'

/** A cache of one layer and sequence. */
export interface KvPlan {
  readonly nKvHeads: number
  readonly headDim: number
  /** Newest tokens, in float16. */
  readonly tailTokens: number
  /** Tokens before them. */
  readonly packedTokens: number
  /** Tokens that are compressed together, in segments of their own: those of a window; else all. */
  readonly window?: number
  /**
   * Their classes, one after the other; `share` of the tokens of each KV head, which sum up to 1.
   * Two classes divide the tokens at random, each KV head in its own way.
   */
  readonly classes: readonly { readonly format: CodeFormat; readonly share: number }[]
  /** Of K and V as the model computes them. */
  readonly dtype: FloatDtype
}

interface PlannedSegment {
  readonly format: CodeFormat
  readonly nTokens: number
  /** Of the packed tokens, those that it and others of its window divide: the first, and how many. */
  readonly start: number
  readonly span: number
  /** (n_kv_heads, n_tokens) rows of those `span` tokens, ascending. */
  readonly ids: Int32Array
}

/** A cache whose pages are laid out; `pack` and `append` fill them. */
export class PackedKv {
  readonly plan: KvPlan
  readonly segments: readonly PlannedSegment[]
  /** (table_words) */
  readonly table: Tensor<'i32'>
  readonly pool: Tensor<'u8'>
  /** (packed_tokens, n_kv_heads, head_dim): what is compressed. */
  readonly k: Tensor
  readonly v: Tensor
  /** (tail_tokens, n_kv_heads, head_dim) */
  readonly tailK: Tensor
  readonly tailV: Tensor
  /** Bytes of pages and channel parameters, all of which attention reads. */
  readonly readBytes: number
  readonly #tensors: BenchTensors
  readonly #ids: readonly Tensor<'i32'>[]
  readonly #starts: Tensor<'i32'>
  readonly #cuSeqlens: Tensor<'i32'>

  constructor(tensors: BenchTensors, plan: KvPlan) {
    const { nKvHeads, headDim, dtype, packedTokens, tailTokens } = plan
    this.plan = plan
    this.#tensors = tensors
    this.segments = planSegments(plan)
    const { words, poolBytes, readBytes } = layOut(plan, this.segments)
    this.readBytes = readBytes
    this.table = tensors.i32(words)
    this.pool = tensors.output('u8', [poolBytes])
    const rows = (n: number, seed: number) =>
      tensors.normal(dtype, [n, nKvHeads, headDim], { deviation: 0.25, seed })
    this.k = rows(Math.max(1, packedTokens), 11)
    this.v = rows(Math.max(1, packedTokens), 12)
    this.tailK = rows(tailTokens, 13)
    this.tailV = rows(tailTokens, 14)
    this.#ids = this.segments.map(({ ids, nTokens }) => tensors.i32(ids, [nKvHeads, nTokens]))
    this.#starts = tensors.i32([0])
    this.#cuSeqlens = tensors.i32([0, tailTokens])
  }

  /** Enqueues the compression of one class; `index` from 0. */
  pack(index: number, keyRange?: QuantRange): void {
    const { k, v } = this.#rows(index)
    packSegment({
      ...{ k, v },
      ids: this.#ids[index] as Tensor,
      pool: this.pool,
      table: this.table,
      layer: 0,
      segment: index + 1,
      keyRange,
    })
    for (const rows of [k, v]) rows.dispose()
  }

  /** Enqueues the compression of all classes at once. */
  packAll(pool: Tensor = this.pool): void {
    const classes = this.#ids.map((ids, index) => ({ ids, segment: index + 1 }))
    packSegments({ k: this.k, v: this.v, pool, table: this.table, layer: 0, classes })
  }

  /** The tokens that a segment has its share of, as views. */
  #rows(index: number): { k: Tensor; v: Tensor } {
    const { nKvHeads, headDim } = this.plan
    const { start, span } = this.segments[index] as PlannedSegment
    const rows = (x: Tensor) => x.view([span, nKvHeads, headDim], start * nKvHeads * headDim)
    return { k: rows(this.k), v: rows(this.v) }
  }

  /** Enqueues writing the tail's rows. */
  append(pool: Tensor = this.pool): void {
    const rows = { k: this.tailK, v: this.tailV, cuSeqlens: this.#cuSeqlens }
    appendKv({ ...rows, pool, tables: this.table, starts: this.#starts, layer: 0 })
  }

  /** A function that enqueues attention of one row per query head over a pool like this one's. */
  attention(q: Tensor, out: Tensor, lse: Tensor): (pool: Tensor) => void {
    const paged = { tables: this.table, starts: this.#starts }
    const cuSeqlens = this.#tensors.i32([0, 1])
    const positions = this.#tensors.i32([this.plan.packedTokens + this.plan.tailTokens - 1])
    const scale = 1 / Math.sqrt(this.plan.headDim)
    const rest = { ...paged, cuSeqlens, positions, layer: 0, scale }
    return (pool) => mixedAttention({ q, out, lse, pool, ...rest })
  }

  /** The tail's rows as they are stored, (tail_tokens, n_kv_heads, head_dim) each. */
  unpackedTail(): { k: Tensor; v: Tensor } {
    const { nKvHeads, headDim, tailTokens, packedTokens } = this.plan
    const k = this.#tensors.output('f16', [tailTokens, nKvHeads, headDim])
    const v = this.#tensors.output('f16', [tailTokens, nKvHeads, headDim])
    const place = { layer: 0, segment: 0, base: packedTokens }
    unpackSegment({ pool: this.pool, table: this.table, k, v, ...place })
    return { k, v }
  }

  /** What a class holds, of the first KV head alone, as lib/reference has it. */
  async exported(index: number): Promise<Segment & { vCodes: Uint8Array; kCodes: Uint8Array }> {
    const { nKvHeads, headDim } = this.plan
    const { nTokens } = this.segments[index] as PlannedSegment
    const out = {
      kCodes: this.#tensors.output('u8', [nKvHeads, nTokens, headDim]),
      vCodes: this.#tensors.output('u8', [nKvHeads, nTokens, headDim]),
      kParams: this.#tensors.output('f32', [nKvHeads, 2, headDim]),
      vParams: this.#tensors.output('f32', [nKvHeads, 2, nTokens]),
      vChannel: this.#tensors.output('f32', [nKvHeads, headDim]),
      positions: this.#tensors.output('i32', [nKvHeads, nTokens]),
    }
    exportSegment({ pool: this.pool, table: this.table, ...out, layer: 0, segment: index + 1 })
    const [kCodes, vCodes, kParams, vParams, vChannel, positions] = await Promise.all([
      out.kCodes.read(),
      out.vCodes.read(),
      out.kParams.read(),
      out.vParams.read(),
      out.vChannel.read(),
      out.positions.read(),
    ])
    return {
      nTokens,
      positions: positions.subarray(0, nTokens),
      kCodes: kCodes.subarray(0, nTokens * headDim),
      kScale: kParams.subarray(0, headDim),
      kZero: kParams.subarray(headDim, 2 * headDim),
      vCodes: vCodes.subarray(0, nTokens * headDim),
      vScale: vParams.subarray(0, nTokens),
      vZero: vParams.subarray(nTokens, 2 * nTokens),
      vChannel: vChannel.subarray(0, headDim),
    }
  }
}

/** The rows of x (n, n_kv_heads, head_dim) of the first KV head, as numbers: (n, head_dim). */
export async function firstHead(x: Tensor): Promise<Float64Array> {
  const [n, nHeads, headDim] = x.shape as [number, number, number]
  const stored = await x.read()
  const own = stored.slice(0, n * headDim)
  for (let row = 1; row < n; row++) {
    const at = row * nHeads * headDim
    own.set(stored.subarray(at, at + headDim), row * headDim)
  }
  return widened(x.dtype, own)
}

function planSegments({ classes, packedTokens, nKvHeads, window }: KvPlan): PlannedSegment[] {
  const next = uniforms(7)
  const span = Math.max(1, window ?? packedTokens)
  return Array.from({ length: Math.ceil(packedTokens / span) }, (_, i) => {
    const start = i * span
    return divide(classes, start, Math.min(span, packedTokens - start), nKvHeads, next)
  }).flat()
}

/** The segments of `span` tokens from `start` on. */
function divide(
  classes: KvPlan['classes'],
  start: number,
  span: number,
  nKvHeads: number,
  next: () => number,
): PlannedSegment[] {
  const [first, second] = classes as [KvPlan['classes'][number], KvPlan['classes'][number]?]
  const nFirst = second ? Math.round(span * first.share) : span
  const chosen: number[][] = [[], []]
  for (let head = 0; head < nKvHeads; head++) {
    // Knuth's selection sampling: exactly nFirst of them, ascending.
    let left = nFirst
    for (let row = 0; row < span; row++) {
      const isFirst = next() * (span - row) < left
      if (isFirst) left--
      chosen[isFirst ? 0 : 1]?.push(row)
    }
  }
  return (second ? [first, second] : [first]).map(({ format }, index) => {
    const ids = Int32Array.from(chosen[index] as number[])
    return { format, nTokens: ids.length / nKvHeads, start, span, ids }
  })
}

/** The words of the page table, and what the pool holds. */
function layOut(plan: KvPlan, segments: readonly PlannedSegment[]) {
  const { nKvHeads, headDim, packedTokens, tailTokens } = plan
  const maxSegments = segments.length + 1
  const pagesAt = TABLE_HEADER + nKvHeads * entryWords(maxSegments)
  const entries: number[] = []
  const pages: number[] = []
  let units = 0
  let readUnits = 0
  const allocate = (bytes: number) => {
    const unit = units
    units += Math.ceil(bytes / PAGE_UNIT_BYTES)
    return unit
  }
  for (let head = 0; head < nKvHeads; head++) {
    const before = units
    const words: number[] = new Array(entryWords(maxSegments)).fill(-1)
    words[0] = maxSegments
    const layOutSegment = (
      index: number,
      format: CodeFormat | 'f16',
      nTokens: number,
      start: number,
    ) => {
      const pagesBegin = pagesAt + pages.length
      for (let page = 0; page < pageCount(nTokens); page++) {
        pages.push(allocate(pageBytes(format, format, headDim)))
      }
      const params = format === 'f16' ? -1 : allocate(paramsBytes(headDim))
      const at = ENTRY_HEADER + index * SEGMENT_WORDS
      const place = { pagesBegin, params, bitmap: -1, start, span: 0 }
      const row = segmentWords({ k: format, v: format, nTokens, ...place })
      words.splice(at, SEGMENT_WORDS, ...row)
      return at
    }
    layOutSegment(0, 'f16', tailTokens, packedTokens)
    const at = segments.map(({ format, nTokens, start }, s) =>
      layOutSegment(s + 1, format, nTokens, start),
    )
    readUnits += units - before
    if (plan.classes.length === 2) {
      // A window's bitmap says which tokens are whose.
      for (let s = 0; s < segments.length; s += 2) {
        const { span } = segments[s] as PlannedSegment
        const bitmap = allocate(Math.ceil(span / 8))
        for (const [index, bits] of [
          [s, span],
          [s + 1, -span],
        ] as const) {
          words[(at[index] as number) + SEGMENT.bitmap] = bitmap
          words[(at[index] as number) + SEGMENT.span] = bits
        }
      }
    }
    entries.push(...words)
  }
  const header = { tailTokens, tailStart: packedTokens, nLayers: 1, nKvHeads, maxSegments }
  return {
    words: [...headerWords(header), ...entries, ...pages],
    poolBytes: units * PAGE_UNIT_BYTES,
    readBytes: readUnits * PAGE_UNIT_BYTES,
  }
}
