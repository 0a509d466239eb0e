/**
 * What is near `cap` in size, or beyond, drawn together: out = cap tanh(x / cap).
 *
 * - `x` (rows, width)
 * - returns (rows, width)
 *
 * Source: Gemma 2 (arXiv 2408.00118) §2.
 */
export function softCap(options: { x: ArrayLike<number>; cap: number }): Float64Array {
  const { x, cap } = options
  return Float64Array.from(x, (value) => cap * Math.tanh(value / cap))
}
