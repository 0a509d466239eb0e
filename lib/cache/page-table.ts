import type { Tensor } from '../ops/index.js'
import {
  ENTRY_HEADER,
  entryWords,
  type Format,
  headerWords,
  type KvShape,
  pageCount,
  SEGMENT,
  SEGMENT_WORDS,
  segmentWords,
  TABLE_HEADER,
} from './format.js'
import { TableArena } from './table-arena.js'

/** One precision class of a compression, or the tail. */
export interface Segment {
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
  /** (n_layers x n_kv_heads) pages in front that were given back; null: none. Not written to, but replaced. */
  dropped: Int32Array | null
  /** The page that stands in the lists for those, held once; -1 without. */
  standIn: number
  readonly params: Int32Array | null
  readonly bitmaps: Int32Array | null
  readonly bitmapBytes: number
}

/** The axes of a table's entries. */
type HeadAxes = Pick<KvShape, 'nLayers' | 'nKvHeads'>

/** What a page table tells of: its owner changes them, and then calls `amend` or `mark`. */
export interface Books {
  /** The tail first; staged ones last. */
  segments: Segment[]
  /** How many of them ops see. */
  nVisible: number
  /** Position of the tail's first token. */
  tailStart: number
  tailTokens: number
}

/** The tail, and the two classes of one compression. */
const MIN_SEGMENTS = 3

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

/** As after a table was made, or its lists moved. */
export const ALL_STALE: Stale = { header: true, entries: true, tail: true, groupsFrom: 1 }
const NOTHING_STALE: Stale = {
  header: false,
  entries: false,
  tail: false,
  groupsFrom: Number.POSITIVE_INFINITY,
}

/**
 * The page table of one sequence, by which ops find its tokens, laid out as csrc/ops/kv_table.h says:
 * a header, an entry for each layer and KV head with a row for each segment, then the page lists.
 */
export class PageTable {
  readonly #tables: TableArena
  readonly #shape: KvShape
  readonly #nEntries: number
  readonly #books: Books
  #start: number
  #capacityWords: number
  #maxSegments = MIN_SEGMENTS
  /** What the table that was written does not have as the books do. */
  #stale: Stale = { ...ALL_STALE }
  /** Header and entries of the table: to make them anew costs as much as a step when there are many. */
  #written = new Int32Array(0)
  /** Pages of the tail that the table has room for. */
  #tailRoom = 0

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for it. */
  constructor(tables: TableArena, shape: KvShape, books: Books) {
    this.#tables = tables
    this.#shape = shape
    this.#nEntries = shape.nLayers * shape.nKvHeads
    this.#books = books
    this.#capacityWords = TableArena.capacityOf(this.#neededWords(this.#maxSegments))
    this.#start = tables.allocate(this.#capacityWords)
  }

  /** The word of the arena where it begins, once it is written as the books are. */
  get start(): number {
    this.#write()
    return this.#start
  }

  /** All of it, written as the books are: (words) i32, for the caller to dispose of. */
  view(): Tensor<'i32'> {
    return this.#tables.memory.view([this.#capacityWords], this.start)
  }

  get sizeBytes(): number {
    return 4 * this.#capacityWords
  }

  /** Bytes with so many more segments, and pages of each entry. */
  sizeBytesWith(nSegments: number, nPages: number): number {
    const maxSegments = segmentRoom(this.#books.segments.length + nSegments, this.#maxSegments)
    const words = neededWords(this.#shape, maxSegments, this.#nPages() + nPages)
    return 4 * Math.max(this.#capacityWords, TableArena.capacityOf(words))
  }

  dispose(): void {
    this.#tables.free(this.#start, this.#capacityWords)
  }

  /**
   * The page table of the same segments and pages in which every KV head is a layer of its own, for
   * ops that take as many tokens of each head of a layer: (words) i32.
   */
  ofHeads(): Int32Array {
    const words = new Int32Array(this.#neededWords(this.#maxSegments))
    this.#fillHeader(words, { nLayers: this.#nEntries, nKvHeads: 1 })
    this.#fillCounts(words)
    this.#fillRows(words, 0, this.#books.segments.length)
    this.#fillLists(words.subarray(this.#listsStart), 0, this.#books.segments.length)
    return words
  }

  /** Words of page lists that every entry has room for, of segments [from, to). */
  #nPages(from = 0, to = this.#books.segments.length): number {
    return this.#books.segments.slice(from, to).reduce((sum, segment) => sum + listRoom(segment), 0)
  }

  #neededWords(maxSegments: number): number {
    return neededWords(this.#shape, maxSegments, this.#nPages())
  }

  /** The word of the table where the page lists begin, those of one segment after the other's. */
  get #listsStart(): number {
    return neededWords(this.#shape, this.#maxSegments, 0)
  }

  /**
   * The books changed: the table has room for them from now on, and what is stale is written before
   * an op may read it.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when the table has to grow and cannot; the old one stays as it is
   * then.
   */
  amend(stale: Partial<Stale>): void {
    const maxSegments = segmentRoom(this.#books.segments.length, this.#maxSegments)
    const needed = this.#neededWords(maxSegments)
    const tables = this.#tables
    const tailRoom = listRoom(this.#books.segments[0] as Segment)
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
    this.mark(stale)
  }

  /** The books changed within what the table has room for: what is stale is written later. */
  mark({ entries = false, tail = false, groupsFrom = Number.POSITIVE_INFINITY }: Partial<Stale>) {
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
    const { header, entries, tail } = this.#stale
    if (!header) return
    const groupsFrom = this.#withRoom(this.#stale.groupsFrom)
    const tables = this.#tables
    const words = this.#writtenWords()
    this.#fillHeader(words)
    if (entries) this.#fillCounts(words)
    if (tail) this.#fillRows(words, 0, 1)
    this.#fillRows(words, groupsFrom, this.#books.segments.length)
    tables.memory.write(entries ? words : words.subarray(0, TABLE_HEADER), this.#start)
    if (tail) this.#writeLists(0, 1)
    this.#writeLists(groupsFrom, this.#books.segments.length)
    this.#stale = { ...NOTHING_STALE }
  }

  /** The segment whose room a segment's lists lie in: of an uneven group that is the first. */
  #withRoom(index: number): number {
    const segment = this.#books.segments[index]
    return segment?.counts && segment.roomPages === 0 ? index - 1 : index
  }

  /** Header and entries as they were written, to be amended. */
  #writtenWords(): Int32Array {
    if (this.#written.length !== this.#listsStart) this.#written = new Int32Array(this.#listsStart)
    return this.#written
  }

  /** The page lists of segments [from, to). */
  #writeLists(from: number, to: number): void {
    const nWords = this.#nEntries * this.#nPages(from, to)
    if (nWords === 0) return
    const tables = this.#tables
    const words = tables.blank(nWords)
    this.#fillLists(words, from, to)
    const at = this.#listsStart + this.#nEntries * this.#nPages(0, from)
    tables.memory.write(words, this.#start + at)
  }

  /** - `words` i32: in and out, as of `#fillCounts` and `#fillRows` */
  #fillHeader(words: Int32Array, { nLayers, nKvHeads }: HeadAxes = this.#shape): void {
    const { tailTokens, tailStart } = this.#books
    words.set(
      headerWords({ tailTokens, tailStart, nLayers, nKvHeads, maxSegments: this.#maxSegments }),
    )
  }

  /** How many segments ops see. */
  #fillCounts(words: Int32Array): void {
    const stride = entryWords(this.#maxSegments)
    for (let entry = 0; entry < this.#nEntries; entry++) {
      words[TABLE_HEADER + entry * stride] = this.#books.nVisible
    }
  }

  /** Segments [from, to) of all entries. */
  #fillRows(words: Int32Array, from: number, to: number): void {
    const nEntries = this.#nEntries
    const stride = entryWords(this.#maxSegments)
    let lists = this.#listsStart + nEntries * this.#nPages(0, from)
    for (let index = from; index < to; index++) {
      const segment = this.#books.segments[index] as Segment
      const { k, v, nTokens, start, span, counts, params, bitmaps } = segment
      const none = { pagesBegin: -1, params: -1, bitmap: -1 }
      const row = segmentWords({ k, v, nTokens, ...none, start, span })
      for (let entry = 0; entry < nEntries; entry++) {
        if (counts) row[SEGMENT.nTokens] = counts[entry] as number
        row[SEGMENT.pagesBegin] = lists + this.#listAt(index, entry)
        if (params) row[SEGMENT.params] = params[entry] as number
        if (bitmaps) row[SEGMENT.bitmap] = bitmaps[entry] as number
        const at = TABLE_HEADER + entry * stride + ENTRY_HEADER + index * SEGMENT_WORDS
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
      const segment = this.#books.segments[index] as Segment
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
    const segment = this.#books.segments[index] as Segment
    if (!segment.counts || segment.roomPages > 0) return entry * listRoom(segment)
    const { roomPages } = this.#books.segments[index - 1] as Segment
    const nPages = pageCount(segment.counts[entry] as number)
    return (entry + 1 - this.#nEntries) * roomPages - nPages
  }
}

/** Words that a table has for a segment's page list of each entry. */
function listRoom({ counts, roomPages, stride }: Segment): number {
  return counts ? roomPages : stride
}

/** The pages of one (layer, KV head). */
export function pagesOf({ pages, stride, counts, nPages }: Segment, entry: number): Int32Array {
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
  return TABLE_HEADER + nLayers * nKvHeads * (entryWords(maxSegments) + nPages)
}

/** Words of a page table: `nSegments` with the tail, `nPages` of all segments of one KV head. */
export function tableWords(shape: KvShape, nSegments: number, nPages: number): number {
  return neededWords(shape, segmentRoom(nSegments), nPages)
}
