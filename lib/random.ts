/**
 * Random numbers without state: a number is a function of a seed and a counter, so that the same
 * seed gives the same tokens and probes whatever ran in between. The arithmetic is SplitMix64's.
 *
 * Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), fig.
 * 15, 16; constants of https://prng.di.unimi.it/splitmix64.c.
 */
import { ZipCacheError } from './errors.js'

/** A 64-bit seed as two unsigned 32-bit halves, the form in which it crosses to native code. */
export interface Seed {
  /** Lower half. */
  lo: number
  /** Upper half. */
  hi: number
}

const MASK_64 = (1n << 64n) - 1n
const GOLDEN_GAMMA = 0x9e3779b97f4a7c15n

/**
 * The seed of an integer, taken modulo 2^64: negative ones count from 2^64 down.
 *
 * Throws `ERR_ZC_ARGUMENT` for anything but an integer.
 */
export function toSeed(value: number | bigint): Seed {
  if (typeof value !== 'bigint' && !Number.isInteger(value)) {
    throw new ZipCacheError('ERR_ZC_ARGUMENT', `seed: is ${value}, expected an integer`, {
      argument: 'seed',
    })
  }
  return fromBits(BigInt.asUintN(64, BigInt(value)))
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
  return Number(random64(seed, counter) >> 40n) / 2 ** 24
}

/**
 * The counter-th integer of a seed's sequence, uniform in [0, bound): the upper half of the 128-bit
 * product mix(z) * bound. The bias, bound / 2^64, cannot be seen.
 *
 * - `bound`: integer in [1, 2^53]
 */
export function uniformInteger(seed: Seed, counter: number, bound: number): number {
  return Number((random64(seed, counter) * BigInt(bound)) >> 64n)
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
  return fromBits(random64({ lo: ~seed.lo >>> 0, hi: ~seed.hi >>> 0 }, stream))
}

/**
 * `count` distinct integers of [0, n), ascending, every such set equally likely: the first `count`
 * steps of a Fisher-Yates shuffle of 0, 1, …, n - 1.
 *
 * Time and memory grow with `count` alone: a Map holds the entries of the shuffled list that have
 * moved.
 *
 * - `n` >= `count` >= 0, integers
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
    throw new ZipCacheError(
      'ERR_ZC_ARGUMENT',
      `count: is ${count}, expected an integer in [0, n = ${n}]`,
      { argument: 'count' },
    )
  }
  const own = deriveSeed(seed, stream)
  const moved = new Map<number, number>()
  const chosen = new Int32Array(count)
  for (let i = 0; i < count; i++) {
    const j = i + uniformInteger(own, i, n - i)
    chosen[i] = moved.get(j) ?? j
    moved.set(j, moved.get(i) ?? i)
    moved.delete(i) // position i is settled and never drawn again
  }
  return chosen.sort()
}

function random64({ lo, hi }: Seed, counter: number): bigint {
  const seed = (BigInt(hi) << 32n) | BigInt(lo)
  let z = (seed + (BigInt(counter) + 1n) * GOLDEN_GAMMA) & MASK_64
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK_64
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK_64
  return z ^ (z >> 31n)
}

function fromBits(bits: bigint): Seed {
  return { lo: Number(bits & 0xffffffffn), hi: Number(bits >> 32n) }
}
