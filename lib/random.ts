/**
 * Random numbers without state: a number is a function of a seed and a counter, so that the same
 * seed gives the same tokens and probes whatever ran in between. The arithmetic is SplitMix64's.
 *
 * Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), fig.
 * 15, 16; constants of https://prng.di.unimi.it/splitmix64.c.
 */
import { argumentError, show } from './errors.js'

/** A 64-bit seed as two unsigned 32-bit halves, the form in which it crosses to native code. */
export interface Seed {
  /** Lower half. */
  lo: number
  /** Upper half. */
  hi: number
}

/**
 * The seed of an integer, taken modulo 2^64: negative ones count from 2^64 down.
 *
 * Throws `ERR_ZC_ARGUMENT` for anything but an integer.
 */
export function toSeed(value: number | bigint): Seed {
  if (typeof value !== 'bigint' && !Number.isInteger(value)) {
    throw argumentError('seed', `is ${show(value)}, expected an integer`)
  }
  const bits = BigInt.asUintN(64, BigInt(value))
  return { lo: Number(bits & 0xffffffffn), hi: Number(bits >> 32n) }
}

/**
 * The counter-th number of a seed's sequence, uniform in [0, 1), a multiple of 2^-24 so that
 * float32 holds it exactly:
 *
 *     z = seed + (counter + 1) * 0x9E3779B97F4A7C15  (mod 2^64),   u = (mix(z) >> 40) / 2^24
 *
 * - `counter`: unsigned 32-bit integer
 */
export function uniform(seed: Seed, counter: number): number {
  draw(seed, counter)
  return (drawn.hi >>> 8) / 2 ** 24
}

/**
 * The counter-th integer of a seed's sequence, uniform in [0, bound): the upper half of the 128-bit
 * product mix(z) * bound. The bias, bound / 2^64, cannot be seen.
 *
 * - `bound`: integer in [1, 2^53]
 */
export function uniformInteger(seed: Seed, counter: number, bound: number): number {
  draw(seed, counter)
  const { lo, hi } = drawn
  const boundLo = bound >>> 0
  const boundHi = Math.floor(bound / 2 ** 32)
  // Of the four products of halves, what reaches the upper 64 bits.
  const carried =
    (Math.imul(hi, boundLo) >>> 0) + (Math.imul(lo, boundHi) >>> 0) + multiplyHigh(lo, boundLo)
  const upper = multiplyHigh(hi, boundLo) + multiplyHigh(lo, boundHi)
  return hi * boundHi + upper + Math.floor(carried / 2 ** 32)
}

/**
 * A seed for an independent sequence: `deriveSeed(seed, a)` and `deriveSeed(seed, b)` share nothing
 * one could notice, nor do they with `seed` itself.
 *
 * - `stream`: unsigned 32-bit integer naming the purpose, layer or sequence
 */
export function deriveSeed(seed: Seed, stream: number): Seed {
  // Complementing the seed first keeps derived seeds apart from the numbers drawn from `seed`
  // itself.
  draw({ lo: ~seed.lo >>> 0, hi: ~seed.hi >>> 0 }, stream)
  return { lo: drawn.lo, hi: drawn.hi }
}

/**
 * `count` distinct integers of [0, n), ascending, every such set equally likely: the first `count`
 * steps of a Fisher-Yates shuffle of 0, 1, …, n - 1.
 *
 * - `n` >= `count` >= 0, integers; n, below 2^31, is a number of tokens or questions: 4 bytes are
 *   taken for each while it draws
 * - `stream`: as for `deriveSeed`; other streams give independent choices
 *
 * Throws `ERR_ZC_ARGUMENT` if count is not an integer in [0, n].
 */
export function sampleWithoutReplacement(
  n: number,
  count: number,
  seed: Seed,
  stream: number,
): Int32Array {
  if (!Number.isInteger(count) || count < 0 || count > n) {
    throw argumentError('count', `is ${count}, expected an integer in [0, n = ${n}]`)
  }
  const own = deriveSeed(seed, stream)
  // The shuffled list, each entry 1 too large; 0 where it has not moved.
  const moved = new Int32Array(n)
  const chosen = new Int32Array(count)
  for (let i = 0; i < count; i++) {
    const j = i + uniformInteger(own, i, n - i)
    chosen[i] = (moved[j] || j + 1) - 1
    moved[j] = moved[i] || i + 1
  }
  return chosen.sort()
}

/** What `draw` gave last: a draw makes no object, since a prompt's probes are thousands a layer. */
const drawn: Seed = { lo: 0, hi: 0 }

/**
 * mix(seed + (counter + 1) * 0x9E3779B97F4A7C15), in halves of 32 bits: BigInt takes many times as
 * long.
 */
function draw(seed: Seed, counter: number): void {
  // seed + 0x9E3779B97F4A7C15, and as much for each count
  const lower = seed.lo + 0x7f4a7c15 + (Math.imul(counter, 0x7f4a7c15) >>> 0)
  let lo = lower >>> 0
  let hi =
    (seed.hi +
      0x9e3779b9 +
      multiplyHigh(counter, 0x7f4a7c15) +
      (Math.imul(counter, 0x9e3779b9) >>> 0) +
      Math.floor(lower / 2 ** 32)) >>>
    0
  // z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
  lo ^= (lo >>> 30) | (hi << 2)
  hi ^= hi >>> 30
  hi = multiplyHigh(lo >>> 0, 0x1ce4e5b9) + Math.imul(hi, 0x1ce4e5b9) + Math.imul(lo, 0xbf58476d)
  lo = Math.imul(lo, 0x1ce4e5b9)
  // z = (z ^ (z >> 27)) * 0x94D049BB133111EB
  lo ^= (lo >>> 27) | (hi << 5)
  hi ^= hi >>> 27
  hi = multiplyHigh(lo >>> 0, 0x133111eb) + Math.imul(hi, 0x133111eb) + Math.imul(lo, 0x94d049bb)
  lo = Math.imul(lo, 0x133111eb)
  // z ^ (z >> 31)
  drawn.lo = (lo ^ ((lo >>> 31) | (hi << 1))) >>> 0
  drawn.hi = (hi ^ (hi >>> 31)) >>> 0
}

/** The upper 32 of the 64 bits of a product; `a`, `b` unsigned 32-bit integers. */
function multiplyHigh(a: number, b: number): number {
  const aLo = a & 0xffff
  const aHi = a >>> 16
  const bLo = b & 0xffff
  const bHi = b >>> 16
  const low = aHi * bLo + ((aLo * bLo) >>> 16)
  const middle = aLo * bHi + (low & 0xffff)
  return aHi * bHi + (low >>> 16) + (middle >>> 16)
}
