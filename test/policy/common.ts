import fc from 'fast-check'
import { type PolicySpec, resolvePolicy } from '../../lib/policy/index'
import type { Compression, PrecisionClass } from '../../lib/policy/policy'
import { toSeed } from '../../lib/random'
import { propertyRuns } from '../support/properties'

/** Lengths of prompts: 1, odd, prime, around 20 (where 5% becomes one token) and a window, long. */
const tokenCounts = fc.oneof(
  fc.constantFrom(1, 2, 3, 7, 19, 20, 21, 39, 40, 99, 100, 101, 1000, 4096),
  fc.integer({ min: 1, max: 5000 }),
)
const seeds = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(toSeed)
const layers = fc.integer({ min: 0, max: 127 })

/** The compression of a policy that has one. */
export function compressionOf(spec: PolicySpec): Compression {
  const { compression } = resolvePolicy(spec)
  if (!compression) throw new Error(`${JSON.stringify(spec)} does not compress`)
  return compression
}

/** Expects token numbers that ascend, below n, the last of them n - 1. */
export function expectProbes(probes: Int32Array, n: number): void {
  expect(probes).toBeInstanceOf(Int32Array)
  probes.forEach((token, i) => {
    if (token < 0 || token >= n || (i > 0 && token <= probes[i - 1])) {
      throw new Error(`probe ${i} is ${token} after ${probes[i - 1]}, expected to rise below ${n}`)
    }
  })
  expect(probes.at(-1)).toBe(n - 1)
}

/**
 * What every policy promises, whatever it decides: plans are functions of their facts alone, and lie within what the cache
 * can do. `needsProbes`: whether it tells tokens apart by the attention that they receive.
 */
export function describePolicy(name: string, spec: PolicySpec, needsProbes: boolean): void {
  describe(`every policy: ${name}`, () => {
    test('is made anew, and the same, each time', () => {
      const plain = (policy: unknown) => JSON.stringify(policy)
      expect(plain(resolvePolicy(spec))).toBe(plain(resolvePolicy(spec)))
      expect(resolvePolicy(spec)).not.toBe(resolvePolicy(spec))
    })

    test('names itself and the type of its tail', () => {
      const { name: own, tail } = resolvePolicy(spec)
      expect(own).not.toBe('')
      expect(['f16', 'compute']).toContain(tail)
    })

    test('says whether rows attend to packed codes, and keeps rows where they do not', () => {
      const { attention, rows, compression } = resolvePolicy(spec)
      expect(attention).toBe(rows ? 'dequantized' : 'packed')
      if (rows) expect(compression).toBeNull()
    })

    const { compression } = resolvePolicy(spec)
    if (!compression) return

    test('stores what it compresses in codes that exist', () => {
      for (const precision of [compression.high, compression.low]) expectPrecision(precision)
      for (const metric of [compression.metric, compression.windowMetric]) {
        expect(['normalized', 'accumulated', 'causal', 'locality']).toContain(metric)
      }
    })

    test('has a window of at least one token', () => {
      expect(Number.isInteger(compression.window)).toBe(true)
      expect(compression.window).toBeGreaterThanOrEqual(1)
    })

    test('calls a whole number of the tokens salient, never fewer of more tokens', () => {
      fc.assert(
        fc.property(tokenCounts, (n) => {
          const nSalient = compression.nSalient(n)
          expect(Number.isInteger(nSalient)).toBe(true)
          expect(nSalient).toBeGreaterThanOrEqual(0)
          expect(nSalient).toBeLessThanOrEqual(n)
          expect(compression.nSalient(n + 1)).toBeGreaterThanOrEqual(nSalient)
        }),
        propertyRuns(100),
      )
    })

    test('draws the probes of a prompt from its seed and layer alone', () => {
      fc.assert(
        fc.property(tokenCounts, seeds, layers, (n, seed, layer) => {
          const probes = compression.promptProbes(n, seed, layer)
          if (needsProbes) expectProbes(probes, n)
          else expect(probes).toHaveLength(0)
          compression.promptProbes(n + 1, seed, layer + 1)
          expect(compression.promptProbes(n, { ...seed }, layer)).toEqual(probes)
          // How many there are does not depend on which tokens are special.
          const special = Int32Array.from({ length: n >> 1 }, (_, i) => 2 * i)
          const told = compression.promptProbes(n, seed, layer, special)
          expect(told).toHaveLength(probes.length)
          if (needsProbes) expectProbes(told, n)
        }),
        propertyRuns(60),
      )
    })

    test('draws the probes of a window from its seed alone', () => {
      fc.assert(
        fc.property(seeds, (seed) => {
          const probes = compression.windowProbes(seed)
          if (needsProbes) expectProbes(probes, compression.window)
          else expect(probes).toHaveLength(0)
          expect(compression.windowProbes({ ...seed })).toEqual(probes)
        }),
        propertyRuns(40),
      )
    })
  })
}

function expectPrecision({ keyBits, valueBits, keyRange, valueRange }: PrecisionClass): void {
  expect([2, 3, 4, 8]).toContain(keyBits)
  expect([2, 3, 4, 8]).toContain(valueBits)
  for (const range of [keyRange, valueRange]) {
    if (range !== 'minmax') expect([2, 3, 4, 5, 6]).toContain(range.norm)
  }
}
