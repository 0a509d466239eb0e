/**
 * Rows to keep, ascending: the newest `nRecent`, and of the others the `nHeavy` with the highest
 * scores; ties go to the older row.
 */
export function heaviest(scores: Float32Array, nHeavy: number, nRecent: number): Int32Array {
  const nOthers = scores.length - nRecent
  const order = Int32Array.from({ length: nOthers }, (_, row) => row).sort(
    (a, b) => (scores[b] as number) - (scores[a] as number) || a - b,
  )
  const kept = new Int32Array(nHeavy + nRecent)
  kept.set(order.subarray(0, nHeavy).sort())
  for (let i = 0; i < nRecent; i++) kept[nHeavy + i] = nOthers + i
  return kept
}

/** What a window of `size` (odd) rows around each row gives: their mean or maximum. */
export function pooled(
  scores: Float32Array,
  size: number,
  pooling: 'average' | 'max',
): Float32Array {
  const half = (size - 1) / 2
  return scores.map((_, row) => {
    let sum = 0
    let most = 0
    for (let at = row - half; at <= row + half; at++) {
      const score = scores[at] ?? 0 // nothing beyond the ends, as in avg_pool1d with padding
      sum += score
      if (score > most) most = score
    }
    return pooling === 'max' ? most : sum / size
  })
}
