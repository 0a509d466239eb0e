import fc from 'fast-check'
import { PROBE_STRATEGIES, promptProbes, recentAndRandomProbes } from '../../lib/policy/probes'
import { toSeed } from '../../lib/random'
import { propertyRuns } from '../support/properties'
import { compressionOf, expectProbes } from './common'

const seed = toSeed(7)

describe('recent and random probes', () => {
  test('there are as many as the shares say, the newest tokens first', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 3000 }),
        fc.integer({ min: 0, max: 100 }),
        fc.integer({ min: 0, max: 100 }),
        fc.maxSafeNat(),
        (n, recentPercent, randomPercent, number) => {
          const shares = { recent: recentPercent / 100, random: randomPercent / 100 }
          const probes = recentAndRandomProbes(n, shares, toSeed(number), 0)
          expectProbes(probes, n)
          // Whole-number arithmetic: percent times n / 100 has no rounding to argue about.
          const nRecent = Math.max(1, Math.floor((recentPercent * n) / 100))
          const nRandom = Math.min(n - nRecent, Math.floor((randomPercent * n) / 100))
          expect(probes).toHaveLength(nRecent + nRandom)
          const newest = Array.from({ length: nRecent }, (_, i) => n - nRecent + i)
          expect([...probes.subarray(nRandom)]).toEqual(newest)
        },
      ),
      propertyRuns(200),
    )
  })

  test('the random ones are any of the others, equally often', () => {
    const counts = new Array<number>(38).fill(0)
    const draws = 4000
    for (let stream = 0; stream < draws; stream++) {
      const probes = recentAndRandomProbes(40, { recent: 0.05, random: 0.05 }, seed, stream)
      expect([...probes.subarray(2)]).toEqual([38, 39])
      for (const probe of probes.subarray(0, 2)) counts[probe]++
    }
    const expected = (draws * 2) / 38
    // chi-squared with 37 degrees of freedom exceeds 77 once in 7000 seeds
    const chi2 = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)
    expect(chi2).toBeLessThan(77)
  })
})

describe('special probes', () => {
  const shares = { recent: 0.05, random: 0.1, special: 0.1 }
  const specialRows = Int32Array.from({ length: 40 }, (_, i) => 5 * i) // of 200 rows

  test('are drawn among the special rows that are not recent, beside the others', () => {
    const probes = promptProbes(shares, 200, seed, 3, specialRows)
    expectProbes(probes, 200)
    expect(probes).toHaveLength(10 + 20 + 20)
    const older = probes.filter((row) => row < 190)
    expect(older.filter((row) => row % 5 === 0).length).toBeGreaterThanOrEqual(20)
    expect(older.filter((row) => row % 5 !== 0).length).toBeGreaterThan(0)
  })

  test('are all there are, and random ones, where special rows are few', () => {
    const few = Int32Array.of(0, 17, 100, 199)
    const probes = [...promptProbes({ ...shares, random: 0 }, 200, seed, 0, few)]
    expect(probes).toHaveLength(10 + 20)
    expect(probes).toEqual(expect.arrayContaining([0, 17, 100, 199]))
  })

  test('differ by layer and seed', () => {
    const draws = [0, 1, 2].flatMap((layer) =>
      [seed, toSeed(8)].map((own) => promptProbes(shares, 200, own, layer, specialRows).join()),
    )
    expect(new Set(draws).size).toBe(draws.length)
  })

  test('are drawn anew for each layer', () => {
    const own = { recent: 0.05, random: 0, special: 0.1 }
    const draws = [0, 1, 2].map((layer) => promptProbes(own, 200, seed, layer, specialRows).join())
    expect(new Set(draws).size).toBe(draws.length)
  })

  test('are in no window, where random ones stand for them', () => {
    const { windowProbes, usesSpecialTokens } = compressionOf({
      name: 'zipcache',
      probes: 'special',
    })
    expect(usesSpecialTokens).toBe(true)
    expect(windowProbes(seed)).toHaveLength(10 + 1)
  })
})

describe('strategies of Table 2', () => {
  test.each([...PROBE_STRATEGIES])('%s takes a tenth of the rows, or all', (probes) => {
    const compression = compressionOf({ name: 'zipcache', probes })
    const n = compression.promptProbes(1000, seed, 0).length
    // the newest row is always one
    expect(n).toBe({ all: 1000, 'random+recent': 100, recent: 100 }[probes as string] ?? 101)
    // a window keeps its probes' queries: not those of all its rows
    expect(compression.windowProbes(seed).length).toBeLessThanOrEqual(11)
  })

  test('the newest tokens need none', () => {
    const { promptProbes, windowProbes } = compressionOf({ name: 'zipcache', metric: 'locality' })
    expect([promptProbes(1000, seed, 0), windowProbes(seed)]).toEqual([
      new Int32Array(0),
      new Int32Array(0),
    ])
  })
})

describe("zipcache's plans", () => {
  const { promptProbes, windowProbes, nSalient, window } = compressionOf('zipcache')

  test('5% recent and 5% random of a prompt', () => {
    const probes = promptProbes(1000, seed, 0)
    expect(probes).toHaveLength(100)
    expect([...probes.subarray(50)]).toEqual(Array.from({ length: 50 }, (_, i) => 950 + i))
  })

  test('a window of 100 has 10 probes, the last five tokens among them', () => {
    const probes = windowProbes(seed)
    expect(probes).toHaveLength(10)
    expect([...probes.subarray(5)]).toEqual([95, 96, 97, 98, 99])
    expect(window).toBe(100)
  })

  test('a prompt of fewer than 20 tokens still has a probe, its last token', () => {
    for (let n = 1; n < 20; n++) expect([...promptProbes(n, seed, 0)]).toEqual([n - 1])
  })

  test('layers and seeds draw differently', () => {
    const draws = [0, 1, 2, 31].flatMap((layer) =>
      [seed, toSeed(8), toSeed(-1)].map((own) => promptProbes(400, own, layer).join()),
    )
    expect(new Set(draws).size).toBe(draws.length)
    const windows = [0, 1, 2, 3].map((own) => windowProbes(toSeed(own)).join())
    expect(new Set(windows).size).toBe(windows.length)
  })

  test('r of the tokens are salient, the regular share rounded down', () => {
    // n - floor(0.4 n), by hand
    expect([1, 2, 3, 4, 5, 7, 99, 101, 840].map(nSalient)).toEqual([1, 2, 2, 3, 3, 5, 60, 61, 504])
    for (const [ratio, n, expected] of [
      [0, 10, 0],
      [1, 10, 10],
      [0.7, 10, 7],
      [0.2, 10, 2],
      [0.1, 10, 1],
      [0.9, 1000, 900],
    ] as const) {
      expect(compressionOf({ name: 'zipcache', saliencyRatio: ratio }).nSalient(n)).toBe(expected)
    }
  })
})
