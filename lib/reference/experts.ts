import { linear } from './linear.js'

/** Which experts multiply which rows. */
export interface Routing {
  /** (n, n_chosen) */
  weights: Float64Array
  /** (n, n_chosen), of each row the largest logit's expert first */
  experts: Int32Array
  /** (n * n_chosen): places in `experts`, ordered by expert, then by place */
  pairs: Int32Array
  /** (n_experts + 1): where an expert's pairs begin in `pairs` */
  offsets: Int32Array
}

/**
 * Routes rows to experts: those of the `nChosen` largest logits, or with a `correction` of the largest sums of
 * score and correction, of equal ones the smaller expert. Weights are scores, softmax(logits) or
 * sigmoid(logits), divided by their sum, or by `leastSum` where that is smaller, where they are `normalized`,
 * times `scale`, times the expert's of `expertScales`. A row with a NaN has weights of NaN.
 *
 * - `logits` (n, n_experts); `correction`, `expertScales` (n_experts)
 *
 * Source: Mixtral (arXiv 2401.04088) §2.1, DeepSeek-V3 (arXiv 2412.19437) §2.1.2.
 */
export function routeExperts(options: {
  logits: ArrayLike<number>
  nExperts: number
  nChosen: number
  scores?: 'softmax' | 'sigmoid'
  correction?: ArrayLike<number> | undefined
  normalized?: boolean
  leastSum?: number
  scale?: number
  expertScales?: ArrayLike<number> | undefined
}): Routing {
  const { logits, nExperts, nChosen, scores = 'softmax', correction } = options
  const { normalized = false, leastSum = 0, scale = 1, expertScales } = options
  const n = logits.length / nExperts
  const weights = new Float64Array(n * nChosen)
  const experts = new Int32Array(n * nChosen)
  for (let row = 0; row < n; row++) {
    const own = Array.from({ length: nExperts }, (_, e) => logits[row * nExperts + e] as number)
    const scored = scores === 'softmax' ? softmax(own) : sigmoid(own)
    const ranks = correction ? scored.map((score, e) => score + (correction[e] as number)) : own
    const chosen = orderOf(ranks).slice(0, nChosen)
    const ofChosen = chosen.map((e) => scored[e] as number)
    const sum = ofChosen.reduce((all, score) => all + score, 0)
    const divisor = normalized ? Math.max(sum, leastSum) : 1
    experts.set(chosen, row * nChosen)
    weights.set(
      ofChosen.map((score, i) => {
        const own = expertScales ? (expertScales[chosen[i] as number] as number) : 1
        return (score / divisor) * scale * own
      }),
      row * nChosen,
    )
  }
  const pairs = Int32Array.from(experts.keys())
  pairs.sort((a, b) => (experts[a] as number) - (experts[b] as number) || a - b)
  const offsets = Int32Array.from(
    { length: nExperts + 1 },
    (_, e) => experts.filter((expert) => expert < e).length,
  )
  return { weights, experts, pairs, offsets }
}

/** Places of numbers, the largest first, of equal ones the smaller place, NaN behind all. */
function orderOf(x: readonly number[]): number[] {
  const rank = (i: number) => (Number.isNaN(x[i]) ? -Infinity : (x[i] as number))
  return [...x.keys()].sort((a, b) => rank(b) - rank(a) || a - b)
}

function softmax(x: readonly number[]): number[] {
  const most = x[orderOf(x)[0] as number] as number
  const exponentials = x.map((logit) => Math.exp(logit - most))
  const total = exponentials.reduce((sum, e) => sum + e, 0)
  return exponentials.map((e) => e / total)
}

/** 1 / (1 + e^-x); all are NaN where one is. */
function sigmoid(x: readonly number[]): number[] {
  return x.some(Number.isNaN)
    ? x.map(() => Number.NaN)
    : x.map((logit) => 1 / (1 + Math.exp(-logit)))
}

/**
 * Products of rows with the matrices of their experts: out[pair] = W[expert] x[row] + bias[expert], where
 * pair p is of row p / (n_pairs / m).
 *
 * - `x` (m, k); `weight` (n_experts, n, k), times `scales` (n_experts, n) where they are given; `bias`
 *   (n_experts, n); `experts` (n_pairs), one for each pair
 * - returns (n_pairs, n)
 */
export function expertLinear(options: {
  x: ArrayLike<number>
  weight: ArrayLike<number>
  scales?: ArrayLike<number>
  bias?: ArrayLike<number>
  experts: ArrayLike<number>
  m: number
  n: number
  k: number
}): Float64Array {
  const { m, n, k } = options
  const x = Float64Array.from(options.x)
  const weight = Float64Array.from(options.weight)
  const scales = options.scales && Float64Array.from(options.scales)
  const bias = options.bias && Float64Array.from(options.bias)
  const experts = Int32Array.from(options.experts)
  const out = new Float64Array(experts.length * n)
  for (const [pair, expert] of experts.entries()) {
    const row = Math.floor(pair / (experts.length / m))
    const product = linear({
      x: x.subarray(row * k, (row + 1) * k),
      weight: weight.subarray(expert * n * k, (expert + 1) * n * k),
      ...(scales ? { scales: scales.subarray(expert * n, (expert + 1) * n) } : {}),
      ...(bias ? { bias: bias.subarray(expert * n, (expert + 1) * n) } : {}),
      ...{ m: 1, n, k },
    })
    out.set(product, pair * n)
  }
  return out
}

/**
 * Adds up what the experts of a row gave: out[row] = before[row] + sum of weights[row, choice] x[row *
 * n_chosen + choice].
 *
 * - `x` (n * n_chosen, width); `weights` (n, n_chosen); `before` (n, width), default zeros
 * - returns (n, width)
 */
export function addExperts(options: {
  x: ArrayLike<number>
  weights: ArrayLike<number>
  before?: ArrayLike<number> | undefined
  nChosen: number
}): Float64Array {
  const { x, weights, before, nChosen } = options
  const width = x.length / weights.length
  return Float64Array.from({ length: x.length / nChosen }, (_, i) => {
    const row = Math.floor(i / width)
    let sum = 0
    for (let choice = 0; choice < nChosen; choice++) {
      const pair = row * nChosen + choice
      sum += (weights[pair] as number) * (x[pair * width + (i % width)] as number)
    }
    return (before ? (before[i] as number) : 0) + sum
  })
}
