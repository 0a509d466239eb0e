/** Sizes of the packed cache, as csrc/ops/kv_table.h defines them. */

/** Tokens of a page. */
export const PAGE_TOKENS = 16

/** Bytes that a page address counts. */
export const PAGE_UNIT_BYTES = 64

/**
 * How elements are stored: codes of 2, 3, 4 or 8 bits, or 16- and 32-bit floats. The numbers are
 * the native enum's.
 */
export const FORMATS = { u2: 2, u3: 3, u4: 4, u8: 8, f16: 16, bf16: 17, f32: 32 } as const

/** One of `FORMATS`. */
export type Format = keyof typeof FORMATS

/** Words of a page table's header, of an entry's, and of a segment in an entry. */
export const TABLE_HEADER = 8
export const ENTRY_HEADER = 8
export const SEGMENT_WORDS = 8

/** Where in its words a segment says what each KV head has its own of. */
export const SEGMENT = {
  nTokens: 2,
  pagesBegin: 3,
  params: 4,
  bitmap: 5,
  start: 6,
  span: 7,
} as const

/** What a page table's header says. */
export interface TableHeader {
  readonly tailTokens: number
  /** Position of the tail's first token. */
  readonly tailStart: number
  readonly nLayers: number
  readonly nKvHeads: number
  /** Segments that each entry has room for. */
  readonly maxSegments: number
}

/** The words of a header, TABLE_HEADER of them. */
export function headerWords(header: TableHeader): number[] {
  const { tailTokens, tailStart, nLayers, nKvHeads, maxSegments } = header
  return [tailTokens, tailStart, nLayers, nKvHeads, maxSegments, 0, 0, 0]
}

/** A segment of one entry; -1 for what it has none of. */
export interface SegmentRow {
  readonly k: Format
  readonly v: Format
  readonly nTokens: number
  /** The word of the table where its page list begins. */
  readonly pagesBegin: number
  /** Address of its channel parameters. */
  readonly params: number
  /** Address of its bitmap. */
  readonly bitmap: number
  /** Position of the bitmap's first bit, or of its first token without one. */
  readonly start: number
  /** Bits of the bitmap, negative for the tokens of its clear ones; 0 without. */
  readonly span: number
}

/** The words of a segment, SEGMENT_WORDS of them. */
export function segmentWords(row: SegmentRow): number[] {
  const { k, v, nTokens, pagesBegin, params, bitmap, start, span } = row
  return [FORMATS[k], FORMATS[v], nTokens, pagesBegin, params, bitmap, start, span]
}

/** Words of one entry, its page lists aside. */
export function entryWords(maxSegments: number): number {
  return ENTRY_HEADER + maxSegments * SEGMENT_WORDS
}

/** The format of codes of so many bits. */
export function codeFormat(bits: 2 | 3 | 4 | 8): Format {
  return `u${bits}`
}

/** Whether a format holds codes, which need parameters. */
export function isQuantized(format: Format): boolean {
  return FORMATS[format] <= 8
}

/** The cached heads of a model's layers, of those whose heads are alike. */
export interface KvShape {
  readonly nLayers: number
  readonly nKvHeads: number
  readonly headDim: number
  /** (nLayers): a row sees its last so many keys, itself included; 0 sees all. */
  readonly slidingWindow: readonly number[]
}

/**
 * Bytes of a 16-bit cache: 2 (K and V) x tokens x n_kv_heads x head_dim x 2 bytes x n_layers; in a layer
 * with a sliding window no more tokens than that. What compression ratios are measured against.
 */
export function fp16CacheBytes(shapes: readonly KvShape[], nTokens: number): number {
  return shapes.reduce((sum, { nKvHeads, headDim, slidingWindow }) => {
    const nSeen = slidingWindow.reduce((n, own) => n + Math.min(nTokens, own || nTokens), 0)
    return sum + 2 * nKvHeads * headDim * 2 * nSeen
  }, 0)
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

/** Bits of an element; bf16 has 16 under another number. */
export function bitsOf(format: Format): number {
  return format === 'bf16' ? 16 : FORMATS[format]
}

/**
 * Bytes of a page: K and V of 16 tokens of one KV head, V's token parameters, rounded up to whole
 * units.
 */
export function pageBytes(k: Format, v: Format, headDim: number): number {
  const elements = ((bitsOf(k) + bitsOf(v)) * PAGE_TOKENS * headDim) / 8
  const tokenParams = isQuantized(v) ? 2 * PAGE_TOKENS * 2 : 0
  return roundUp(elements + tokenParams, PAGE_UNIT_BYTES)
}

/** Bytes of a segment's channel parameters: K's scale and zero, V's c, float16. */
export function paramsBytes(headDim: number): number {
  return roundUp(3 * 2 * headDim, PAGE_UNIT_BYTES)
}

/**
 * Bytes of a bitmap over so many tokens: a power of two, so that prompts of different lengths share
 * superblocks.
 */
export function bitmapBytes(nTokens: number): number {
  const bytes = Math.ceil(nTokens / 8)
  return Math.max(PAGE_UNIT_BYTES, 2 ** Math.ceil(Math.log2(bytes)))
}

/** Pages that hold so many tokens. */
export function pageCount(nTokens: number): number {
  return Math.ceil(nTokens / PAGE_TOKENS)
}

/**
 * Pages of a class that no row sees, of whose group's positions `nSeen` are seen, the last ones: at least
 * so many, as which of the tokens are of the class is not known here. `wholeOnly`: whole pages alone, as
 * where heads differ in their tokens (one stands in for others, of which it must have all tokens), and
 * in the tail, whose last page is still to be filled.
 */
export function hiddenPages(nTokens: number, nSeen: number, wholeOnly: boolean): number {
  if (nSeen === 0 && !wholeOnly) return pageCount(nTokens)
  return Math.floor(Math.max(0, nTokens - nSeen) / PAGE_TOKENS)
}

function roundUp(n: number, multiple: number): number {
  return Math.ceil(n / multiple) * multiple
}
