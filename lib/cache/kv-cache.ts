import { copyPages, type Tensor } from '../ops/index.js'
import { type BytesByClass, noBytes } from './bytes-by-class.js'
import type { CacheDemand } from './cache-demand.js'
import type { CacheMemory } from './cache-memory.js'
import {
  bitmapBytes,
  FORMATS,
  type Format,
  type GroupPlan,
  type KvShape,
  PAGE_TOKENS,
  pageBytes,
  pageCount,
  paramsBytes,
} from './format.js'
import { TableArena } from './table-arena.js'

/** Where a staged group is to be packed: segment numbers, null for a class without tokens. */
export interface StagedGroup {
  readonly salient: number | null
  readonly regular: number | null
}

/** Tokens of one precision class that were compressed together. */
export interface CacheSegment {
  /** Salient tokens, or the others. */
  precision: 'high' | 'low'
  /** How K is stored. */
  k: Format
  /** How V is stored. */
  v: Format
  /** Tokens of each KV head; the mean, where they differ. */
  nTokens: number
  /** Tokens of each (layer, KV head), where they differ. */
  counts: Int32Array | undefined
  /** Position of the first token that was compressed with them, whichever its class. */
  start: number
}

interface Segment {
  readonly precision: 'high' | 'low' | 'tail'
  readonly k: Format
  readonly v: Format
  /** The mean over all entries, where they differ. */
  nTokens: number
  /** Tokens of each entry, where they differ: then `roomPages` words are kept for each page list. */
  readonly counts: Int32Array | null
  readonly roomPages: number
  readonly start: number
  /** Tokens of the bitmap; negative for the class of its clear bits; 0 without a bitmap. */
  readonly span: number
  /** (n_layers x n_kv_heads, stride): the pages of each entry first, then room for more. */
  pages: Int32Array
  stride: number
  /** Pages of each entry, where they do not differ. */
  nPages: number
  readonly params: Int32Array | null
  readonly bitmaps: Int32Array | null
  readonly bitmapBytes: number
}

const TABLE_HEADER = 8
// Words of the header.
const LAYERS = 2
const KV_HEADS = 3
const ENTRY_HEADER = 8
const SEGMENT_WORDS = 8
/** Words of a segment that each KV head has its own of. */
const TOKENS = 2
const PAGE_LIST = 3
const PARAMS = 4
const BITMAP = 5
/** The tail, and the two classes of one compression. */
const MIN_SEGMENTS = 3
/** Pages that a growing tail gets room for in the table at least: a window of 100 tokens fits. */
const TAIL_ROOM = 8

/**
 * The books of one sequence's cache: which pages hold which tokens, for every layer and KV head,
 * and how many bytes that is. The tokens themselves lie in the pool; ops find them through the page
 * table at `start`, which this class writes.
 *
 * Newest tokens are in the tail (segment 0). A compression stages a group (pages are found and
 * listed, but not counted yet), the caller packs it layer by layer, and `publish` makes it visible
 * and empties the tail. The order of tokens is not restored, because attention does not need it:
 * RoPE was applied before quantization.
 *
 * Forks share pages. Packed ones are never written again; a page of the tail is copied by whoever
 * writes to it first.
 */
export class KvCache {
  readonly memory: CacheMemory
  readonly shape: KvShape
  #segments: Segment[]
  #nVisible = 1
  #start: number
  #capacityWords: number
  #maxSegments: number
  /** What the table that was written does not have as the books do. */
  #stale: Stale = { ...ALL_STALE }
  /** Header and entries of the table: to make them anew costs as much as a step when there are many. */
  #written = new Int32Array(0)
  /** Pages of the tail that the table has room for. */
  #tailRoom = 0
  #tailStart = 0
  #tailTokens = 0

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page table. */
  constructor(memory: CacheMemory, tailFormat: Format) {
    this.memory = memory
    this.shape = memory.shape
    this.#segments = [
      {
        precision: 'tail',
        k: tailFormat,
        v: tailFormat,
        nTokens: 0,
        counts: null,
        roomPages: 0,
        start: 0,
        span: 0,
        pages: new Int32Array(0),
        stride: 0,
        nPages: 0,
        params: null,
        bitmaps: null,
        bitmapBytes: 0,
      },
    ]
    this.#maxSegments = MIN_SEGMENTS
    this.#capacityWords = TableArena.capacityOf(this.#neededWords(this.#maxSegments))
    this.#start = memory.tables.allocate(this.#capacityWords)
  }

  /**
   * The word of `memory.tables` where the page table begins, for ops enqueued before the books
   * change again; it moves when the table grows.
   */
  get start(): number {
    this.#write()
    return this.#start
  }

  /**
   * The page table alone, for ops on one sequence that are enqueued before the books change again:
   * (words) i32. The caller disposes of it.
   */
  tableView(): Tensor<'i32'> {
    return this.memory.tables.memory.view([this.#capacityWords], this.start)
  }

  /** Format of tokens that are not compressed. */
  get tailFormat(): Format {
    return (this.#segments[0] as Segment).k
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

  /** Whether the next token goes to a page of the tail that others hold, too, so that it is copied. */
  get sharesTail(): boolean {
    return this.#isShared(Math.floor(this.#tailTokens / PAGE_TOKENS))
  }

  /** How many pages of each (layer, KV head)'s tail others hold, too. */
  get nSharedTailPages(): number {
    let n = 0
    while (this.#isShared(n)) n++ // whoever goes on by himself has pages of his own from there on
    return n
  }

  /** Whether others hold such a page of the tail, too: of all entries or of none. */
  #isShared(page: number): boolean {
    const tail = this.#segments[0] as Segment
    if (page >= tail.nPages) return false
    return this.memory.pool.isShared(tail.pages[page] as number, this.#pageBytes(tail))
  }

  /** Packed segments, the oldest first. */
  get segments(): readonly CacheSegment[] {
    return this.#segments
      .slice(1, this.#nVisible)
      .map(({ precision, k, v, nTokens, counts, start }) => ({
        precision: precision as 'high' | 'low',
        k,
        v,
        nTokens,
        counts: counts ?? undefined,
        start,
      }))
  }

  /**
   * Makes room for so many more tokens at the end of the tail. The table's tail length is set by the
   * step that writes them (`setTailLengths`).
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  extendTail(nTokens: number): void {
    const tokensBefore = this.#tailTokens
    const { stride } = this.#segments[0] as Segment
    const owned = this.#ownTail()
    try {
      const grown = this.#growTail(this.#tailTokens + nTokens)
      this.#tailTokens += nTokens
      if (grown || owned) this.#amend({ tail: true })
    } catch (error) {
      this.#trimTail(Math.min(this.#tailTokens, tokensBefore))
      this.#setTailRoom(stride)
      throw error
    }
  }

  /** Takes the newest tokens of the tail back, as when the step that wrote them was given up. */
  shrinkTail(nTokens: number): void {
    this.#trimTail(this.#tailTokens - nTokens)
  }

  #trimTail(nTokens: number): void {
    this.#tailTokens = nTokens
    const tail = this.#segments[0] as Segment
    const keep = pageCount(this.#tailTokens)
    for (let entry = 0; entry < this.#nEntries; entry++) {
      this.#freeEach(pagesOf(tail, entry).subarray(keep), this.#pageBytes(tail))
    }
    tail.nPages = Math.min(tail.nPages, keep)
    this.#mark({ tail: true })
  }

  /**
   * A cache of the same content, sharing its pages. Not while a group is staged.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page table.
   */
  fork(): KvCache {
    const copy = new KvCache(this.memory, this.tailFormat)
    for (const segment of this.#segments) {
      const retain = (addresses: Int32Array | null, bytes: number) => {
        for (const address of addresses ?? []) this.memory.pool.retain(address, bytes)
      }
      for (let entry = 0; entry < this.#nEntries; entry++) {
        retain(pagesOf(segment, entry), this.#pageBytes(segment))
      }
      retain(segment.params, paramsBytes(this.shape.headDim))
      if (segment.span > 0) retain(segment.bitmaps, segment.bitmapBytes)
    }
    copy.#segments = this.#segments.map((segment) => ({ ...segment }))
    const tail = copy.#segments[0] as Segment
    tail.pages = tail.pages.slice() // the only ones that change
    copy.#nVisible = this.#nVisible
    copy.#tailStart = this.#tailStart
    copy.#tailTokens = this.#tailTokens
    try {
      copy.#amend(ALL_STALE)
    } catch (error) {
      copy.dispose()
      throw error
    }
    return copy
  }

  /**
   * Finds pages for a compression of the tail's tokens and of the `nTokens` - tailLength ones that
   * follow.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  stage({ nTokens, nSalient, high, low }: GroupPlan): StagedGroup {
    const nRegular = nTokens - nSalient
    const span = nSalient > 0 && nRegular > 0 ? nTokens : 0
    const first = this.#stageEach(span, (bitmaps) => [
      nSalient > 0 && (() => this.#allocateSegment('high', high, nSalient, span, bitmaps)),
      nRegular > 0 && (() => this.#allocateSegment('low', low, nRegular, -span, bitmaps)),
    ])
    return {
      salient: nSalient > 0 ? first : null,
      regular: nRegular > 0 ? this.#segments.length - 1 : null,
    }
  }

  /**
   * Begins a group whose KV heads differ in how many tokens are salient; `stageCounts` finds the
   * pages, layer by layer. The table has room for them from now on, and does not move.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  stageUneven({ nTokens, high, low }: Omit<GroupPlan, 'nSalient'>): StagedGroup {
    const stride = pageCount(nTokens)
    const uneven = (empty: Segment, roomPages: number): Segment => ({
      ...empty,
      counts: new Int32Array(this.#nEntries),
      roomPages,
      pages: new Int32Array(this.#nEntries * stride),
      stride,
    })
    const first = this.#stageEach(nTokens, (bitmaps) => [
      // Both classes together: the pages of all tokens, and one more for the other broken page.
      () => uneven(this.#allocateSegment('high', high, 0, nTokens, bitmaps), stride + 1),
      () => uneven(this.#allocateSegment('low', low, 0, -nTokens, bitmaps), 0),
    ])
    return { salient: first, regular: first + 1 }
  }

  /**
   * Appends the segments of a group, found one by one, with the bitmaps of `span` tokens, 0 for none;
   * the number of the first.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  #stageEach(
    span: number,
    segmentsOf: (bitmaps: Int32Array | null) => readonly (false | (() => Segment))[],
  ): number {
    const first = this.#segments.length
    const bitmaps = span > 0 ? this.#allocateEach(bitmapBytes(span)) : null
    try {
      for (const find of segmentsOf(bitmaps)) if (find) this.#segments.push(find())
      this.#amend({ entries: true, groupsFrom: first })
    } catch (error) {
      // The first segment holds the bitmaps, once it is there.
      if (bitmaps && this.#segments.length === first) this.#freeEach(bitmaps, bitmapBytes(span))
      this.unstage()
      throw error
    }
    return first
  }

  /**
   * Finds the pages of one layer of a group that `stageUneven` began.
   *
   * - `counts` (n_kv_heads): salient tokens
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`; the group can be unstaged then.
   */
  stageCounts(layer: number, counts: Int32Array): void {
    const { nKvHeads } = this.shape
    for (const segment of this.#segments.slice(this.#nVisible)) {
      const own = segment.counts as Int32Array
      const bytes = this.#pageBytes(segment)
      for (const [head, nSalient] of counts.entries()) {
        const entry = layer * nKvHeads + head
        const n = segment.span > 0 ? nSalient : -segment.span - nSalient
        const pages = this.memory.pool.allocateMany(pageCount(n), bytes)
        segment.pages.set(pages, entry * segment.stride)
        own[entry] = n
      }
      segment.nTokens = own.reduce((sum, n) => sum + n, 0) / this.#nEntries
    }
    this.#amend({ entries: true, groupsFrom: this.#nVisible })
  }

  /** Whether some group's KV heads may differ in how many tokens are salient. */
  get isUneven(): boolean {
    return this.#segments.some(({ counts }) => counts !== null)
  }

  /** Whether a group is staged that was not published yet. */
  get isStaged(): boolean {
    return this.#segments.length > this.#nVisible
  }

  /** Bytes of the page table with so many more segments, and pages of each entry. */
  tableBytesWith(nSegments: number, nPages: number): number {
    const maxSegments = segmentRoom(this.#segments.length + nSegments, this.#maxSegments)
    const words = neededWords(this.shape, maxSegments, this.#nPages() + nPages)
    return 4 * Math.max(this.#capacityWords, TableArena.capacityOf(words))
  }

  /**
   * The page table of the same segments and pages in which every KV head is a layer of its own, for
   * ops that take as many tokens of each head of a layer: (words) i32.
   */
  headTable(): Int32Array {
    const words = new Int32Array(this.#neededWords(this.#maxSegments))
    this.#fillHeader(words)
    this.#fillCounts(words)
    this.#fillRows(words, 0, this.#segments.length)
    this.#fillLists(words.subarray(this.#listsStart), 0, this.#segments.length)
    const { nLayers, nKvHeads } = this.shape
    words[LAYERS] = nLayers * nKvHeads
    words[KV_HEADS] = 1
    return words
  }

  /** Makes the staged group visible and empties the tail, whose tokens it holds. */
  publish(nTokens: number): void {
    this.#nVisible = this.#segments.length
    const tail = this.#segments[0] as Segment
    this.#freePages(tail)
    tail.nPages = 0
    this.#tailStart += nTokens
    this.#tailTokens = 0
    this.#mark({ entries: true })
  }

  /** Gives staged pages back that were never published. */
  unstage(): void {
    const staged = this.#segments.splice(this.#nVisible)
    for (const segment of staged) this.#freeSegment(segment, segment.span > 0)
  }

  /**
   * What the allocator handed out for this sequence, page holes included; `probes` is the caller's
   * to add.
   */
  bytesByClass(): BytesByClass {
    const bytes = { ...noBytes(), tables: this.#capacityWords * 4 }
    for (const [name, pageSize, count] of this.#held()) bytes[name] += pageSize * count
    return bytes
  }

  /** Adds what this sequence holds, as if nobody shared it. */
  addHeldTo(demand: CacheDemand): void {
    for (const [, pageSize, count] of this.#held()) demand.addPages(pageSize, count)
    demand.otherBytes += this.#capacityWords * 4
  }

  /** Pages, parameters and bitmaps of all segments: what they hold, their bytes, how many there are. */
  *#held(): Generator<[name: keyof BytesByClass, bytes: number, count: number]> {
    const nEntries = this.#nEntries
    for (const segment of this.#segments) {
      const { counts } = segment
      const nPages = counts
        ? counts.reduce((sum, n) => sum + pageCount(n), 0)
        : nEntries * segment.nPages
      yield [segment.precision, this.#pageBytes(segment), nPages]
      if (segment.params) yield ['params', paramsBytes(this.shape.headDim), nEntries]
      if (segment.span > 0) yield ['bitmaps', segment.bitmapBytes, nEntries]
    }
  }

  dispose(): void {
    this.unstage()
    for (const segment of this.#segments) this.#freeSegment(segment, segment.span > 0)
    this.#segments.length = 0
    this.memory.tables.free(this.#start, this.#capacityWords)
  }

  // ---- pages ----

  get #nEntries(): number {
    return this.shape.nLayers * this.shape.nKvHeads
  }

  #pageBytes(segment: { k: Format; v: Format }): number {
    return pageBytes(segment.k, segment.v, this.shape.headDim)
  }

  /** Copies the page that the next token goes to, if another cache holds it too; whether it did. */
  #ownTail(): boolean {
    if (!this.sharesTail) return false
    const tail = this.#segments[0] as Segment
    const { pool, device } = this.memory
    const bytes = this.#pageBytes(tail)
    const last = Math.floor(this.#tailTokens / PAGE_TOKENS)
    const from = new Int32Array(this.#nEntries).map(
      (_, entry) => tail.pages[entry * tail.stride + last] as number,
    )
    const to = this.#allocateEach(bytes)
    const tensors: Tensor[] = []
    try {
      for (const pages of [from, to]) tensors.push(device.from(pages, [pages.length], 'i32'))
      const [fromTensor, toTensor] = tensors as [Tensor, Tensor]
      copyPages({ pool: pool.memory, from: fromTensor, to: toTensor, pageBytes: bytes })
    } catch (error) {
      this.#freeEach(to, bytes)
      throw error
    } finally {
      for (const tensor of tensors) tensor.dispose()
    }
    this.#freeEach(from, bytes)
    to.forEach((page, entry) => {
      tail.pages[entry * tail.stride + last] = page
    })
    return true
  }

  /** Adds pages until the tail has room for `nTokens`; whether any were added. */
  #growTail(nTokens: number): boolean {
    const tail = this.#segments[0] as Segment
    const needed = pageCount(nTokens)
    const before = tail.nPages
    if (before >= needed) return false
    const nNew = needed - before
    const added = this.memory.pool.allocateMany(this.#nEntries * nNew, this.#pageBytes(tail))
    const { stride: room } = tail
    if (needed > room) {
      const more = Math.max(needed, room + TAIL_ROOM, Math.ceil(room * 1.5))
      this.#setTailRoom(room === 0 ? needed : more)
    }
    for (let entry = 0; entry < this.#nEntries; entry++) {
      const own = added.subarray(entry * nNew, (entry + 1) * nNew)
      tail.pages.set(own, entry * tail.stride + before)
    }
    tail.nPages = needed
    return true
  }

  /** Lays the tail's page lists out for so many pages of each entry. */
  #setTailRoom(stride: number): void {
    const tail = this.#segments[0] as Segment
    if (stride === tail.stride) return
    const pages = new Int32Array(this.#nEntries * stride)
    for (let entry = 0; entry < this.#nEntries; entry++) {
      pages.set(pagesOf(tail, entry), entry * stride)
    }
    tail.pages = pages
    tail.stride = stride
  }

  #allocateEach(bytes: number): Int32Array {
    return this.memory.pool.allocateMany(this.#nEntries, bytes)
  }

  #freeEach(addresses: Int32Array, bytes: number): void {
    this.memory.pool.freeMany(addresses, bytes)
  }

  #allocateSegment(
    precision: 'high' | 'low',
    format: { k: Format; v: Format },
    nTokens: number,
    span: number,
    bitmaps: Int32Array | null,
  ): Segment {
    const nPages = pageCount(nTokens)
    const params = this.#allocateEach(paramsBytes(this.shape.headDim))
    let pages: Int32Array
    try {
      pages = this.memory.pool.allocateMany(this.#nEntries * nPages, this.#pageBytes(format))
    } catch (error) {
      this.#freeEach(params, paramsBytes(this.shape.headDim))
      throw error
    }
    return {
      precision,
      ...format,
      nTokens,
      counts: null,
      roomPages: 0,
      start: this.#tailStart,
      span,
      pages,
      stride: nPages,
      nPages,
      params,
      bitmaps,
      bitmapBytes: bitmaps ? bitmapBytes(Math.abs(span)) : 0,
    }
  }

  #freePages(segment: Segment): void {
    const bytes = this.#pageBytes(segment)
    for (let entry = 0; entry < this.#nEntries; entry++) {
      this.#freeEach(pagesOf(segment, entry), bytes)
    }
  }

  #freeSegment(segment: Segment, withBitmaps: boolean): void {
    this.#freePages(segment)
    if (segment.params) this.#freeEach(segment.params, paramsBytes(this.shape.headDim))
    if (withBitmaps && segment.bitmaps) this.#freeEach(segment.bitmaps, segment.bitmapBytes)
  }

  // ---- the table ----

  /** Words of page lists that every entry has room for, of segments [from, to). */
  #nPages(from = 0, to = this.#segments.length): number {
    return this.#segments.slice(from, to).reduce((sum, segment) => sum + listRoom(segment), 0)
  }

  #neededWords(maxSegments: number): number {
    return neededWords(this.shape, maxSegments, this.#nPages())
  }

  /** The word of the table where the page lists begin, those of one segment after the other's. */
  get #listsStart(): number {
    return neededWords(this.shape, this.#maxSegments, 0)
  }

  /**
   * The books changed: the table has room for them from now on, and what is stale is written before
   * an op may read it.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when the table has to grow and cannot; the old one stays as it is
   * then.
   */
  #amend(stale: Partial<Stale>): void {
    const maxSegments = segmentRoom(this.#segments.length, this.#maxSegments)
    const needed = this.#neededWords(maxSegments)
    const { tables } = this.memory
    const tailRoom = listRoom(this.#segments[0] as Segment)
    if (needed > this.#capacityWords) {
      const start = tables.allocate(needed)
      tables.free(this.#start, this.#capacityWords)
      this.#start = start
      this.#capacityWords = TableArena.capacityOf(needed)
      this.#stale = { ...ALL_STALE }
    }
    // The lists behind move.
    if (maxSegments !== this.#maxSegments || tailRoom !== this.#tailRoom) {
      this.#stale = { ...ALL_STALE }
    }
    this.#maxSegments = maxSegments
    this.#tailRoom = tailRoom
    this.#mark(stale)
  }

  #mark({ entries = false, tail = false, groupsFrom = Number.POSITIVE_INFINITY }: Partial<Stale>) {
    const before = this.#stale
    this.#stale = {
      header: true,
      entries: before.entries || entries,
      tail: before.tail || tail,
      groupsFrom: Math.min(before.groupsFrom, groupsFrom),
    }
  }

  /** Writes what is stale: at 128k tokens a table has megabytes, of which a window changes little. */
  #write(): void {
    const { header, entries, tail, groupsFrom } = this.#stale
    if (!header) return
    const { tables } = this.memory
    const words = this.#entryWords()
    this.#fillHeader(words)
    if (entries) this.#fillCounts(words)
    if (tail) this.#fillRows(words, 0, 1)
    this.#fillRows(words, groupsFrom, this.#segments.length)
    tables.memory.write(entries ? words : words.subarray(0, TABLE_HEADER), this.#start)
    if (tail) this.#writeLists(0, 1)
    this.#writeLists(groupsFrom, this.#segments.length)
    this.#stale = { ...NOTHING_STALE }
  }

  /** Header and entries as they were written, to be amended. */
  #entryWords(): Int32Array {
    if (this.#written.length !== this.#listsStart) this.#written = new Int32Array(this.#listsStart)
    return this.#written
  }

  /** The page lists of segments [from, to). */
  #writeLists(from: number, to: number): void {
    const nWords = this.#nEntries * this.#nPages(from, to)
    if (nWords === 0) return
    const { tables } = this.memory
    const words = tables.blank(nWords)
    this.#fillLists(words, from, to)
    const at = this.#listsStart + this.#nEntries * this.#nPages(0, from)
    tables.memory.write(words, this.#start + at)
  }

  /** - `words` i32: in and out, as of the methods below */
  #fillHeader(words: Int32Array): void {
    const { nLayers, nKvHeads } = this.shape
    words.set([this.#tailTokens, this.#tailStart, nLayers, nKvHeads, this.#maxSegments])
  }

  /** How many segments ops see. */
  #fillCounts(words: Int32Array): void {
    const entryWords = ENTRY_HEADER + this.#maxSegments * SEGMENT_WORDS
    for (let entry = 0; entry < this.#nEntries; entry++) {
      words[TABLE_HEADER + entry * entryWords] = this.#nVisible
    }
  }

  /** Segments [from, to) of all entries. */
  #fillRows(words: Int32Array, from: number, to: number): void {
    const nEntries = this.#nEntries
    const entryWords = ENTRY_HEADER + this.#maxSegments * SEGMENT_WORDS
    let lists = this.#listsStart + nEntries * this.#nPages(0, from)
    for (let index = from; index < to; index++) {
      const segment = this.#segments[index] as Segment
      const { k, v, nTokens, start, span, counts, params, bitmaps } = segment
      const row = [FORMATS[k], FORMATS[v], nTokens, 0, -1, -1, start, span]
      for (let entry = 0; entry < nEntries; entry++) {
        if (counts) row[TOKENS] = counts[entry] as number
        row[PAGE_LIST] = lists + this.#listAt(index, entry)
        if (params) row[PARAMS] = params[entry] as number
        if (bitmaps) row[BITMAP] = bitmaps[entry] as number
        const at = TABLE_HEADER + entry * entryWords + ENTRY_HEADER + index * SEGMENT_WORDS
        words.set(row, at)
      }
      lists += nEntries * listRoom(segment)
    }
  }

  /** - `words` (n_entries x nPages(from, to)) i32 */
  #fillLists(words: Int32Array, from: number, to: number): void {
    const nEntries = this.#nEntries
    let lists = 0
    for (let index = from; index < to; index++) {
      const segment = this.#segments[index] as Segment
      if (segment.counts) {
        for (let entry = 0; entry < nEntries; entry++) {
          words.set(pagesOf(segment, entry), lists + this.#listAt(index, entry))
        }
      } else words.set(segment.pages, lists)
      lists += nEntries * listRoom(segment)
    }
  }

  /**
   * Where a segment's list of an entry begins, from its segment's lists on. Both classes of an uneven
   * group share the room of the first, the second from its end, which lies before its own lists.
   */
  #listAt(index: number, entry: number): number {
    const segment = this.#segments[index] as Segment
    if (!segment.counts || segment.roomPages > 0) return entry * listRoom(segment)
    const { roomPages } = this.#segments[index - 1] as Segment
    const nPages = pageCount(segment.counts[entry] as number)
    return (entry + 1 - this.#nEntries) * roomPages - nPages
  }
}

/** Parts of a table that were not written as the books are now; the header is one of them always. */
interface Stale {
  readonly header: boolean
  /** What entries say of their segments. */
  readonly entries: boolean
  /** The tail's page lists. */
  readonly tail: boolean
  /** The first of the segments behind the tail that are stale, with their page lists. */
  readonly groupsFrom: number
}

const ALL_STALE: Stale = { header: true, entries: true, tail: true, groupsFrom: 1 }
const NOTHING_STALE: Stale = {
  ...{ header: false, entries: false, tail: false },
  groupsFrom: Number.POSITIVE_INFINITY,
}

/** Words that a table has for a segment's page list of each entry. */
function listRoom({ counts, roomPages, stride }: Segment): number {
  return counts ? roomPages : stride
}

/** The pages of one (layer, KV head). */
function pagesOf({ pages, stride, counts, nPages }: Segment, entry: number): Int32Array {
  const n = counts ? pageCount(counts[entry] as number) : nPages
  return pages.subarray(entry * stride, entry * stride + n)
}

/** Segments that a table has room for once it needs `nSegments`: by half more at a time. */
function segmentRoom(nSegments: number, room = MIN_SEGMENTS): number {
  let grown = room
  while (nSegments > grown) grown = Math.ceil(grown * 1.5)
  return grown
}

function neededWords({ nLayers, nKvHeads }: KvShape, maxSegments: number, nPages: number): number {
  const entryWords = ENTRY_HEADER + maxSegments * SEGMENT_WORDS
  return TABLE_HEADER + nLayers * nKvHeads * (entryWords + nPages)
}

/** Words of a page table: `nSegments` with the tail, `nPages` of all segments of one KV head. */
export function tableWords(shape: KvShape, nSegments: number, nPages: number): number {
  return neededWords(shape, segmentRoom(nSegments), nPages)
}
