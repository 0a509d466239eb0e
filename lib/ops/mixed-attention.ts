import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `mixedAttention`. */
export interface MixedAttentionArgs {
  /** (total_q, n_heads, head_dim) f32, f16 or bf16. */
  q: Tensor
  /** As `q`, out; 0 for a row that sees no key. */
  out: Tensor
  /** (total_q, n_heads) f32, out: natural log; -inf for a row that sees no key. */
  lse: Tensor
  /** (bytes) u8: the pages. */
  pool: Tensor
  /** (words) i32: page tables as in csrc/ops/kv_table.h. */
  tables: Tensor
  /**
   * (n_seqs) i32: the word where a sequence's table begins, or -1 for rows that are masked: they
   * see no key.
   */
  starts: Tensor
  /** (n_seqs + 1) i32: row of q at which each sequence starts, then the total. */
  cuSeqlens: Tensor
  /** (total_q) i32: absolute positions of the rows, for the sliding window. */
  positions: Tensor
  /** Of the tables, from 0. */
  layer: number
  /** Of the softmax, usually 1 / sqrt(head_dim). */
  scale: number
  /** W > 0: only tokens at positions > the row's - W; default 0, all. */
  slidingWindow?: number | undefined
  /** Whether the tail takes part; default true. */
  tail?: boolean | undefined
  /**
   * The last q_len tokens of the tail are the rows themselves: row i sees none that come after its
   * own. Packed tokens are seen by all rows. Default true.
   */
  causal?: boolean | undefined
}

/**
 * Attention straight over the packed cache: all segments of a sequence, of any precision, and its
 * 16-bit tail share one softmax state; nothing is dequantized (the fold algebra is at
 * csrc/cpu/kernels/mixed_attention-inl.h).
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`; `ERR_ZC_UNSUPPORTED` for more than 64
 * query heads a KV head. Source: ZipCache (arXiv 2405.14256) Alg. 3; the folding of scales into q,
 * p and the output is this project's.
 */
export function mixedAttention(args: MixedAttentionArgs): void {
  checkArguments(args)
  loadAddon().mixedAttention(
    handleOf(args.q),
    handleOf(args.out),
    handleOf(args.lse),
    handleOf(args.pool),
    handleOf(args.tables),
    handleOf(args.starts),
    handleOf(args.cuSeqlens),
    handleOf(args.positions),
    args.layer,
    args.scale,
    args.slidingWindow ?? 0,
    args.tail ?? true,
    args.causal ?? true,
  )
}
