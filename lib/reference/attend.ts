/** Rows of `values` at `offset`, `offset + stride`, …, each `headDim` long. */
export interface ValueRows {
  values: Float64Array
  offset: number
  stride: number
}

/**
 * One row of attention, from its scores:
 *
 *     o = sum_j softmax(scores)_j v_j,   lse = log sum_j exp(scores_j)
 *
 * A key that the row does not see has the score -infinity. A row that sees no key gives o = 0 and
 * lse = -infinity.
 *
 * - `scores` (kv_len), natural log domain
 * - `rows`: row j of V
 * - `out`: receives headDim numbers from `outOffset` on
 * - returns lse
 */
export function attend(
  scores: Float64Array,
  rows: ValueRows,
  headDim: number,
  out: Float64Array,
  outOffset: number,
): number {
  out.fill(0, outOffset, outOffset + headDim)
  let max = Number.NEGATIVE_INFINITY
  for (const score of scores) max = Math.max(max, score)
  if (max === Number.NEGATIVE_INFINITY) return max

  let sum = 0
  for (let j = 0; j < scores.length; j++) {
    if (scores[j] === Number.NEGATIVE_INFINITY) continue // unseen: even a NaN there must not matter
    const weight = Math.exp(scores[j] - max)
    sum += weight
    const row = rows.offset + j * rows.stride
    for (let c = 0; c < headDim; c++) out[outOffset + c] += weight * rows.values[row + c]
  }
  for (let c = 0; c < headDim; c++) out[outOffset + c] /= sum
  return max + Math.log(sum)
}

/** sum_c a[aOffset + c] * b[bOffset + c] over `length` elements. */
export function dot(
  a: Float64Array,
  aOffset: number,
  b: Float64Array,
  bOffset: number,
  length: number,
): number {
  let sum = 0
  for (let c = 0; c < length; c++) sum += a[aOffset + c] * b[bOffset + c]
  return sum
}
