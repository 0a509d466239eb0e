import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `flashAttention`. */
export interface FlashAttentionArgs {
  /** (total_q, n_heads, head_dim) f32, f16 or bf16. */
  q: Tensor
  /** (total_k, n_kv_heads, head_dim), q's dtype; n_kv_heads divides n_heads (GQA). */
  k: Tensor
  /** As `k`. */
  v: Tensor
  /** As `q`, out; 0 for a row that sees no key. */
  out: Tensor
  /**
   * (total_q, n_heads) f32, out: natural log of the sum of exp(scale q.k) over the keys that a row
   * sees; -inf for none.
   */
  lse: Tensor
  /** (n_seqs + 1) i32: row of q at which each sequence starts, then the total. */
  cuSeqlensQ: Tensor
  /** (n_seqs + 1) i32: the same of k and v. */
  cuSeqlensK: Tensor
  /** Of the softmax, usually 1 / sqrt(head_dim). */
  scale: number
  /** Row i of q_len sees keys j <= kv_len - q_len + i. */
  causal: boolean
  /** W > 0: a row also sees j > kv_len - q_len + i - W only; default 0, all. */
  slidingWindow?: number | undefined
}

/**
 * O = softmax(scale Q K^T) V for packed sequences of different lengths, without ever storing the
 * scores.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`, and `ERR_ZC_UNSUPPORTED` unless
 * head_dim is a multiple of 16 up to 512. Source: FlashAttention-2 (arXiv 2307.08691), Alg. 1.
 */
export function flashAttention(args: FlashAttentionArgs): void {
  checkArguments(args)
  loadAddon().flashAttention(
    handleOf(args.q),
    handleOf(args.k),
    handleOf(args.v),
    handleOf(args.out),
    handleOf(args.lse),
    handleOf(args.cuSeqlensQ),
    handleOf(args.cuSeqlensK),
    args.scale,
    args.slidingWindow ?? 0,
    args.causal,
  )
}
