import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** How the attention that a key received becomes its saliency. */
export type SaliencyMetric = 'normalized' | 'accumulated'

/** Arguments of `probeAttention`. */
export interface ProbeAttentionArgs {
  /** (n_layers, n, n_heads, head_dim) f32, f16 or bf16; without the first axis of one layer. */
  q: Tensor
  /**
   * (n_layers, n, n_heads) f32, as `flashAttention` or `mixedAttention` wrote it; without the first
   * axis where q is.
   */
  lse: Tensor
  /** (kv_len, n_layers * n_kv_heads, head_dim), q's dtype: of a key the heads of layer after layer. */
  k: Tensor
  /** (n_probes) i32: which rows of q are probes, the same in every layer. */
  rows: Tensor
  /**
   * (n_probes) i32: probe p sees the keys j <= positions[p] (and j > positions[p] - slidingWindow).
   */
  positions: Tensor
  /** (n_layers * n_kv_heads, kv_len) f32, out; 0 for a key that no probe sees. */
  scores: Tensor
  /** Of the softmax, usually 1 / sqrt(head_dim). */
  scale: number
  /** Keys that a probe sees, its own included; default 0, all. */
  slidingWindow?: number | undefined
  /** Whether sums are divided by the probes that see a key; default `normalized`. */
  metric?: SaliencyMetric | undefined
}

/**
 * Saliency of every key from a few probe rows: p_j = sum over probes and over the query heads of
 * the group of exp(scale q.k_j - lse), divided by the number of probes that see key j
 * (`normalized`, Eq. 8) or not (`accumulated`, Eq. 7).
 *
 * With the LSE at hand one pass over Q K^T is enough, and memory is O(kv_len). The paper divides by
 * nnz(A_probe[:, i]); its authors' code by the causal count of the full matrix, which favours
 * recent tokens up to tenfold.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`. Source: ZipCache (arXiv 2405.14256)
 * §4.2, §4.3, Eqs. 7 to 9.
 */
export function probeAttention(args: ProbeAttentionArgs): void {
  checkArguments(args)
  loadAddon().probeAttention(
    handleOf(args.q),
    handleOf(args.lse),
    handleOf(args.k),
    handleOf(args.rows),
    handleOf(args.positions),
    handleOf(args.scores),
    args.scale,
    args.slidingWindow ?? 0,
    (args.metric ?? 'normalized') === 'normalized',
  )
}
