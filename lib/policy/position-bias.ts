/** Stretches of positions whose mean saliency is measured, at most; each of 16 tokens at least. */
const MAX_STRETCHES = 16
const STRETCH_TOKENS = 16

/**
 * How the mean saliency of a head's tokens depends on their position: one mean for each stretch of
 * equally many tokens. Empty for fewer than two stretches of 16.
 *
 * - `scores` (n_tokens): in the order of positions
 */
export function positionTrend(scores: Float32Array): Float64Array {
  const n = scores.length
  const nStretches = Math.min(MAX_STRETCHES, Math.floor(n / STRETCH_TOKENS))
  if (nStretches < 2) return new Float64Array(0)
  const sums = new Float64Array(nStretches)
  const counts = new Float64Array(nStretches)
  scores.forEach((score, i) => {
    const stretch = Math.floor((i * nStretches) / n)
    sums[stretch] = (sums[stretch] as number) + score
    counts[stretch] = (counts[stretch] as number) + 1
  })
  return sums.map((sum, stretch) => sum / (counts[stretch] as number))
}

/**
 * Scores without the bias of position that they have themselves: each divided by the trend at its
 * position, the stretches' means joined by straight lines from middle to middle. So no stretch of a
 * prompt is more salient than another on average, and tokens are compared with their neighbours.
 */
export function withoutPositionBias(scores: Float32Array): Float32Array {
  const trend = positionTrend(scores)
  const nStretches = trend.length
  if (nStretches === 0) return scores.slice()
  // A stretch that nobody looks at shall not be enlarged without bound.
  const least = 1e-3 * (trend.reduce((sum, mean) => sum + mean, 0) / nStretches)
  if (!(least > 0)) return scores.slice()
  const width = scores.length / nStretches
  return scores.map((score, i) => {
    const at = Math.min(Math.max((i + 0.5) / width - 0.5, 0), nStretches - 1)
    const left = Math.min(Math.floor(at), nStretches - 2)
    const share = at - left
    const mean = (1 - share) * (trend[left] as number) + share * (trend[left + 1] as number)
    return score / Math.max(mean, least)
  })
}
