import type { Tensor } from '../ops/index.js'
import { type BytesByClass, noBytes } from './bytes-by-class.js'
import type { CacheDemand } from './cache-demand.js'
import type { CacheMemory } from './cache-memory.js'
import {
  bitmapBytes,
  type Format,
  type GroupPlan,
  hiddenPages,
  type KvShape,
  PAGE_TOKENS,
  pageBytes,
  pageCount,
  paramsBytes,
} from './format.js'
import { ALL_STALE, type Books, PageTable, pagesOf, type Segment } from './page-table.js'

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

/** Pages that a growing tail gets room for in the table at least: a window of 100 tokens fits. */
const TAIL_ROOM = 8

/**
 * The books of one sequence's cache in layers whose heads have one shape: which pages hold which
 * tokens, for every layer and KV head, and how many bytes that is. The tokens themselves lie in the
 * pool; ops find them through the page table at `start`, which `PageTable` writes.
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
  readonly #shapeIndex: number
  readonly #books: Books
  readonly #table: PageTable
  /** An entry of the layer that gives pages back last: that has no window, or the longest. */
  readonly #longestEntry: number

  /**
   * An empty one, of heads of `memory.shapes[shape]`.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page table.
   */
  constructor(memory: CacheMemory, shape: number, tailFormat: Format) {
    this.memory = memory
    this.#shapeIndex = shape
    this.shape = memory.shapes[shape] as KvShape
    const { slidingWindow, nKvHeads } = this.shape
    const reach = slidingWindow.map((window) => window || Number.POSITIVE_INFINITY)
    this.#longestEntry = nKvHeads * reach.indexOf(Math.max(...reach))
    const tail: Segment = {
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
      dropped: null,
      standIn: -1,
      params: null,
      bitmaps: null,
      bitmapBytes: 0,
    }
    this.#books = { segments: [tail], nVisible: 1, tailStart: 0, tailTokens: 0 }
    this.#table = new PageTable(memory.tables, this.shape, this.#books)
  }

  /**
   * The word of `memory.tables` where the page table begins, for ops enqueued before the books
   * change again; it moves when the table grows.
   */
  get start(): number {
    return this.#table.start
  }

  /**
   * The page table alone, for ops on one sequence that are enqueued before the books change again:
   * (words) i32. The caller disposes of it.
   */
  tableView(): Tensor<'i32'> {
    return this.#table.view()
  }

  /** Format of tokens that are not compressed. */
  get tailFormat(): Format {
    return this.#tail.k
  }

  /** Tokens held. */
  get length(): number {
    return this.#books.tailStart + this.#books.tailTokens
  }

  /** Tokens of the tail. */
  get tailLength(): number {
    return this.#books.tailTokens
  }

  /** Position of the tail's first token: everything before is compressed. */
  get tailStart(): number {
    return this.#books.tailStart
  }

  /** Whether the next token goes to a page of the tail that others hold, too, so that it is copied. */
  get sharesTail(): boolean {
    return this.#isShared(Math.floor(this.#books.tailTokens / PAGE_TOKENS))
  }

  /** How many pages of each (layer, KV head)'s tail others hold, too. */
  get nSharedTailPages(): number {
    let n = 0
    while (this.#isShared(n)) n++ // a fork that has gone on has pages of its own from there on
    return n
  }

  /** Whether others hold such a page of the tail, too: of all entries that have not given it back. */
  #isShared(page: number): boolean {
    const tail = this.#tail
    if (page >= tail.nPages) return false
    const address = tail.pages[this.#longestEntry * tail.stride + page] as number
    return this.memory.pool.isShared(address, this.#pageBytes(tail))
  }

  /** Packed segments, the oldest first. */
  get segments(): readonly CacheSegment[] {
    return this.#books.segments
      .slice(1, this.#books.nVisible)
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
    const tokensBefore = this.#books.tailTokens
    const { stride } = this.#tail
    const owned = this.#ownTail()
    try {
      const grown = this.#growTail(this.#books.tailTokens + nTokens)
      this.#books.tailTokens += nTokens
      if (grown || owned) this.#table.amend({ tail: true })
    } catch (error) {
      this.#trimTail(Math.min(this.#books.tailTokens, tokensBefore))
      this.#setTailRoom(stride)
      throw error
    }
  }

  /** Takes the newest tokens of the tail back, as when the step that wrote them was given up. */
  shrinkTail(nTokens: number): void {
    this.#trimTail(this.#books.tailTokens - nTokens)
  }

  #trimTail(nTokens: number): void {
    this.#books.tailTokens = nTokens
    const tail = this.#tail
    const keep = pageCount(this.#books.tailTokens)
    for (let entry = 0; entry < this.#nEntries; entry++) {
      this.#freeEach(pagesOf(tail, entry).subarray(keep), this.#pageBytes(tail))
    }
    tail.nPages = Math.min(tail.nPages, keep)
    this.#table.mark({ tail: true })
  }

  /**
   * A cache of the same content, sharing its pages. Not while a group is staged.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page table.
   */
  fork(): KvCache {
    const copy = new KvCache(this.memory, this.#shapeIndex, this.tailFormat)
    for (const segment of this.#books.segments) {
      const retain = (addresses: Int32Array | null, bytes: number) => {
        for (const address of addresses ?? []) this.memory.pool.retain(address, bytes)
      }
      for (const pages of this.#heldPages(segment)) retain(pages, this.#pageBytes(segment))
      retain(segment.params, paramsBytes(this.shape.headDim))
      if (segment.span > 0) retain(segment.bitmaps, segment.bitmapBytes)
    }
    const segments = this.#books.segments.map((segment) => ({ ...segment }))
    Object.assign(copy.#books, this.#books, { segments })
    copy.#tail.pages = this.#tail.pages.slice() // the only ones that change
    try {
      copy.#table.amend(ALL_STALE)
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
      regular: nRegular > 0 ? this.#books.segments.length - 1 : null,
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
    const first = this.#books.segments.length
    const bitmaps = span > 0 ? this.#allocateEach(bitmapBytes(span)) : null
    try {
      for (const find of segmentsOf(bitmaps)) if (find) this.#books.segments.push(find())
      this.#table.amend({ entries: true, groupsFrom: first })
    } catch (error) {
      // The first segment holds the bitmaps, once it is there.
      if (bitmaps && this.#books.segments.length === first)
        this.#freeEach(bitmaps, bitmapBytes(span))
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
    for (const segment of this.#books.segments.slice(this.#books.nVisible)) {
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
    this.#table.amend({ entries: true, groupsFrom: this.#books.nVisible })
  }

  /** Whether some group's KV heads may differ in how many tokens are salient. */
  get isUneven(): boolean {
    return this.#books.segments.some(({ counts }) => counts !== null)
  }

  /** Whether a group is staged that was not published yet. */
  get isStaged(): boolean {
    return this.#books.segments.length > this.#books.nVisible
  }

  /** Bytes of the page table with so many more segments, and pages of each entry. */
  tableBytesWith(nSegments: number, nPages: number): number {
    return this.#table.sizeBytesWith(nSegments, nPages)
  }

  /** See `PageTable.ofHeads`. */
  headTable(): Int32Array {
    return this.#table.ofHeads()
  }

  /** Makes the staged group visible and empties the tail, whose tokens it holds. */
  publish(nTokens: number): void {
    this.#books.nVisible = this.#books.segments.length
    const tail = this.#tail
    this.#freePages(tail)
    tail.nPages = 0
    this.#books.tailStart += nTokens
    this.#books.tailTokens = 0
    this.#table.mark({ entries: true })
  }

  /**
   * In layers with a sliding window, gives pages back that no later row sees: of each class those in
   * front, but for as many tokens as the window shows. A page of the segment stands in for them in the
   * lists, so that ops may look at what they hide. Called once all that was published is packed.
   */
  dropHidden(): void {
    if (!this.shape.slidingWindow.some((window) => window > 0)) return
    const { segments, nVisible, tailStart } = this.#books
    for (let index = 1; index < nVisible; index++) {
      const segment = segments[index] as Segment
      const end = segment.start + (Math.abs(segment.span) || segment.nTokens)
      if (this.#dropFrom(segment, end, tailStart)) this.#table.mark({ groupsFrom: index })
    }
  }

  /** The same of a tail that is never compressed. Called where none of its tokens is taken back. */
  dropHiddenTail(): void {
    if (!this.shape.slidingWindow.some((window) => window > 0)) return
    if (this.#dropFrom(this.#tail, this.length, this.length)) this.#table.mark({ tail: true })
  }

  /** Gives staged pages back that were never published. */
  unstage(): void {
    const staged = this.#books.segments.splice(this.#books.nVisible)
    for (const segment of staged) this.#freeSegment(segment)
  }

  /**
   * What the allocator handed out for this sequence, page holes included; `probes` is the caller's
   * to add.
   */
  bytesByClass(): BytesByClass {
    const bytes = { ...noBytes(), tables: this.#table.sizeBytes }
    for (const [name, pageSize, count] of this.#held()) bytes[name] += pageSize * count
    return bytes
  }

  /** Adds what this sequence holds, as if nobody shared it. */
  addHeldTo(demand: CacheDemand): void {
    for (const [, pageSize, count] of this.#held()) demand.addPages(pageSize, count)
    demand.otherBytes += this.#table.sizeBytes
  }

  /** Pages, parameters and bitmaps of all segments: what they hold, their bytes, how many there are. */
  *#held(): Generator<[name: keyof BytesByClass, bytes: number, count: number]> {
    const nEntries = this.#nEntries
    for (const segment of this.#books.segments) {
      const { counts } = segment
      const nListed = counts
        ? counts.reduce((sum, n) => sum + pageCount(n), 0)
        : nEntries * segment.nPages
      const nDropped = segment.dropped?.reduce((sum, n) => sum + n, -1) ?? 0 // the stand-in is held
      yield [segment.precision, this.#pageBytes(segment), nListed - nDropped]
      if (segment.params) yield ['params', paramsBytes(this.shape.headDim), nEntries]
      if (segment.span > 0) yield ['bitmaps', segment.bitmapBytes, nEntries]
    }
  }

  dispose(): void {
    this.unstage()
    for (const segment of this.#books.segments) this.#freeSegment(segment)
    this.#books.segments.length = 0
    this.#table.dispose()
  }

  // ---- pages ----

  get #tail(): Segment {
    return this.#books.segments[0] as Segment
  }

  get #nEntries(): number {
    return this.shape.nLayers * this.shape.nKvHeads
  }

  #pageBytes(segment: { k: Format; v: Format }): number {
    return pageBytes(segment.k, segment.v, this.shape.headDim)
  }

  /** Copies the page that the next token goes to, if another cache holds it too; whether it did. */
  #ownTail(): boolean {
    if (!this.sharesTail) return false
    const tail = this.#tail
    const bytes = this.#pageBytes(tail)
    const last = Math.floor(this.#books.tailTokens / PAGE_TOKENS)
    const from = new Int32Array(this.#nEntries).map(
      (_, entry) => tail.pages[entry * tail.stride + last] as number,
    )
    const to = this.#allocateEach(bytes)
    try {
      this.memory.copyPages(from, to, bytes)
    } catch (error) {
      this.#freeEach(to, bytes)
      throw error
    }
    this.#freeEach(from, bytes)
    to.forEach((page, entry) => {
      tail.pages[entry * tail.stride + last] = page
    })
    return true
  }

  /** Adds pages until the tail has room for `nTokens`; whether any were added. */
  #growTail(nTokens: number): boolean {
    const tail = this.#tail
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
    const tail = this.#tail
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
      start: this.#books.tailStart,
      span,
      pages,
      stride: nPages,
      nPages,
      dropped: null,
      standIn: -1,
      params,
      bitmaps,
      bitmapBytes: bitmaps ? bitmapBytes(Math.abs(span)) : 0,
    }
  }

  #freePages(segment: Segment): void {
    const bytes = this.#pageBytes(segment)
    for (const pages of this.#heldPages(segment)) this.#freeEach(pages, bytes)
  }

  /** The pages that a segment holds, those of an entry at a time. */
  *#heldPages(segment: Segment): Generator<Int32Array> {
    const { dropped, standIn } = segment
    for (let entry = 0; entry < this.#nEntries; entry++) {
      yield pagesOf(segment, entry).subarray(dropped?.[entry] ?? 0)
    }
    if (standIn >= 0) yield Int32Array.of(standIn)
  }

  /**
   * Gives back what no row from `nextRow` on sees of a segment whose group's last position is before
   * `groupEnd`; whether there was anything.
   */
  #dropFrom(segment: Segment, groupEnd: number, nextRow: number): boolean {
    const { slidingWindow, nKvHeads } = this.shape
    const { counts, stride } = segment
    const bytes = this.#pageBytes(segment)
    const isTail = segment === this.#tail
    const nEach = isTail ? this.#books.tailTokens : segment.nTokens
    // Copies, as forks have the same ones; most segments change no more.
    let changed: { pages: Int32Array; dropped: Int32Array } | null = null
    for (const [layer, window] of slidingWindow.entries()) {
      if (window === 0) continue
      const nSeen = Math.max(0, groupEnd - (nextRow - window + 1))
      for (let entry = layer * nKvHeads; entry < (layer + 1) * nKvHeads; entry++) {
        const nTokens = counts ? (counts[entry] as number) : nEach
        const before = segment.dropped?.[entry] ?? 0
        // The tail's last page is still to be filled.
        const nHidden = hiddenPages(nTokens, nSeen, isTail || counts !== null)
        if (nHidden <= before) continue
        changed ??= {
          pages: segment.pages.slice(),
          dropped: segment.dropped?.slice() ?? new Int32Array(this.#nEntries),
        }
        const own = changed.pages.subarray(entry * stride + before, entry * stride + nHidden)
        const isFirst = segment.standIn < 0
        if (isFirst) segment.standIn = own[0] as number
        this.#freeEach(isFirst ? own.subarray(1) : own, bytes)
        own.fill(segment.standIn)
        changed.dropped[entry] = nHidden
      }
    }
    if (changed) Object.assign(segment, changed)
    return changed !== null
  }

  #freeSegment(segment: Segment): void {
    const { params, bitmaps, span, bitmapBytes } = segment
    this.#freePages(segment)
    if (params) this.#freeEach(params, paramsBytes(this.shape.headDim))
    // Both classes of a compression name its bitmaps; the salient one holds them.
    if (bitmaps && span > 0) this.#freeEach(bitmaps, bitmapBytes)
  }
}
