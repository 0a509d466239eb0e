/**
 * Root-mean-square normalization of each row: out = scale (x / sqrt(mean(x^2) + eps) * weight + before).
 *
 * - `x` (rows, width); `weight` (width), default ones; `before` (rows, width), default zeros
 * - returns (rows, width)
 *
 * Source: RMSNorm (arXiv 1910.07467) eq. 4, with eps under the root as in LLaMA.
 */
export function rmsNorm(options: {
  x: ArrayLike<number>
  weight?: ArrayLike<number> | undefined
  width: number
  eps: number
  before?: ArrayLike<number> | undefined
  scale?: number | undefined
}): Float64Array {
  const { x, weight, width, eps, before, scale = 1 } = options
  const out = new Float64Array(x.length)
  for (let row = 0; row < x.length; row += width) {
    let sumOfSquares = 0
    for (let c = 0; c < width; c++) sumOfSquares += x[row + c] * x[row + c]
    const inverse = 1 / Math.sqrt(sumOfSquares / width + eps)
    for (let c = 0; c < width; c++) {
      const normed = x[row + c] * inverse * (weight ? weight[c] : 1)
      out[row + c] = scale * (normed + (before ? before[row + c] : 0))
    }
  }
  return out
}
