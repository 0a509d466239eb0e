/** How one row's token is chosen. */
export interface SampleParams {
  /** 0 = take the most likely token */
  temperature: number
  /** keep the k most likely; 0 = all */
  topK: number
  /** keep the smallest set of most likely tokens with this much probability; >= 1 = all */
  topP: number
  /** keep tokens with at least this share of the highest probability; 0 = all */
  minP: number
  /** divides the positive and multiplies the negative logits of seen tokens; 1 = off */
  repetitionPenalty: number
}

/** A chosen token and the natural logarithm of its probability. */
export interface SampledToken {
  /** -1 where a logit is NaN or +infinity, or none is finite */
  id: number
  /** NaN where id is -1 */
  logprob: number
}

/**
 * Chooses the next token of one row of logits.
 *
 * 1. Penalty: a seen token's logit x becomes x / rp if x > 0, else x rp.
 * 2. temperature 0: the highest logit, lowest index among equals; logprob = log softmax of the
 *    penalized logits at it.
 * 3. Else the logits are divided by the temperature, and tokens are dropped by, in this order,
 *    - top-k: among equal logits the lower indices stay;
 *    - top-p: tokens by descending logit, lower index first among equals, are kept until their
 *      probabilities, softmax over those top-k left, add up to at least p; the first always stays;
 *    - min-p: those with probability < minP * the highest go.
 *
 *    The kept tokens, ascending by index, share out [0, 1) in proportion to their probability, and
 *    the one whose share holds u is taken. logprob = log softmax of the penalized, divided logits
 *    over the whole vocabulary.
 *
 * - `logits` (vocab_size)
 * - `seen` (vocab_size): nonzero for tokens the penalty applies to; may be left out
 * - `u` in [0, 1): the row's random number, `uniform(seed, step)` of lib/random.ts
 *
 * Source: repetition penalty CTRL (arXiv 1909.05858) §4.1, with the sign rule of Hugging Face's
 * RepetitionPenaltyLogitsProcessor; top-p arXiv 1904.09751 §3.1; min-p arXiv 2407.01082 §3.
 */
export function sample(options: {
  logits: ArrayLike<number>
  params: SampleParams
  seen?: ArrayLike<number>
  u: number
}): SampledToken {
  const { logits, params, seen, u } = options
  const { temperature, topK, topP, minP, repetitionPenalty } = params

  const penalized = Float64Array.from(logits, (x, token) => {
    if (!seen?.[token]) return x
    return x > 0 ? x / repetitionPenalty : x * repetitionPenalty
  })
  let best = -1 // the first token of highest logit
  for (let token = 0; token < penalized.length; token++) {
    const x = penalized[token]
    if (Number.isNaN(x) || x === Number.POSITIVE_INFINITY) return { id: -1, logprob: Number.NaN }
    if (x > (best === -1 ? Number.NEGATIVE_INFINITY : penalized[best])) best = token
  }
  if (best === -1) return { id: -1, logprob: Number.NaN }
  if (temperature === 0) return { id: best, logprob: logSoftmaxAt(penalized, best) }

  // Less the maximum first, which no probability notices and no small temperature can blow up.
  const scaled = penalized.map((x) => (x - penalized[best]) / temperature)
  const weight = (token: number) => Math.exp(scaled[token]) // probability * a constant; 1 for best

  let kept = [...scaled.keys()].sort((a, b) => descending(scaled[a], scaled[b]) || a - b)
  if (topK > 0) kept = kept.slice(0, topK)
  if (topP < 1) {
    const enough = topP * kept.reduce((sum, token) => sum + weight(token), 0)
    let sum = 0
    let count = 0
    while (count < kept.length && (count === 0 || sum < enough)) sum += weight(kept[count++])
    kept = kept.slice(0, count)
  }
  kept = kept.filter((token) => weight(token) >= minP)

  kept.sort((a, b) => a - b)
  const target = u * kept.reduce((sum, token) => sum + weight(token), 0)
  let sum = 0
  let id = best // rounding may leave the target just above the last sum
  for (const token of kept) {
    sum += weight(token)
    if (sum > target) {
      id = token
      break
    }
  }
  return { id, logprob: logSoftmaxAt(scaled, id) }
}

function descending(a: number, b: number): number {
  if (a === b) return 0
  return a > b ? -1 : 1
}

/** x_i - log sum_j exp(x_j). */
function logSoftmaxAt(x: Float64Array, i: number): number {
  let max = Number.NEGATIVE_INFINITY
  for (const value of x) max = Math.max(max, value)
  let sum = 0
  for (const value of x) sum += Math.exp(value - max)
  return x[i] - max - Math.log(sum)
}
