/**
 * Root-mean-square normalization of each row: out = x / sqrt(mean(x^2) + eps) * weight.
 *
 * - `x` (rows, width); `weight` (width)
 * - returns (rows, width)
 *
 * Source: RMSNorm (arXiv 1910.07467) eq. 4, with eps under the root as in LLaMA.
 */
export function rmsNorm(options: {
  x: ArrayLike<number>
  weight: ArrayLike<number>
  width: number
  eps: number
}): Float64Array {
  const { x, weight, width, eps } = options
  const out = new Float64Array(x.length)
  for (let row = 0; row < x.length; row += width) {
    let sumOfSquares = 0
    for (let c = 0; c < width; c++) sumOfSquares += x[row + c] * x[row + c]
    const inverse = 1 / Math.sqrt(sumOfSquares / width + eps)
    for (let c = 0; c < width; c++) out[row + c] = x[row + c] * inverse * weight[c]
  }
  return out
}
