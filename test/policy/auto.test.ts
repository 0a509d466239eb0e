/** r chosen head by head, and scores without the bias of position. */
import fc from 'fast-check'
import { salientCounts } from '../../lib/policy/auto-ratio'
import { resolvePolicy } from '../../lib/policy/index'
import { positionTrend, withoutPositionBias } from '../../lib/policy/position-bias'
import { propertyRuns } from '../support/properties'
import { normals } from '../support/random-data'
import { compressionOf } from './common'

describe('salient tokens of a layer', () => {
  const n = 80
  const all = { pages: Number.POSITIVE_INFINITY, coverage: 1 }
  /** Scores of heads, each falling like x^-power. */
  const falling = (...powers: number[]) =>
    Float32Array.from(
      { length: powers.length * n },
      (_, i) => ((i % n) + 1) ** -powers[Math.floor(i / n)],
    )

  test('go to the head whose attention is spread, by whole pages', () => {
    const scores = falling(0.1, 3)
    const gains = Float64Array.of(1, 1)
    const counts = salientCounts({ scores, gains }, { ...all, pages: 4 })
    expect(counts.reduce((a, b) => a + b)).toBe(64)
    expect(counts[0]).toBeGreaterThan(counts[1])
  })

  test('go to the head that low bits hurt', () => {
    const scores = falling(0.5, 0.5)
    const { pages } = { pages: 4 }
    const counts = (a: number, b: number) => [
      ...salientCounts({ scores, gains: Float64Array.of(a, b) }, { ...all, pages }),
    ]
    expect(counts(1, 1)).toEqual([32, 32])
    expect(counts(1000, 1)).toEqual([64, 0])
    expect(counts(1, 1000)).toEqual([0, 64])
  })

  test('go to all heads in turn, the first one first, where all are alike', () => {
    const scores = new Float32Array(3 * n).fill(1)
    const gains = Float64Array.of(1, 1, 1)
    for (const [pages, counts] of [
      [3, [16, 16, 16]],
      [4, [32, 16, 16]],
    ] as const) {
      expect([...salientCounts({ scores, gains }, { ...all, pages })]).toEqual(counts)
    }
  })

  test('are as few as hold the coverage', () => {
    // One token holds nearly all: a page is enough.
    const scores = new Float32Array(n).fill(1e-4)
    scores[50] = 1
    const gains = Float64Array.of(3)
    expect([...salientCounts({ scores, gains }, { ...all, coverage: 0.9 })]).toEqual([16])
    expect([...salientCounts({ scores, gains }, all)]).toEqual([n])
  })

  test('never exceed the budget, nor what there is', () => {
    const facts = fc.record({
      nHeads: fc.integer({ min: 1, max: 5 }),
      nTokens: fc.integer({ min: 1, max: 100 }),
      pages: fc.integer({ min: 0, max: 40 }),
      coverage: fc.double({ min: 0.01, max: 1, noNaN: true }),
      seed: fc.nat(),
    })
    fc.assert(
      fc.property(facts, ({ nHeads, nTokens, pages, coverage, seed }) => {
        const scores = normals(seed, nHeads * nTokens).map(Math.abs)
        const gains = Float64Array.from(normals(seed + 1, nHeads), Math.abs)
        const counts = salientCounts({ scores, gains }, { pages, coverage })
        expect(counts).toHaveLength(nHeads)
        let used = 0
        for (const count of counts) {
          expect(count === nTokens || count % 16 === 0).toBe(true)
          expect(count).toBeLessThanOrEqual(nTokens)
          used += Math.ceil(count / 16)
        }
        expect(used).toBeLessThanOrEqual(pages)
      }),
      propertyRuns(100),
    )
  })
})

describe('the bias of position', () => {
  test('is a mean for each stretch', () => {
    const scores = Float32Array.from({ length: 64 }, (_, i) => Math.floor(i / 16))
    expect([...positionTrend(scores)]).toEqual([0, 1, 2, 3])
    expect(positionTrend(new Float32Array(31))).toHaveLength(0)
  })

  test('is taken out: a trend becomes level, what stands out of it still does', () => {
    const n = 640
    const scores = Float32Array.from({ length: n }, (_, i) => (1 + i / 64) * (i % 40 === 7 ? 5 : 1))
    const fair = withoutPositionBias(scores)
    const trend = positionTrend(fair)
    expect(Math.max(...trend) / Math.min(...trend)).toBeLessThan(1.1)
    expect(Math.max(...positionTrend(scores)) / Math.min(...positionTrend(scores))).toBeGreaterThan(
      5,
    )
    const top = [...fair.keys()].sort((a, b) => fair[b] - fair[a]).slice(0, n / 40)
    expect(top.every((i) => i % 40 === 7)).toBe(true)
    // Uncorrected, the newest tokens win.
    const biased = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, n / 40)
    expect(biased.every((i) => i % 40 === 7)).toBe(false)
  })

  test('needs something to be measured on', () => {
    const short = Float32Array.of(3, 1, 2)
    expect([...withoutPositionBias(short)]).toEqual([3, 1, 2])
    expect([...withoutPositionBias(new Float32Array(100))]).toEqual(new Array(100).fill(0))
  })

  test('of a stretch that nobody looks at is bounded', () => {
    const scores = new Float32Array(320).fill(1)
    scores.fill(0, 0, 160)
    scores[20] = 1e-9
    expect(withoutPositionBias(scores)[20]).toBeLessThan(1e-5)
  })
})

describe('options', () => {
  test('auto is accumulated attention and as many tokens as the fixed r, or all that a budget allows', () => {
    expect(compressionOf({ name: 'zipcache', saliencyRatio: 'auto' })).toMatchObject({
      metric: 'accumulated',
      auto: { coverage: 1, budgetBytes: null, share: 0.6 },
      correctsPosition: false,
    })
    expect(
      compressionOf({
        name: 'zipcache-plus',
        saliencyRatio: 'auto',
        metric: 'normalized',
        auto: { budgetBytes: 5000 },
        saliency: { correct: 'position' },
      }),
    ).toMatchObject({
      metric: 'normalized',
      auto: { coverage: 1, budgetBytes: 5000, share: 1 },
      correctsPosition: true,
    })
    expect(compressionOf('zipcache')).toMatchObject({ auto: null, correctsPosition: false })
    expect(compressionOf({ name: 'mikv', saliencyRatio: 'auto' }).nSalient(10)).toBe(6)
  })

  test.each<[object, string]>([
    [{ saliencyRatio: 'all' }, 'saliencyRatio'],
    [{ auto: { coverage: 0.5 } }, 'auto'],
    [{ saliencyRatio: 'auto', auto: { coverage: 0 } }, 'auto.coverage'],
    [{ saliencyRatio: 'auto', auto: { budgetBytes: 0 } }, 'auto.budgetBytes'],
    [{ saliencyRatio: 'auto', auto: { budgetBytes: 1.5 } }, 'auto.budgetBytes'],
    [{ saliencyRatio: 'auto', auto: { budget: 9 } }, 'auto.budget'],
    [{ saliencyRatio: 'auto', metric: 'locality' }, 'metric'],
    [{ saliency: { correct: 'frequency' } }, 'saliency.correct'],
    [{ saliency: { corrects: 'position' } }, 'saliency.corrects'],
    [{ saliency: 'position' }, 'saliency'],
    [{ saliency: { correct: 'position' }, metric: 'locality' }, 'metric'],
  ])('%j is refused', (options, argument) => {
    expect(() => resolvePolicy({ name: 'zipcache', ...options } as never)).toThrow(
      expect.objectContaining({ code: 'ERR_ZC_ARGUMENT', argument: `policy.${argument}` }),
    )
  })
})
