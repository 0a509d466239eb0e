import type { Tensor } from '../ops/index.js'
import { bitmapBytes, FORMATS, type Format, pageBytes, pageCount, paramsBytes } from './format.js'
import type { PagePool } from './page-pool.js'

/** The cached heads of a model. */
export interface KvShape {
  readonly nLayers: number
  readonly nKvHeads: number
  readonly headDim: number
}

/** How the tokens of one compression are stored. */
export interface GroupPlan {
  /** How many of the tail's (and the new) tokens it takes. */
  readonly nTokens: number
  /** How many of them are salient, the same for every layer and KV head. */
  readonly nSalient: number
  readonly high: { k: Format; v: Format }
  readonly low: { k: Format; v: Format }
}

/** Where a staged group is to be packed: segment numbers, null for a class without tokens. */
export interface StagedGroup {
  readonly salient: number | null
  readonly regular: number | null
}

/** Bytes of one sequence's cache by what they hold. */
export interface BytesByClass {
  /** Pages of salient tokens. */
  high: number
  /** Pages of regular tokens. */
  low: number
  /** Pages of tokens that are not compressed. */
  tail: number
  /** Channel scales, zeros and normalisers. */
  params: number
  /** Which tokens are salient. */
  bitmaps: number
  /** Page tables. */
  tables: number
  /** Probe rows of the running window. */
  probes: number
}

type Entries = readonly Int32Array[] // a page list for each (layer, kv head)

interface Segment {
  readonly precision: 'high' | 'low' | 'tail'
  readonly k: Format
  readonly v: Format
  nTokens: number
  readonly start: number
  /** Tokens of the bitmap; negative for the class of its clear bits; 0 without a bitmap. */
  readonly span: number
  pages: Entries
  readonly params: Int32Array | null
  readonly bitmaps: Int32Array | null
  readonly bitmapBytes: number
}

const TABLE_HEADER = 8
const ENTRY_HEADER = 8
const SEGMENT_WORDS = 8

/**
 * The books of one sequence's cache: which pages hold which tokens, for every layer and KV head,
 * and how many bytes that is. The tokens themselves lie in the pool; ops find them through `table`,
 * which this class writes.
 *
 * Newest tokens are in the tail (segment 0). A compression stages a group (pages are found and
 * listed, but not counted yet), the caller packs it layer by layer, and `publish` makes it visible
 * and empties the tail. The order of tokens is not restored, because attention does not need it:
 * RoPE was applied before quantization.
 */
export class KvCache {
  readonly pool: PagePool
  readonly shape: KvShape
  /** (1, words) i32: csrc/ops/kv_table.h. Replaced when it has to grow. */
  table: Tensor<'i32'>
  #segments: Segment[]
  #nVisible = 1
  #capacityWords: number
  #maxSegments = 3
  #tailStart = 0
  #tailTokens = 0

  constructor(pool: PagePool, shape: KvShape, tailFormat: Format) {
    this.pool = pool
    this.shape = shape
    const empty = this.#entries(() => new Int32Array(0))
    this.#segments = [
      {
        precision: 'tail',
        k: tailFormat,
        v: tailFormat,
        nTokens: 0,
        start: 0,
        span: 0,
        pages: empty,
        params: null,
        bitmaps: null,
        bitmapBytes: 0,
      },
    ]
    this.#capacityWords = this.#neededWords(this.#maxSegments)
    this.table = pool.device.tensor('i32', [1, this.#capacityWords])
    this.#upload()
  }

  /** Tokens held. */
  get length(): number {
    return this.#tailStart + this.#tailTokens
  }

  /** Tokens of the tail. */
  get tailLength(): number {
    return this.#tailTokens
  }

  /** Position of the tail's first token: everything before is compressed. */
  get tailStart(): number {
    return this.#tailStart
  }

  /** Packed segments, each with its class, formats and size. */
  get segments(): readonly {
    precision: 'high' | 'low'
    k: Format
    v: Format
    nTokens: number
    start: number
  }[] {
    return this.#segments.slice(1, this.#nVisible).map(({ precision, k, v, nTokens, start }) => ({
      precision: precision as 'high' | 'low',
      k,
      v,
      nTokens,
      start,
    }))
  }

  /**
   * Makes room for so many more tokens at the end of the tail; ops enqueued from now on see them.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  extendTail(nTokens: number): void {
    const grown = this.#growTail(this.#tailTokens + nTokens)
    this.#tailTokens += nTokens
    try {
      if (grown) this.#upload()
      else this.#uploadHeader()
    } catch (error) {
      this.shrinkTail(nTokens)
      throw error
    }
  }

  /** Takes the newest tokens of the tail back, as when the step that wrote them was given up. */
  shrinkTail(nTokens: number): void {
    this.#tailTokens -= nTokens
    const tail = this.#segments[0] as Segment
    const keep = pageCount(this.#tailTokens)
    const bytes = this.#pageBytes(tail)
    for (const pages of tail.pages) {
      for (const page of pages.subarray(keep)) this.pool.free(page, bytes)
    }
    tail.pages = tail.pages.map((pages) => pages.slice(0, keep))
    this.#upload()
  }

  /**
   * Finds pages for a compression of the tail's tokens and of the `nTokens` - tailLength ones that
   * follow.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  stage(plan: GroupPlan): StagedGroup {
    const { nTokens, nSalient, high, low } = plan
    const nRegular = nTokens - nSalient
    const mixed = nSalient > 0 && nRegular > 0
    const staged: Segment[] = []
    const bitmapSize = mixed ? bitmapBytes(nTokens) : 0
    let bitmaps: Int32Array | null = null
    try {
      if (mixed) bitmaps = this.#allocateEach(bitmapSize)
      if (nSalient > 0) {
        staged.push(
          this.#allocateSegment('high', high, nSalient, mixed ? nTokens : 0, bitmaps, bitmapSize),
        )
      }
      if (nRegular > 0) {
        staged.push(
          this.#allocateSegment('low', low, nRegular, mixed ? -nTokens : 0, bitmaps, bitmapSize),
        )
      }
    } catch (error) {
      for (const segment of staged) this.#freeSegment(segment, false)
      if (bitmaps) this.#freeEach(bitmaps, bitmapSize)
      throw error
    }
    const first = this.#segments.length
    this.#segments.push(...staged)
    try {
      this.#upload()
    } catch (error) {
      this.unstage()
      throw error
    }
    return {
      salient: nSalient > 0 ? first : null,
      regular: nRegular > 0 ? first + staged.length - 1 : null,
    }
  }

  /** Makes the staged group visible and empties the tail, whose tokens it holds. */
  publish(nTokens: number): void {
    this.#nVisible = this.#segments.length
    const tail = this.#segments[0] as Segment
    this.#freePages(tail)
    tail.pages = this.#entries(() => new Int32Array(0))
    this.#tailStart += nTokens
    this.#tailTokens = 0
    this.#upload()
  }

  /** Gives staged pages back that were never published. */
  unstage(): void {
    const staged = this.#segments.splice(this.#nVisible)
    for (const segment of staged) this.#freeSegment(segment, segment.span > 0)
    if (staged.length > 0) this.#upload()
  }

  /**
   * What the allocator handed out for this sequence, page holes included; `probes` is the caller's
   * to add.
   */
  bytesByClass(): BytesByClass {
    const nEntries = this.shape.nLayers * this.shape.nKvHeads
    const bytes = {
      high: 0,
      low: 0,
      tail: 0,
      params: 0,
      bitmaps: 0,
      tables: this.table.sizeBytes,
      probes: 0,
    }
    for (const segment of this.#segments) {
      const nPages = segment.pages.reduce((sum, pages) => sum + pages.length, 0)
      bytes[segment.precision] += nPages * this.#pageBytes(segment)
      if (segment.params) bytes.params += nEntries * paramsBytes(this.shape.headDim)
      if (segment.span > 0) bytes.bitmaps += nEntries * segment.bitmapBytes
    }
    return bytes
  }

  dispose(): void {
    this.unstage()
    for (const segment of this.#segments) this.#freeSegment(segment, segment.span > 0)
    this.#segments.length = 0
    this.table.dispose()
  }

  // ---- pages ----

  #entries<T>(make: () => T): T[] {
    return Array.from({ length: this.shape.nLayers * this.shape.nKvHeads }, make)
  }

  #pageBytes(segment: { k: Format; v: Format }): number {
    return pageBytes(segment.k, segment.v, this.shape.headDim)
  }

  /** Adds pages until the tail has room for `nTokens`; whether any were added. */
  #growTail(nTokens: number): boolean {
    const tail = this.#segments[0] as Segment
    const needed = pageCount(nTokens)
    if ((tail.pages[0] as Int32Array).length >= needed) return false
    const bytes = this.#pageBytes(tail)
    const added: number[] = []
    try {
      tail.pages = tail.pages.map((pages) => {
        const grown = new Int32Array(needed)
        grown.set(pages)
        for (let i = pages.length; i < needed; i++) {
          grown[i] = this.pool.allocate(bytes)
          added.push(grown[i] as number)
        }
        return grown
      })
    } catch (error) {
      for (const page of added) this.pool.free(page, bytes)
      throw error
    }
    return true
  }

  #allocateEach(bytes: number): Int32Array {
    const addresses: number[] = []
    try {
      for (let i = 0; i < this.shape.nLayers * this.shape.nKvHeads; i++) {
        addresses.push(this.pool.allocate(bytes))
      }
    } catch (error) {
      for (const address of addresses) this.pool.free(address, bytes)
      throw error
    }
    return Int32Array.from(addresses)
  }

  #freeEach(addresses: Int32Array, bytes: number): void {
    for (const address of addresses) this.pool.free(address, bytes)
  }

  #allocateSegment(
    precision: 'high' | 'low',
    format: { k: Format; v: Format },
    nTokens: number,
    span: number,
    bitmaps: Int32Array | null,
    bitmapSize: number,
  ): Segment {
    const bytes = this.#pageBytes(format)
    const pages: Int32Array[] = []
    try {
      const params = this.#allocateEach(paramsBytes(this.shape.headDim))
      pages.push(params)
      for (let i = 0; i < this.shape.nLayers * this.shape.nKvHeads; i++) {
        const list = new Int32Array(pageCount(nTokens)).fill(-1)
        pages.push(list)
        for (let p = 0; p < list.length; p++) list[p] = this.pool.allocate(bytes)
      }
      return {
        precision,
        ...format,
        nTokens,
        start: this.#tailStart,
        span,
        pages: pages.slice(1),
        params,
        bitmaps,
        bitmapBytes: bitmapSize,
      }
    } catch (error) {
      const [params, ...lists] = pages
      if (params) this.#freeEach(params, paramsBytes(this.shape.headDim))
      for (const list of lists) {
        for (const page of list) if (page >= 0) this.pool.free(page, bytes)
      }
      throw error
    }
  }

  #freePages(segment: Segment): void {
    const bytes = this.#pageBytes(segment)
    for (const pages of segment.pages) this.#freeEach(pages, bytes)
  }

  #freeSegment(segment: Segment, withBitmaps: boolean): void {
    this.#freePages(segment)
    if (segment.params) this.#freeEach(segment.params, paramsBytes(this.shape.headDim))
    if (withBitmaps && segment.bitmaps) this.#freeEach(segment.bitmaps, segment.bitmapBytes)
  }

  // ---- the table ----

  #neededWords(maxSegments: number): number {
    const entryWords = ENTRY_HEADER + maxSegments * SEGMENT_WORDS
    let words = TABLE_HEADER + this.shape.nLayers * this.shape.nKvHeads * entryWords
    for (const segment of this.#segments) {
      for (const pages of segment.pages) words += pages.length
    }
    return words
  }

  /** Header words that change from step to step. */
  #header(): Int32Array {
    return Int32Array.of(this.#tailTokens, this.#tailStart)
  }

  #uploadHeader(): void {
    this.table.write(this.#header())
  }

  /**
   * Throws `ERR_ZC_OUT_OF_MEMORY` when the table has to grow and cannot; the old one stays as it is
   * then.
   */
  #upload(): void {
    let maxSegments = this.#maxSegments
    while (this.#segments.length > maxSegments) maxSegments = Math.ceil(maxSegments * 1.5)
    const needed = this.#neededWords(maxSegments)
    if (needed > this.#capacityWords) {
      // A quarter to spare: a table that grows with every page is not copied to a new place each
      // time.
      const capacityWords = Math.ceil(needed * 1.25)
      const table = this.pool.device.tensor('i32', [1, capacityWords])
      this.table.dispose()
      this.table = table
      this.#capacityWords = capacityWords
    }
    this.#maxSegments = maxSegments
    this.table.write(this.#serialise(needed))
  }

  #serialise(nWords: number): Int32Array {
    const { nLayers, nKvHeads } = this.shape
    const words = new Int32Array(nWords)
    words.set(this.#header())
    words.set([nLayers, nKvHeads, this.#maxSegments], 2)
    const entryWords = ENTRY_HEADER + this.#maxSegments * SEGMENT_WORDS
    let nextPage = TABLE_HEADER + nLayers * nKvHeads * entryWords
    for (let entry = 0; entry < nLayers * nKvHeads; entry++) {
      const at = TABLE_HEADER + entry * entryWords
      words[at] = this.#nVisible
      this.#segments.forEach((segment, index) => {
        const pages = segment.pages[entry] as Int32Array
        words.set(
          [
            FORMATS[segment.k],
            FORMATS[segment.v],
            segment.nTokens,
            nextPage,
            segment.params?.[entry] ?? -1,
            segment.bitmaps?.[entry] ?? -1,
            segment.start,
            segment.span,
          ],
          at + ENTRY_HEADER + index * SEGMENT_WORDS,
        )
        words.set(pages, nextPage)
        nextPage += pages.length
      })
    }
    return words
  }
}

/**
 * Bytes of a 16-bit cache: 2 (K and V) x tokens x n_kv_heads x head_dim x 2 bytes x n_layers. What
 * compression ratios are measured against.
 */
export function fp16CacheBytes(shape: KvShape, nTokens: number): number {
  return 2 * nTokens * shape.nKvHeads * shape.headDim * 2 * shape.nLayers
}
