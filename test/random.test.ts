import fc from 'fast-check'
import {
  deriveSeed,
  type Seed,
  sampleWithoutReplacement,
  toSeed,
  uniform,
  uniformInteger,
} from '../lib/random'

describe('uniform', () => {
  test('is the upper 24 bits of SplitMix64', () => {
    // The first five outputs of the published generator for seed 1234567.
    const outputs = [
      6457827717110365317n,
      3203168211198807973n,
      9817491932198370423n,
      4593380528125082431n,
      16408922859458223821n,
    ]
    const seed = toSeed(1234567)
    const drawn = outputs.map((_, counter) => uniform(seed, counter))
    expect(drawn).toEqual(outputs.map((z) => Number(z >> 40n) / 2 ** 24))
  })

  test('uses all 64 bits of the seed', () => {
    // 2^32 + 5 and 5 differ in the upper half alone
    expect(toSeed(2 ** 32 + 5)).toEqual({ lo: 5, hi: 1 })
    expect(toSeed(-1)).toEqual({ lo: 0xffffffff, hi: 0xffffffff })
    expect(uniform({ lo: 5, hi: 1 }, 0)).not.toBe(uniform({ lo: 5, hi: 0 }, 0))
  })

  test('refuses a seed that is no integer', () => {
    expect(() => toSeed(1.5)).toThrow(expect.objectContaining({ code: 'ERR_ZC_ARGUMENT' }))
    expect(() => toSeed(Number.NaN)).toThrow('seed: is NaN, expected an integer')
  })

  test('lies in [0, 1), holds in float32 and spreads evenly', () => {
    const seed = toSeed(42)
    const counts = new Array<number>(16).fill(0)
    for (let counter = 0; counter < 16000; counter++) {
      const u = uniform(seed, counter)
      if (!(u >= 0 && u < 1 && Math.fround(u) === u)) throw new Error(`counter ${counter}: ${u}`)
      counts[Math.floor(u * 16)]++
    }
    // 1000 expected in each, standard deviation 31
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(150)
  })
})

describe('agrees with the formulas in 64-bit integers:', () => {
  const mask = 2n ** 64n - 1n
  const mixed = ({ lo, hi }: Seed, counter: number) => {
    const seed = (BigInt(hi) << 32n) | BigInt(lo)
    let z = (seed + (BigInt(counter) + 1n) * 0x9e3779b97f4a7c15n) & mask
    z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask
    z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask
    return z ^ (z >> 31n)
  }
  // Numbers whose halves, and halves of halves, are full or empty, and any others.
  const edges = [0, 1, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffff0000, 0xffffffff]
  const word = fc.oneof(fc.constantFrom(...edges), fc.integer({ min: 0, max: 2 ** 32 - 1 }))
  const seeds = fc.record({ lo: word, hi: word })
  const bounds = fc.oneof(
    word.map((bound) => Math.max(1, bound)),
    fc.integer({ min: 1, max: 2 ** 53 }),
    fc.constantFrom(2 ** 53, 2 ** 53 - 1, 2 ** 32, 2 ** 32 + 1),
  )

  test('uniform, uniformInteger and deriveSeed', () => {
    fc.assert(
      fc.property(seeds, word, bounds, (seed, counter, bound) => {
        const z = mixed(seed, counter)
        expect(uniform(seed, counter)).toBe(Number(z >> 40n) / 2 ** 24)
        expect(uniformInteger(seed, counter, bound)).toBe(Number((z * BigInt(bound)) >> 64n))
        const own = mixed({ lo: ~seed.lo >>> 0, hi: ~seed.hi >>> 0 }, counter)
        const derived = { lo: Number(own & 0xffffffffn), hi: Number(own >> 32n) }
        expect(deriveSeed(seed, counter)).toEqual(derived)
      }),
      { seed: 1, numRuns: 5000 },
    )
  })

  test('sampleWithoutReplacement', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 60 }),
        fc.nat(60),
        seeds,
        word,
        (n, some, seed, stream) => {
          const list = Array.from({ length: n }, (_, i) => i)
          const count = Math.min(n, some)
          const own = deriveSeed(seed, stream)
          for (let i = 0; i < count; i++) {
            const j = i + uniformInteger(own, i, n - i)
            ;[list[i], list[j]] = [list[j], list[i]]
          }
          const expected = list.slice(0, count).sort((a, b) => a - b)
          expect([...sampleWithoutReplacement(n, count, seed, stream)]).toEqual(expected)
        },
      ),
      { seed: 1, numRuns: 500 },
    )
  })
})

test('uniformInteger spreads evenly over [0, bound)', () => {
  const counts = new Array<number>(7).fill(0)
  for (let counter = 0; counter < 7000; counter++) counts[uniformInteger(toSeed(3), counter, 7)]++
  for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(150)
  expect(uniformInteger(toSeed(3), 0, 1)).toBe(0)
})

test('deriveSeed gives each stream numbers of its own', () => {
  const seed = toSeed(9)
  const firsts = Array.from({ length: 1000 }, (_, stream) => uniform(deriveSeed(seed, stream), 0))
  expect(new Set(firsts).size).toBeGreaterThan(990)
  expect(deriveSeed(seed, 4)).toEqual(deriveSeed(seed, 4))
})

describe('sampleWithoutReplacement', () => {
  test('gives distinct ascending integers of [0, n), the same for the same seed', () => {
    const arbitrary = fc
      .tuple(fc.integer({ min: 0, max: 300 }), fc.double({ min: 0, max: 1, noNaN: true }))
      .map(([n, share]) => ({ n, count: Math.floor(n * share) }))
    fc.assert(
      fc.property(arbitrary, fc.integer(), fc.nat(), ({ n, count }, seed, stream) => {
        const chosen = sampleWithoutReplacement(n, count, toSeed(seed), stream)
        expect(chosen).toHaveLength(count)
        const ascends = chosen.every(
          (value, i) => value > (i === 0 ? -1 : chosen[i - 1]) && value < n,
        )
        expect(ascends).toBe(true)
        expect(sampleWithoutReplacement(n, count, toSeed(seed), stream)).toEqual(chosen)
      }),
      { seed: 1, numRuns: 200 },
    )
  })

  test('takes everything when asked for everything', () => {
    expect([...sampleWithoutReplacement(5, 5, toSeed(8), 0)]).toEqual([0, 1, 2, 3, 4])
    expect(sampleWithoutReplacement(0, 0, toSeed(8), 0)).toHaveLength(0)
  })

  test('chooses every subset equally often', () => {
    const counts = new Map<string, number>()
    for (let stream = 0; stream < 3000; stream++) {
      const key = sampleWithoutReplacement(5, 2, toSeed(77), stream).join()
      counts.set(key, (counts.get(key) ?? 0) + 1)
    }
    // C(5, 2) = 10 subsets, 300 expected of each, standard deviation 16
    expect(counts.size).toBe(10)
    for (const count of counts.values()) expect(Math.abs(count - 300)).toBeLessThan(80)
  })

  test('refuses a count outside [0, n]', () => {
    for (const count of [-1, 4, 1.5, Number.NaN]) {
      expect(() => sampleWithoutReplacement(3, count, toSeed(0), 0)).toThrow(
        expect.objectContaining({ code: 'ERR_ZC_ARGUMENT', argument: 'count' }),
      )
    }
  })
})
