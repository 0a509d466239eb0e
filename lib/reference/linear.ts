import { dot } from './attend.js'
import { roundHalfEven } from './float16.js'

/**
 * A linear layer: out = x W^T + bias, added to `accumulate` where that is given.
 *
 * - `x` (m, k); `weight` (n, k), one row per output, times `scales` (n) where they are given (one of 4
 *   bits as `dequantizeInt4Weight` gives it); `bias` (n); `accumulate` (m, n)
 * - returns (m, n)
 */
export function linear(options: {
  x: ArrayLike<number>
  weight: ArrayLike<number>
  scales?: ArrayLike<number>
  bias?: ArrayLike<number>
  accumulate?: ArrayLike<number>
  m: number
  n: number
  k: number
}): Float64Array {
  const { scales, bias, accumulate, m, n, k } = options
  const x = new Float64Array(options.x)
  const weight = new Float64Array(options.weight)
  const out = new Float64Array(m * n)
  for (let row = 0; row < m; row++) {
    for (let col = 0; col < n; col++) {
      const i = row * n + col
      const product = dot(x, row * k, weight, col * k, k) * (scales?.[col] ?? 1)
      out[i] = product + (bias?.[col] ?? 0) + (accumulate?.[i] ?? 0)
    }
  }
  return out
}

/** A weight in 8 bits. */
export interface QuantizedWeight {
  /** (n, k), -127 to 127. */
  codes: Int8Array
  /** (n) */
  scales: Float32Array
}

/**
 * A weight in 8 bits: code = round(x / scale), ties to even, with scale = max|x| / 127 of its row, each
 * rounded to float32.
 *
 * - `x` (n, k)
 */
export function quantizeWeight({
  x,
  n,
  k,
}: {
  x: ArrayLike<number>
  n: number
  k: number
}): QuantizedWeight {
  const codes = new Int8Array(n * k)
  const scales = new Float32Array(n)
  for (let row = 0; row < n; row++) {
    let most = 0
    for (let i = 0; i < k; i++) most = Math.max(most, Math.abs(x[row * k + i] as number))
    const scale = Math.fround(most / 127)
    scales[row] = scale
    for (let i = 0; i < k && scale > 0; i++) {
      const code = roundHalfEven(Math.fround((x[row * k + i] as number) / scale))
      codes[row * k + i] = Math.max(-127, Math.min(code, 127))
    }
  }
  return { codes, scales }
}
