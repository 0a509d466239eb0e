import type { AttentionResult } from './flash-attention.js'

/**
 * Joins two attention results over disjoint sets of keys into the result over their union:
 *
 *     lse = log(exp(lseA) + exp(lseB)),   out = exp(lseA - lse) outA + exp(lseB - lse) outB
 *
 * A side with lse -infinity saw no key and takes no part, whatever its out holds. Both -infinity:
 * out 0, lse -infinity.
 *
 * - `outA`, `outB` (n, n_heads, head_dim); `lseA`, `lseB` (n, n_heads), natural log
 *
 * Source: FlashAttention-2 (arXiv 2307.08691) §3.1.1; the associative state of FlashInfer (arXiv
 * 2501.01005) §2.2.
 */
export function mergeAttention(options: {
  outA: ArrayLike<number>
  lseA: ArrayLike<number>
  outB: ArrayLike<number>
  lseB: ArrayLike<number>
  headDim: number
}): AttentionResult {
  const { outA, lseA, outB, lseB, headDim } = options
  const out = new Float64Array(outA.length)
  const lse = new Float64Array(lseA.length)
  for (let row = 0; row < lse.length; row++) {
    const max = Math.max(lseA[row], lseB[row])
    if (max === Number.NEGATIVE_INFINITY) {
      lse[row] = max
      continue
    }
    lse[row] = max + Math.log(Math.exp(lseA[row] - max) + Math.exp(lseB[row] - max))
    const weightA = Math.exp(lseA[row] - lse[row])
    const weightB = Math.exp(lseB[row] - lse[row])
    for (let i = row * headDim; i < (row + 1) * headDim; i++) {
      if (lseA[row] !== Number.NEGATIVE_INFINITY) out[i] += weightA * outA[i]
      if (lseB[row] !== Number.NEGATIVE_INFINITY) out[i] += weightB * outB[i]
    }
  }
  return { out, lse }
}
