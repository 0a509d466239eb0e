/**
 * Looks up one row of the embedding matrix per token: out_i = scale * weight[ids_i].
 *
 * - `ids` (n), in [0, vocab_size)
 * - `weight` (vocab_size, width)
 * - `scale`: default 1
 * - returns (n, width)
 */
export function embedding(options: {
  ids: ArrayLike<number>
  weight: ArrayLike<number>
  width: number
  scale?: number
}): Float64Array {
  const { weight, ids, width, scale = 1 } = options
  return gatherRows({ x: weight, rows: ids, width }).map((x) => scale * x)
}

/**
 * Copies rows by index: out_i = x[rows_i].
 *
 * - `x` (n, width); `rows` (m), in [0, n)
 * - returns (m, width)
 */
export function gatherRows(options: {
  x: ArrayLike<number>
  rows: ArrayLike<number>
  width: number
}): Float64Array {
  const { x, rows, width } = options
  const out = new Float64Array(rows.length * width)
  for (let i = 0; i < rows.length; i++) {
    for (let c = 0; c < width; c++) out[i * width + c] = x[rows[i] * width + c]
  }
  return out
}
