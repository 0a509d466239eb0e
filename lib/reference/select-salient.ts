/** Token indices of both precision classes, per KV head, ascending. */
export interface SalientSelection {
  /** (n_heads, count) */
  salient: Int32Array
  /** (n_heads, n - count) */
  regular: Int32Array
}

/**
 * Splits the tokens of each KV head into the `count` of highest score (salient) and the rest
 * (regular).
 *
 * Exactly `count` are salient; among equal scores the lowest index is taken first; NaN ranks below
 * every number. Both lists ascend.
 *
 * - `scores` (n_heads, n)
 * - `count` in [0, n]
 *
 * Source: ZipCache (arXiv 2405.14256) alg. 2, Split(K, p, r%).
 */
export function selectSalient(options: {
  scores: ArrayLike<number>
  nHeads: number
  n: number
  count: number
}): SalientSelection {
  const { scores, nHeads, n, count } = options
  const salient = new Int32Array(nHeads * count)
  const regular = new Int32Array(nHeads * (n - count))

  for (let head = 0; head < nHeads; head++) {
    const scoreOf = (token: number) => scores[head * n + token]
    const best = Array.from({ length: n }, (_, token) => token)
      .sort((a, b) => compareScores(scoreOf(b), scoreOf(a)) || a - b)
      .slice(0, count)
    const chosen = new Set(best)
    let nSalient = head * count
    let nRegular = head * (n - count)
    for (let token = 0; token < n; token++) {
      if (chosen.has(token)) salient[nSalient++] = token
      else regular[nRegular++] = token
    }
  }
  return { salient, regular }
}

/** Negative, zero, positive as a is below, equal to, above b; NaN lowest. */
function compareScores(a: number, b: number): number {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(b)) - Number(Number.isNaN(a))
  if (a === b) return 0
  return a < b ? -1 : 1
}
