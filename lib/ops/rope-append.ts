import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `ropeAppend`. */
export interface RopeAppendArgs {
  /** (rows, n_heads, head_dim) f32, f16 or bf16, before RoPE. */
  q: Tensor
  /** (rows, n_kv_heads, head_dim), q's dtype, before RoPE. */
  k: Tensor
  /** (rows, n_kv_heads, head_dim), qOut's dtype. */
  v: Tensor
  /** (rows, rotary_dim / 2) f32, by `ropeTable`; rotary_dim is head_dim or less. */
  cos: Tensor
  /** (rows, rotary_dim / 2) f32, by `ropeTable`; rotary_dim is head_dim or less. */
  sin: Tensor
  /** As `cos`, of q alone, where that is of k alone. Default `cos`. */
  qCos?: Tensor | undefined
  /** As `sin`, of q alone, where that is of k alone. Default `sin`. */
  qSin?: Tensor | undefined
  /** As `q` or of another of its dtypes, out; may be `q`. */
  qOut: Tensor
  /** (rows, n_kv_heads, head_dim), qOut's dtype, out; may be `k`. Default: K goes to the tail alone. */
  kOut?: Tensor | undefined
  /** (bytes) u8: the pages, out. */
  pool: Tensor
  /** (words) i32: page tables as in csrc/ops/kv_table.h. */
  tables: Tensor
  /** (n_seqs) i32: the word where a sequence's table begins, or -1 for rows that go into none. */
  starts: Tensor
  /** (n_seqs + 1) i32: row at which each sequence starts, then the total. */
  cuSeqlens: Tensor
  /** Of the tables, from 0. */
  layer: number
}

/**
 * What comes between a layer's first products and its attention: rotates q and k as `rope`, and
 * writes k and v into the tails as `appendKv`, to the bit. K is rotated in float32, rounded to qOut's
 * dtype and then to the tail's.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_UNSUPPORTED`; a table that points outside of the pool
 * is found when the op runs (`ERR_ZC_ARGUMENT`).
 */
export function ropeAppend(args: RopeAppendArgs): void {
  checkArguments(args)
  loadAddon().ropeAppend(
    handleOf(args.q),
    handleOf(args.k),
    handleOf(args.v),
    handleOf(args.cos),
    handleOf(args.sin),
    handleOf(args.qCos ?? args.cos),
    handleOf(args.qSin ?? args.sin),
    handleOf(args.qOut),
    handleOf(args.kOut),
    handleOf(args.pool),
    handleOf(args.tables),
    handleOf(args.starts),
    handleOf(args.cuSeqlens),
    args.layer,
  )
}
