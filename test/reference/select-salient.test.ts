import fc from 'fast-check'
import { selectSalient } from '../../lib/reference'
import { selectionShapes } from '../support/shapes'

const plain = (options: Parameters<typeof selectSalient>[0]) => {
  const { salient, regular } = selectSalient(options)
  return { salient: [...salient], regular: [...regular] }
}

describe('selectSalient', () => {
  test('takes the highest of each head, both lists ascending', () => {
    const scores = [0.1, 0.9, 0.3, 0.7, 5, 4, 3, 2]
    expect(plain({ scores, nHeads: 2, n: 4, count: 2 })).toEqual({
      salient: [1, 3, 0, 1],
      regular: [0, 2, 2, 3],
    })
  })

  test('ties go to the lowest index', () => {
    expect(plain({ scores: [1, 2, 1, 1, 0], nHeads: 1, n: 5, count: 3 })).toEqual({
      salient: [0, 1, 2],
      regular: [3, 4],
    })
    expect(plain({ scores: [-0, 0, -0], nHeads: 1, n: 3, count: 1 }).salient).toEqual([0])
  })

  test('NaN ranks below -infinity', () => {
    const scores = [Number.NaN, Number.NEGATIVE_INFINITY, Number.NaN, 0]
    expect(plain({ scores, nHeads: 1, n: 4, count: 2 }).salient).toEqual([1, 3])
    expect(plain({ scores, nHeads: 1, n: 4, count: 3 }).salient).toEqual([0, 1, 3])
  })

  const coarse = fc.oneof(fc.integer({ min: 0, max: 5 }), fc.constant(Number.NaN))

  test('keeps exactly count: those with fewer than count better ones', () => {
    fc.assert(
      fc.property(fc.array(coarse, { maxLength: 40 }), fc.nat(40), (scores, limit) => {
        const n = scores.length
        const count = Math.min(limit, n)
        const { salient, regular } = plain({ scores, nHeads: 1, n, count })
        expect(salient).toHaveLength(count)
        expect([...salient, ...regular].sort((a, b) => a - b)).toEqual([...scores.keys()])
        const value = (token: number) => (Number.isNaN(scores[token]) ? -1 : scores[token])
        const beats = (a: number, b: number) =>
          value(a) > value(b) || (value(a) === value(b) && a < b)
        for (let token = 0; token < n; token++) {
          const better = [...scores.keys()].filter((other) => beats(other, token)).length
          expect(salient.includes(token)).toBe(better < count)
        }
      }),
      { seed: 6, numRuns: 200 },
    )
  })

  test.each(selectionShapes)('$nHeads heads, $count of $n', ({ nHeads, n, count }) => {
    const scores = Float32Array.from({ length: nHeads * n }, (_, i) => (i * 7919) % 101)
    const { salient, regular } = selectSalient({ scores, nHeads, n, count })
    expect(salient).toHaveLength(nHeads * count)
    expect(regular).toHaveLength(nHeads * (n - count))
    for (let head = 0; head < nHeads; head++) {
      const scoreOf = (token: number) => scores[head * n + token]
      const kept = [...salient.slice(head * count, (head + 1) * count)]
      const rest = [...regular.slice(head * (n - count), (head + 1) * (n - count))]
      expect(kept).toEqual(kept.toSorted((a, b) => a - b))
      expect(rest).toEqual(rest.toSorted((a, b) => a - b))
      const lowest = Math.min(...kept.map(scoreOf))
      expect(Math.max(...rest.map(scoreOf), Number.NEGATIVE_INFINITY)).toBeLessThanOrEqual(lowest)
    }
  })
})
