/**
 * XOR of the words of each part: part p is [p, p + 1) ceil(n / parts) of `x`, cut off at n.
 *
 * - `x` (n) 32-bit integers
 * - returns (parts)
 */
export function readStream(options: { x: ArrayLike<number>; parts: number }): Int32Array {
  const { x, parts } = options
  const length = Math.ceil(x.length / parts)
  const out = new Int32Array(parts)
  for (let i = 0; i < x.length; i++) out[Math.floor(i / length)] ^= x[i]
  return out
}

/**
 * `steps` times y = factor y + summand, from y = x.
 *
 * - `x` (n)
 * - returns (n)
 */
export function multiplyAdd(options: {
  x: ArrayLike<number>
  factor: number
  summand: number
  steps: number
}): Float64Array {
  const { x, factor, summand, steps } = options
  const y = Float64Array.from(x)
  for (let step = 0; step < steps; step++) {
    for (let i = 0; i < y.length; i++) y[i] = factor * y[i] + summand
  }
  return y
}
