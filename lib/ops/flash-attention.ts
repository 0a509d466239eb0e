import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `flashAttention`. */
export interface FlashAttentionArgs {
  q: Tensor
  k: Tensor
  v: Tensor
  out: Tensor
  lse: Tensor
  cuSeqlensQ: Tensor
  cuSeqlensK: Tensor
  scale: number
  causal: boolean
  slidingWindow?: number
}

/**
 * O = softmax(scale Q K^T) V for packed sequences of different lengths, without ever storing the
 * scores.
 *
 * - `q` (total_q, n_heads, head_dim) f32, f16 or bf16; `out` like it
 * - `k`, `v` (total_k, n_kv_heads, head_dim), q's dtype; n_kv_heads divides n_heads (GQA)
 * - `lse` (total_q, n_heads) f32: natural log of the sum of exp(scale q.k) over the keys that a row
 *   sees
 * - `cuSeqlensQ`, `cuSeqlensK` (n_seqs + 1) i32: row at which each sequence starts, then the total
 * - `causal`: row i of q_len sees keys j <= kv_len - q_len + i. `slidingWindow` W > 0: and j >
 *   kv_len - q_len + i - W
 * - a row that sees no key gets out = 0 and lse = -inf
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`, and `ERR_ZC_UNSUPPORTED` unless
 * head_dim is a multiple of 16 up to 256. Source: FlashAttention-2 (arXiv 2307.08691), Alg. 1.
 */
export function flashAttention(args: FlashAttentionArgs): void {
  loadAddon().flashAttention(
    args.q.handle,
    args.k.handle,
    args.v.handle,
    args.out.handle,
    args.lse.handle,
    args.cuSeqlensQ.handle,
    args.cuSeqlensK.handle,
    args.scale,
    args.slidingWindow ?? 0,
    args.causal,
  )
}
