/**
 * Looks up one row of the embedding matrix per token, or some columns of it: out_i = scale * weight[ids_i].
 *
 * - `ids` (n), in [0, vocab_size)
 * - `weight` (vocab_size, width), or (vocab_size, stride) whose columns from `column` on are looked up
 * - `scale`: default 1
 * - returns (n, width)
 */
export function embedding(options: {
  ids: ArrayLike<number>
  weight: ArrayLike<number>
  width: number
  scale?: number
  column?: number
  stride?: number
}): Float64Array {
  const { weight, ids, width, scale = 1, column = 0, stride = width } = options
  return Float64Array.from({ length: ids.length * width }, (_, i) => {
    const row = ids[Math.floor(i / width)] as number
    return scale * (weight[row * stride + column + (i % width)] as number)
  })
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
