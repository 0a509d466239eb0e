import type { Tensor } from '../../lib/ops/index.js'
import type { SegmentFormat } from '../../lib/reference/index.js'
import type { DeviceTensors } from './device-tensors.js'

/** The numbers of csrc/ops/kv_table.h. */
export const kvTable = {
  header: 8,
  tailLength: 0,
  tailStart: 1,
  layers: 2,
  kvHeads: 3,
  maxSegments: 4,
  entryHeader: 8,
  segmentWords: 8,
  pageTokens: 16,
  unitBytes: 64,
} as const

/** Words of a segment in a table. */
export const segmentWord = {
  keyFormat: 0,
  valueFormat: 1,
  nTokens: 2,
  pagesBegin: 3,
  paramsUnit: 4,
  bitmapUnit: 5,
  start: 6,
  span: 7,
} as const

const formatNumbers: Record<SegmentFormat, number> = {
  u2: 2,
  u3: 3,
  u4: 4,
  u8: 8,
  f16: 16,
  bf16: 17,
  f32: 32,
}

export const isQuantized = (format: SegmentFormat) => format.startsWith('u')
const bitsOf = (format: SegmentFormat) => (format === 'bf16' ? 16 : formatNumbers[format])

/** What a segment is to hold, the same in every layer and KV head. */
export interface SegmentPlan {
  keyFormat: SegmentFormat
  valueFormat: SegmentFormat
  nTokens: number
  /** position of the first token, or of the bitmap's first bit */
  start: number
  /**
   * Which of `span` positions are this segment's: those `set` in a bitmap that packSegment writes, those `clear` in the
   * bitmap of the last segment planned with `set`, or all of them in a row (without a bitmap).
   */
  bitmap?: 'set' | 'clear'
  span?: number
}

/** The newest tokens, in floats. `capacity`: tokens that the pages hold, by default as many as needed. */
export interface TailPlan {
  format: SegmentFormat
  nTokens: number
  start: number
  capacity?: number
}

export interface CacheShape {
  nKvHeads: number
  headDim: number
  nLayers?: number
  /** default: as many as planned */
  maxSegments?: number
  poolBytes?: number
}

/**
 * A pool of pages and the page tables of some sequences, as csrc/ops/kv_table.h describes them: lib/cache with everything
 * left out that the ops do not see. Pages are handed out with gaps and in no order, and all that is never written reads as
 * NaN.
 */
export class PackedCache {
  readonly pool: Tensor<'u8'>
  readonly #shape: Required<Pick<CacheShape, 'nKvHeads' | 'headDim' | 'nLayers'>> & CacheShape
  // units not handed out yet
  #bottom = 1
  #top: number
  #fromTop = false

  constructor(tensors: DeviceTensors, shape: CacheShape) {
    this.#shape = { nLayers: 1, ...shape }
    const poolBytes = shape.poolBytes ?? 1 << 20
    this.pool = tensors.own(tensors.device.tensor('u8', [poolBytes]))
    this.pool.write(new Uint8Array(poolBytes).fill(0xff))
    this.#top = Math.floor(poolBytes / kvTable.unitBytes)
  }

  /** The table of one sequence: its tail, which is segment 0, and then the planned segments. */
  table(tail: TailPlan, segments: readonly SegmentPlan[]): Int32Array {
    const { nKvHeads, nLayers } = this.#shape
    const maxSegments = this.#shape.maxSegments ?? segments.length + 1
    const entryWords = kvTable.entryHeader + maxSegments * kvTable.segmentWords
    const entries: number[] = []
    const pages: number[] = []
    const pagesAt = kvTable.header + nLayers * nKvHeads * entryWords
    for (let entry = 0; entry < nLayers * nKvHeads; entry++) {
      const words = new Array<number>(entryWords).fill(-1)
      words[0] = segments.length + 1
      let bitmapUnit = -1
      const tailPlan = { keyFormat: tail.format, valueFormat: tail.format, ...tail }
      for (const [index, plan] of [tailPlan, ...segments].entries()) {
        const { keyFormat, valueFormat, nTokens, start, bitmap, span = 0 } = plan as SegmentPlan
        const pageBytes = this.pageBytes(keyFormat, valueFormat)
        const capacity = Math.max(nTokens, index === 0 ? (tail.capacity ?? 0) : 0)
        const pagesBegin = pagesAt + pages.length
        for (let p = 0; p * kvTable.pageTokens < capacity; p++)
          pages.push(this.#allocate(pageBytes))
        if (bitmap === 'set') bitmapUnit = this.#allocate(Math.ceil(span / 8))
        const needsParams = isQuantized(keyFormat) || isQuantized(valueFormat)
        const at = kvTable.entryHeader + index * kvTable.segmentWords
        words[at + segmentWord.keyFormat] = formatNumbers[keyFormat]
        words[at + segmentWord.valueFormat] = formatNumbers[valueFormat]
        words[at + segmentWord.nTokens] = nTokens
        words[at + segmentWord.pagesBegin] = pagesBegin
        words[at + segmentWord.paramsUnit] = needsParams
          ? this.#allocate(6 * this.#shape.headDim)
          : -1
        words[at + segmentWord.bitmapUnit] = bitmap ? bitmapUnit : -1
        words[at + segmentWord.start] = start
        words[at + segmentWord.span] = bitmap === undefined ? 0 : bitmap === 'set' ? span : -span
      }
      entries.push(...words)
    }
    const header = [tail.nTokens, tail.start, nLayers, nKvHeads, maxSegments, -1, -1, -1]
    return Int32Array.of(...header, ...entries, ...pages)
  }

  /** Where word `word` of a segment stands in a table of this cache. */
  wordAt(
    table: Int32Array,
    segment: number,
    word: keyof typeof segmentWord,
    kvHead = 0,
    layer = 0,
  ) {
    const entryWords = kvTable.entryHeader + table[kvTable.maxSegments] * kvTable.segmentWords
    const entry = kvTable.header + (layer * this.#shape.nKvHeads + kvHead) * entryWords
    return entry + kvTable.entryHeader + segment * kvTable.segmentWords + segmentWord[word]
  }

  /** Bytes of a page: 16 tokens of K and V, and V's scale and zero for each when it is quantized. */
  pageBytes(keyFormat: SegmentFormat, valueFormat: SegmentFormat): number {
    const part = (format: SegmentFormat) =>
      ((bitsOf(format) * kvTable.pageTokens) / 8) * this.#shape.headDim
    const params = isQuantized(valueFormat) ? 2 * kvTable.pageTokens * 2 : 0
    const bytes = part(keyFormat) + part(valueFormat) + params
    return Math.ceil(bytes / kvTable.unitBytes) * kvTable.unitBytes
  }

  // From the bottom and from the top in turn, a unit left free beside each.
  #allocate(bytes: number): number {
    const units = Math.ceil(bytes / kvTable.unitBytes) + 1
    if (this.#bottom + units > this.#top) throw new Error('the pool of this test is too small')
    this.#fromTop = !this.#fromTop
    if (this.#fromTop) {
      this.#top -= units
      return this.#top
    }
    const unit = this.#bottom
    this.#bottom += units
    return unit
  }
}

/** Tables of one batch in one tensor, with a gap before each, and where they begin. */
export function stackTables(tables: readonly Int32Array[]): {
  words: Int32Array
  starts: Int32Array
} {
  const gap = 3
  const starts = new Int32Array(tables.length)
  let end = 0
  for (const [index, table] of tables.entries()) {
    starts[index] = end + gap
    end += gap + table.length
  }
  const words = new Int32Array(end).fill(-1)
  for (const [index, table] of tables.entries()) words.set(table, starts[index])
  return { words, starts }
}
