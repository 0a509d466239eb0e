import { histogram, quantile, summarize } from '../../lib/bench/summary'

test.each([
  [[3], { samples: 1, min: 3, p10: 3, median: 3, p90: 3, p99: 3, max: 3 }],
  [[5, 1, 3], { samples: 3, min: 1, p10: 1.4, median: 3, p90: 4.6, p99: 4.96, max: 5 }],
  [[4, 10, 1, 2], { samples: 4, min: 1, median: 3, max: 10 }],
])('summary of %j', (values, expected) => {
  const summary = summarize(values)
  for (const [name, value] of Object.entries(expected)) {
    expect([name, summary[name as keyof typeof summary]]).toEqual([name, expect.closeTo(value, 12)])
  }
})

test('a summary leaves its values in their order', () => {
  const values = [3, 1, 2]
  summarize(values)
  expect(values).toEqual([3, 1, 2])
})

test('quantiles of 0 to 100', () => {
  const sorted = Array.from({ length: 101 }, (_, i) => i)
  for (const q of [0, 0.1, 0.25, 0.5, 0.99, 1]) expect(quantile(sorted, q)).toBeCloseTo(100 * q)
})

describe('histogram', () => {
  test('bins of equal ratio, the largest value in the last one', () => {
    const { edges, counts } = histogram([1, 1.5, 2, 3.9, 4, 16], 4)
    expect(edges).toEqual([1, 2, 4, 8, 16].map((edge) => expect.closeTo(edge, 12)))
    expect(counts.reduce((sum, count) => sum + count)).toBe(6)
    // 2 and 4 are edges, where rounding may take them to either side.
    expect(counts[2]! + counts[1]! + counts[0]!).toBe(5)
    expect(counts[3]).toBe(1)
  })

  test('of equal values', () => {
    const { edges, counts } = histogram([7, 7, 7], 3)
    expect(counts).toEqual([3, 0, 0])
    expect(edges[0]).toBe(7)
    expect(edges.every((edge, i) => i === 0 || edge > edges[i - 1]!)).toBe(true)
  })
})
