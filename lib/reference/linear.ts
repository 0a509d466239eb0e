import { dot } from './attend.js'

/**
 * A linear layer: out = x W^T + bias, added to `accumulate` where that is given.
 *
 * - `x` (m, k); `weight` (n, k), one row per output; `bias` (n); `accumulate` (m, n)
 * - returns (m, n)
 */
export function linear(options: {
  x: ArrayLike<number>
  weight: ArrayLike<number>
  bias?: ArrayLike<number>
  accumulate?: ArrayLike<number>
  m: number
  n: number
  k: number
}): Float64Array {
  const { bias, accumulate, m, n, k } = options
  const x = new Float64Array(options.x)
  const weight = new Float64Array(options.weight)
  const out = new Float64Array(m * n)
  for (let row = 0; row < m; row++) {
    for (let col = 0; col < n; col++) {
      const i = row * n + col
      out[i] = dot(x, row * k, weight, col * k, k) + (bias?.[col] ?? 0) + (accumulate?.[i] ?? 0)
    }
  }
  return out
}
