import fc from 'fast-check'
import { bootstrapMean, mcnemar, signFlipTest, wilson } from '../../lib/eval/statistics'
import { expectRefused } from '../support/errors'

describe('wilson', () => {
  // By hand, z^2 = 3.841459: 8 of 10 is (0.8 + 0.192073 -+ 1.959964 sqrt(0.016 + 0.009604)) / 1.384146.
  test.each([
    [8, 10, 0.490162, 0.943318],
    [0, 10, 0, 0.277533], // 3.841459 / 13.841459
    [10, 10, 0.722467, 1],
    [50, 100, 0.403832, 0.596168],
    [1, 1, 0.206549, 1], // 1 / 4.841459
  ])('%i of %i', (hits, n, low, high) => {
    const estimate = wilson(hits, n)
    expect(estimate.value).toBe(hits / n)
    expect(estimate.low).toBeCloseTo(low, 5)
    expect(estimate.high).toBeCloseTo(high, 5)
  })

  test.each([
    ['hits', 11, 10],
    ['hits', -1, 10],
    ['n', 0, 0],
    ['n', 1, Number.NaN],
  ])('refuses %s of %p in %p', (argument, hits, n) => {
    expectRefused(() => wilson(hits, n), { code: 'ERR_ZC_ARGUMENT', argument })
  })

  test('misses are hits turned round', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1000 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (n, p) => {
          const hits = Math.round(p * n)
          const [a, b] = [wilson(hits, n), wilson(n - hits, n)]
          expect(a.low).toBeCloseTo(1 - b.high, 12)
          expect(a.low).toBeLessThanOrEqual(a.value)
          expect(a.high).toBeGreaterThanOrEqual(a.value)
        },
      ),
    )
  })
})

describe('mcnemar', () => {
  test.each([
    [0, 0, 1],
    [1, 0, 1], // 2 / 2
    [5, 0, 2 / 32],
    [0, 5, 2 / 32],
    [5, 1, (2 * (1 + 6)) / 64],
    [7, 2, (2 * (1 + 9 + 36)) / 512],
    [3, 3, 1], // 2 (1 + 6 + 15 + 20) / 64 is above 1
  ])('%i wins, %i losses', (wins, losses, p) => {
    expect(mcnemar(wins, losses)).toBeCloseTo(p, 12)
  })

  test('thousands of questions do not overflow', () => {
    expect(mcnemar(2000, 2000)).toBe(1)
    const p = mcnemar(5000, 4700)
    // The normal approximation: z = (300 - 1) / sqrt(9700) = 3.036, p = 0.0024.
    expect(p).toBeCloseTo(0.0024, 4)
  })
})

describe('signFlipTest', () => {
  test('all signs of few differences', () => {
    // Of 2^3 sums of -+1 -+2 -+3 two are as far as 6.
    expect(signFlipTest([1, 2, 3])).toBe(2 / 8)
    // |1 - 2 + 3| = 2: all but the two with |sum| 0 are as far.
    expect(signFlipTest([1, -2, 3])).toBe(6 / 8)
    expect(signFlipTest([0, 0])).toBe(1)
  })

  test('draws signs of many', () => {
    expect(signFlipTest(new Array(30).fill(1))).toBe(1 / 10_000)
    const balanced = Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? 1 : -1))
    expect(signFlipTest(balanced)).toBe(1)
  })

  test('agrees with the exact test where both can be had', () => {
    // 13 differences of one size are McNemar's question: draws against the binomial sum.
    const differences = [...new Array(11).fill(1), -1, -1]
    expect(Math.abs(signFlipTest(differences) - mcnemar(11, 2))).toBeLessThan(0.006)
  })
})

describe('bootstrapMean', () => {
  test('one value, and equal values, have no width', () => {
    expect(bootstrapMean([0.25])).toEqual({ value: 0.25, low: 0.25, high: 0.25 })
    expect(bootstrapMean([2, 2, 2])).toEqual({ value: 2, low: 2, high: 2 })
  })

  test('the width is that of the normal approximation', () => {
    const values = Array.from({ length: 400 }, (_, i) => (i % 20) / 20)
    const { value, low, high } = bootstrapMean(values)
    expect(value).toBeCloseTo(0.475, 12)
    // sd 0.288, standard error 0.0144
    expect(high - value).toBeCloseTo(1.96 * 0.0144, 2)
    expect(value - low).toBeCloseTo(1.96 * 0.0144, 2)
    expect(bootstrapMean(values)).toEqual({ value, low, high })
  })
})
