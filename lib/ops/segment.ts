import { loadAddon } from '../native/load.js'
import { checkArguments, listOfArguments } from './arguments.js'
import { type QuantRange, rangeNorm } from './quantize.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `appendKv`. */
export interface AppendKvArgs {
  /**
   * (rows, n_kv_heads, head_dim) f32, f16 or bf16, after RoPE; a float16 tail saturates at +-65504.
   */
  k: Tensor
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16; saturates as `k`. */
  v: Tensor
  /** (bytes) u8: the pages, out. */
  pool: Tensor
  /** (words) i32: page tables as in csrc/ops/kv_table.h. */
  tables: Tensor
  /** (n_seqs) i32: the word where a sequence's table begins, or -1 for rows that are masked. */
  starts: Tensor
  /** (n_seqs + 1) i32: row at which each sequence starts, then the total. */
  cuSeqlens: Tensor
  /** Of the tables, from 0. */
  layer: number
}

/**
 * Writes the newest rows of each sequence into its 16-bit tail: row i of q_len goes to slot
 * tail_length - q_len + i, the table's tail length counting these rows already.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`; a table that points outside of the pool is found when the
 * op runs (`ERR_ZC_ARGUMENT`).
 */
export function appendKv(args: AppendKvArgs): void {
  checkArguments(args)
  loadAddon().appendKv(
    handleOf(args.k),
    handleOf(args.v),
    handleOf(args.pool),
    handleOf(args.tables),
    handleOf(args.starts),
    handleOf(args.cuSeqlens),
    args.layer,
  )
}

/** Arguments of `setTailLengths`. */
export interface SetTailLengthsArgs {
  /** (words) i32, in and out: page tables as in csrc/ops/kv_table.h. */
  tables: Tensor
  /** (n_seqs) i32: the word where a sequence's table begins, or -1 for none. */
  starts: Tensor
  /** (n_seqs) i32: tokens of each tail. */
  lengths: Tensor
}

/**
 * Says how many tokens the tail of each sequence holds from now on: the one word of a page table
 * that changes with every decode step, so that a recorded step can change it.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function setTailLengths(args: SetTailLengthsArgs): void {
  checkArguments(args)
  loadAddon().setTailLengths(handleOf(args.tables), handleOf(args.starts), handleOf(args.lengths))
}

/** Arguments of `copyPages`. */
export interface CopyPagesArgs {
  /** (bytes) u8: the pages, in and out. */
  pool: Tensor
  /** (n) i32: page addresses, in units of 64 bytes. */
  from: Tensor
  /** (n) i32: the same, where each page goes. */
  to: Tensor
  /** Bytes of one page. */
  pageBytes: number
}

/**
 * Copies pages within the pool: what a sequence does before it writes a page that it shares.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function copyPages(args: CopyPagesArgs): void {
  checkArguments(args)
  loadAddon().copyPages(handleOf(args.pool), handleOf(args.from), handleOf(args.to), args.pageBytes)
}

/**
 * Arguments of `packSegment`. `n_kv_heads` of the tensors are those of one layer, or of several: first
 * those of `layer`, then of the one after it, and so on.
 */
export interface PackSegmentArgs {
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16, after RoPE. */
  k: Tensor
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16. */
  v: Tensor
  /** (n_kv_heads, n_tokens) i32: ascending rows, one list a KV head. */
  ids: Tensor
  /** (bytes) u8: the pages, out. */
  pool: Tensor
  /** (table_words) i32: one sequence's page table, as in csrc/ops/kv_table.h. */
  table: Tensor
  /** Of the table, from 0; the first one, of several. */
  layer: number
  /** Index into the table's list, 1 or more. */
  segment: number
  /** How the range of K's channels is found; default `minmax`. */
  keyRange?: QuantRange | undefined
  /** How the range of V's tokens is found; default `minmax`. */
  valueRange?: QuantRange | undefined
}

/**
 * Quantizes selected rows into the pages of one segment: K channelwise, V channel-separable
 * tokenwise with one scale and zero a (token, KV head). The bits are the segment's. Salient
 * segments also write the bitmap of their positions.
 *
 * The paper shares V's scale among all heads of a token; one for each head costs 16 / head_dim bits
 * more an element, and keeps heads with different salient tokens independent.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`; that the table has no such layers is
 * found when the op runs (`ERR_ZC_ARGUMENT`). Source: ZipCache (arXiv 2405.14256) Algs. 1 and 2.
 */
export function packSegment(args: PackSegmentArgs): void {
  checkArguments(args)
  loadAddon().packSegment(
    handleOf(args.k),
    handleOf(args.v),
    handleOf(args.ids),
    handleOf(args.pool),
    handleOf(args.table),
    args.layer,
    args.segment,
    rangeNorm('keyRange', args.keyRange),
    rangeNorm('valueRange', args.valueRange),
  )
}

/** Tokens of one class: what `packSegments` packs into a segment of their own. */
export interface SegmentClass {
  /** (n_kv_heads, n_tokens) i32: ascending rows, one list a KV head. */
  ids: Tensor
  /** Index into the table's list, 1 or more, another one than the other class's. */
  segment: number
  /** How the range of K's channels is found; default `minmax`. */
  keyRange?: QuantRange | undefined
  /** How the range of V's tokens is found; default `minmax`. */
  valueRange?: QuantRange | undefined
}

/** Arguments of `packSegments`; KV heads of several layers as in `packSegment`. */
export interface PackSegmentsArgs {
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16, after RoPE. */
  k: Tensor
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16. */
  v: Tensor
  /** (bytes) u8: the pages, out. */
  pool: Tensor
  /** (table_words) i32: one sequence's page table, as in csrc/ops/kv_table.h. */
  table: Tensor
  /** Of the table, from 0; the first one, of several. */
  layer: number
  /** One or two. */
  classes: readonly SegmentClass[]
}

/**
 * Packs the classes of one group of rows, salient and regular tokens, each to the bit as
 * `packSegment` does. On a GPU they share the kernels.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, and `ERR_ZC_ARGUMENT`, for none or too many classes, too.
 */
export function packSegments(args: PackSegmentsArgs): void {
  checkArguments(args)
  const { k, v, pool, table, layer } = args
  const classes = listOfArguments('classes', args.classes)
  const flat = classes.flatMap(({ ids, segment, keyRange, valueRange }) => [
    ...[
      handleOf(ids),
      segment,
      rangeNorm('keyRange', keyRange),
      rangeNorm('valueRange', valueRange),
    ],
  ])
  loadAddon().packSegments(
    ...([
      handleOf(k),
      handleOf(v),
      handleOf(pool),
      handleOf(table),
      layer,
      classes.length,
    ] as const),
    ...flat,
  )
}

/** Arguments of `unpackSegment`; KV heads of several layers as in `packSegment`. */
export interface UnpackSegmentArgs {
  /** (bytes) u8: the pages. */
  pool: Tensor
  /** (table_words) i32: one sequence's page table, as in csrc/ops/kv_table.h. */
  table: Tensor
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16, out; row r is position `base` + r. */
  k: Tensor
  /** (rows, n_kv_heads, head_dim) f32, f16 or bf16, out; the same rows. */
  v: Tensor
  /** Of the table, from 0; the first one, of several. */
  layer: number
  /** Index into the table's list; 0: the tail. */
  segment: number
  /** Position of the first row. */
  base: number
}

/**
 * The inverse of `packSegment`, and a reader of the tail (segment 0): dequantized rows at their
 * positions; other rows of k and v are left alone.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function unpackSegment(args: UnpackSegmentArgs): void {
  checkArguments(args)
  loadAddon().unpackSegment(
    handleOf(args.pool),
    handleOf(args.table),
    handleOf(args.k),
    handleOf(args.v),
    args.layer,
    args.segment,
    args.base,
  )
}

/**
 * Arguments of `exportSegment`, which writes all tensors but `pool` and `table`; KV heads of several
 * layers as in `packSegment`.
 */
export interface ExportSegmentArgs {
  /** (bytes) u8: the pages. */
  pool: Tensor
  /** (table_words) i32: one sequence's page table, as in csrc/ops/kv_table.h. */
  table: Tensor
  /** (n_kv_heads, n_tokens, head_dim) u8, below 2^bits of K's format. */
  kCodes: Tensor
  /** (n_kv_heads, n_tokens, head_dim) u8, below 2^bits of V's format. */
  vCodes: Tensor
  /** (n_kv_heads, 2, head_dim) f32: scale, zero. */
  kParams: Tensor
  /** (n_kv_heads, 2, n_tokens) f32: scale, zero. */
  vParams: Tensor
  /** (n_kv_heads, head_dim) f32: c of each channel of V. */
  vChannel: Tensor
  /** (n_kv_heads, n_tokens) i32, ascending. */
  positions: Tensor
  /** Of the table, from 0; the first one, of several. */
  layer: number
  /** Index into the table's list, 1 or more. */
  segment: number
}

/**
 * The logical content of a packed segment, the same on every backend whatever the order of bytes in
 * a page.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function exportSegment(args: ExportSegmentArgs): void {
  checkArguments(args)
  loadAddon().exportSegment(...placeAndContent(args))
}

/** Arguments of `importSegment`, which writes `pool` alone; parameters must be finite and exact in float16. */
export type ImportSegmentArgs = ExportSegmentArgs

/**
 * The inverse of `exportSegment`: writes codes and parameters into the pages of a segment whose
 * formats, pages and bitmap the table gives already. A salient segment (`span` > 0) also writes the
 * bitmap of its positions, so it comes before the regular one that shares the bitmap, whose
 * positions must be the clear bits.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`; a content that does not fit the segment
 * is found when the op runs (`ERR_ZC_ARGUMENT`), and what the segment holds then is undefined.
 */
export function importSegment(args: ImportSegmentArgs): void {
  checkArguments(args)
  loadAddon().importSegment(...placeAndContent(args))
}

/** What both ops are given. */
function placeAndContent(args: ExportSegmentArgs) {
  return [
    handleOf(args.pool),
    handleOf(args.table),
    handleOf(args.kCodes),
    handleOf(args.vCodes),
    handleOf(args.kParams),
    handleOf(args.vParams),
    handleOf(args.vChannel),
    handleOf(args.positions),
    args.layer,
    args.segment,
  ] as const
}
