import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `mixedAttention`. */
export interface MixedAttentionArgs {
  q: Tensor
  out: Tensor
  lse: Tensor
  pool: Tensor
  tables: Tensor
  starts: Tensor
  cuSeqlens: Tensor
  positions: Tensor
  layer: number
  scale: number
  slidingWindow?: number
  tail?: boolean
  causal?: boolean
}

/**
 * Attention straight over the packed cache: all segments of a sequence, of any precision, and its
 * 16-bit tail share one softmax state; nothing is dequantized (the fold algebra is at
 * csrc/cpu/kernels/mixed_attention-inl.h).
 *
 * - `q` (total_q, n_heads, head_dim) f32, f16 or bf16; `out` like it; `lse` (total_q, n_heads) f32
 *   out, natural log
 * - `pool` (bytes) u8: the pages; `tables` (words) i32: page tables as in csrc/ops/kv_table.h;
 *   `starts` (n_seqs) i32: the word where a sequence's table begins, or -1 for rows that are masked:
 *   their out is 0 and their lse -infinity
 * - `cuSeqlens` (n_seqs + 1) i32: first row of each sequence; `positions` (total_q) i32: of the
 *   rows, for the sliding window
 * - `tail` (default true): whether the tail takes part. `causal` (default true): the last q_len
 *   tokens of the tail are the rows themselves, so row i does not see the q_len - 1 - i last ones.
 *   Packed tokens are seen by all rows.
 * - `slidingWindow` W > 0: only tokens at positions > the row's - W
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`; `ERR_ZC_UNSUPPORTED` for more than 64
 * query heads a KV head. Source: ZipCache (arXiv 2405.14256) Alg. 3; the folding of scales into q,
 * p and the output is this project's.
 */
export function mixedAttention(args: MixedAttentionArgs): void {
  loadAddon().mixedAttention(
    args.q.handle,
    args.out.handle,
    args.lse.handle,
    args.pool.handle,
    args.tables.handle,
    args.starts.handle,
    args.cuSeqlens.handle,
    args.positions.handle,
    args.layer,
    args.scale,
    args.slidingWindow ?? 0,
    args.tail ?? true,
    args.causal ?? true,
  )
}
