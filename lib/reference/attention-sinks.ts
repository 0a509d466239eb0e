import type { AttentionResult } from './flash-attention.js'
import { mergeAttention } from './merge-attention.js'

/**
 * Attention of all keys with a key more, whose value is 0: another side of `mergeAttention`.
 *
 * - `out` (n, n_heads, head_dim); `lse` (n, n_heads), natural log; `sinks` (n_heads) logits
 *
 * Source: gpt-oss model card (arXiv 2508.10925), Architecture.
 */
export function attentionSinks(options: {
  out: ArrayLike<number>
  lse: ArrayLike<number>
  sinks: ArrayLike<number>
  headDim: number
}): AttentionResult {
  const { out, lse, sinks, headDim } = options
  return mergeAttention({
    ...{ outA: out, lseA: lse, headDim },
    outB: new Float64Array(out.length),
    lseB: Float64Array.from(lse, (_, i) => sinks[i % sinks.length] as number),
  })
}
