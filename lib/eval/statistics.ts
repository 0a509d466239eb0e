/** What answers say about a policy, and what two policies' answers say about each other. */

import { check, checkNumber, checkNumbers } from './check.js'

/** A value and the interval that holds the truth in 95 of 100 experiments. */
export interface Estimate {
  /** The estimate. */
  readonly value: number
  /** Lower end of the interval. */
  readonly low: number
  /** Upper end. */
  readonly high: number
}

/** The 97.5th percentile of the standard normal distribution. */
const kZ = 1.959963984540054

/** Resamples of a bootstrap, and of a permutation test that cannot go through all signs. */
const kResamples = 2000
const kFlips = 9999
/** 2^12 signs are gone through one by one. */
const kExactSigns = 12

/**
 * The share of hits with Wilson's 95% interval:
 *
 *     (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n),   p = hits / n
 *
 * It stays within [0, 1] and has a width where all or none are hits.
 *
 * - `hits` of [0, n], `n` >= 1
 *
 * Throws `ERR_ZC_ARGUMENT` for others.
 *
 * Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
 * 1927.
 */
export function wilson(hits: number, n: number): Estimate {
  checkNumber('n', n)
  checkNumber('hits', hits)
  check('n', n >= 1, `is ${n}, expected at least 1`)
  check('hits', hits >= 0 && hits <= n, `is ${hits}, expected 0 to ${n}`)
  const p = hits / n
  const zz = kZ * kZ
  const middle = p + zz / (2 * n)
  const reach = kZ * Math.sqrt((p * (1 - p)) / n + zz / (4 * n * n))
  const scale = 1 + zz / n
  return {
    value: p,
    // Rounding would leave 1e-17 where the formula gives 0, and the same below 1.
    low: hits === 0 ? 0 : (middle - reach) / scale,
    high: hits === n ? 1 : (middle + reach) / scale,
  }
}

/**
 * McNemar's exact two-sided test. Of the questions that two policies answered differently, `wins`
 * went to one and `losses` to the other; if both were equally good, each would be a coin's throw:
 *
 *     p = min(1, 2 sum_{k <= min(wins, losses)} C(n, k) / 2^n),   n = wins + losses
 *
 * Throws `ERR_ZC_ARGUMENT` for what are no numbers. Source: Q. McNemar, 1947; the exact form is the binomial test.
 */
export function mcnemar(wins: number, losses: number): number {
  checkNumber('wins', wins)
  checkNumber('losses', losses)
  const n = wins + losses
  const fewer = Math.min(wins, losses)
  let logTerm = -n * Math.LN2 // log of C(n, 0) / 2^n
  let sum = 0
  for (let k = 0; k <= fewer; k++) {
    sum += Math.exp(logTerm)
    logTerm += Math.log(n - k) - Math.log(k + 1)
  }
  return Math.min(1, 2 * sum)
}

/**
 * The mean with the 95% interval of its bootstrap: the 2.5th and 97.5th percentile of the means of
 * 2,000 samples drawn with replacement, always the same ones.
 *
 * - `values`: 1 or more
 *
 * Throws `ERR_ZC_ARGUMENT` for others.
 */
export function bootstrapMean(values: readonly number[]): Estimate {
  checkNumbers('values', values)
  const n = values.length
  const next = random32(n)
  const means = Array.from({ length: kResamples }, () => {
    let sum = 0
    for (let i = 0; i < n; i++) sum += values[Math.floor((next() / 2 ** 32) * n)] as number
    return sum / n
  }).sort((a, b) => a - b)
  const at = (share: number) => means[Math.round(share * (kResamples - 1))] as number
  return { value: meanOf(values), low: at(0.025), high: at(0.975) }
}

/**
 * The two-sided paired permutation test: how often the mean of the differences would be as far from
 * 0 if each had either sign with equal chance. Up to 12 differences that are not 0 all signs are
 * tried, beyond that 9,999 draws, always the same ones.
 *
 * - `differences`: 1 or more
 *
 * Throws `ERR_ZC_ARGUMENT` for others.
 */
export function signFlipTest(differences: readonly number[]): number {
  checkNumbers('differences', differences)
  const moved = differences.filter((difference) => difference !== 0)
  const n = moved.length
  const sumWith = (isFlipped: (i: number) => boolean) =>
    Math.abs(moved.reduce((sum, value, i) => sum + (isFlipped(i) ? -value : value), 0))
  // Sums of the same numbers in another order of signs may differ in their last bits.
  const observed = sumWith(() => false) * (1 - 1e-12)
  if (n <= kExactSigns) {
    let asFar = 0
    for (let signs = 0; signs < 2 ** n; signs++) {
      if (sumWith((i) => ((signs >> i) & 1) === 1) >= observed) asFar++
    }
    return asFar / 2 ** n
  }
  const next = random32(n)
  let asFar = 1
  for (let flip = 0; flip < kFlips; flip++) {
    if (sumWith(() => next() >= 2 ** 31) >= observed) asFar++
  }
  return asFar / (kFlips + 1)
}

/**
 * Numbers of [0, 2^32), the same ones for a seed: millions are drawn, for which the 64 bits of
 * lib/random take seconds.
 *
 * Source: splitmix32, the 32-bit finalizer of MurmurHash3 over a Weyl sequence.
 */
function random32(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x9e3779b9) | 0
    let z = Math.imul(state ^ (state >>> 16), 0x85ebca6b)
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
    return (z ^ (z >>> 16)) >>> 0
  }
}

export function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
