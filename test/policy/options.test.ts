import { PAGE_TOKENS } from '../../lib/cache/index'
import { ZipCacheError } from '../../lib/errors'
import { type PolicySpec, resolvePolicy } from '../../lib/policy/index'
import { toSeed } from '../../lib/random'
import { compressionOf } from './common'

type Bad = [option: string, value: unknown]

/** Expects `{ name, ...options }` to be refused with an error whose argument and text name the option. */
function expectBadOption(name: string, options: object, argument: string): void {
  let error: unknown
  try {
    resolvePolicy({ name, ...options } as PolicySpec)
  } catch (e) {
    error = e
  }
  expect(error).toBeInstanceOf(ZipCacheError)
  expect(error).toMatchObject({ code: 'ERR_ZC_ARGUMENT', argument: `policy.${argument}` })
  expect((error as Error).message).toMatch(/^policy: /)
  expect((error as Error).message).toContain(argument)
  expect((error as Error).message).toContain(name)
}

const notNumbers: unknown[] = [Number.NaN, '1', true, {}, [], 1n, () => 1]
const notBits: unknown[] = [0, 1, 5, 16, -4, 2.5, Number.NaN, '4', true, {}, 4n]
const notRanges: unknown[] = [
  'max',
  3,
  true,
  [],
  {
    norm: 1,
  },
  { norm: 7 },
  { norm: 2.5 },
  { norm: '3' },
  { norm: 3, power: 2 },
]

describe('zipcache options that are refused', () => {
  const bad: Bad[] = [
    ...[-0.01, 1.01, Number.POSITIVE_INFINITY, ...notNumbers].map((v): Bad => ['saliencyRatio', v]),
    ...[0, -1, 65537, 1.5, ...notNumbers].map((v): Bad => ['window', v]),
    ...notBits.map((v): Bad => ['highBits', v]),
    ...notBits.map((v): Bad => ['lowBits', v]),
    ...['normalised', 0, true, {}].map((v): Bad => ['metric', v]),
    ...['4', 4, true].map((v): Bad => ['keyBits', v]),
    ...['4', 4, true].map((v): Bad => ['valueBits', v]),
    ...['5%', 0.1, true].map((v): Bad => ['probes', v]),
    ...[...notRanges, { high: 'max' }, { high: { norm: 9 } }, { middle: 'minmax' }].flatMap(
      (v): Bad[] => [
        ['keyRange', v],
        ['valueRange', v],
      ],
    ),
  ]
  test.each(bad)('%s: %p', (option, value) => {
    expectBadOption('zipcache', { [option]: value }, option)
  })

  test.each<[string, object, string]>([
    ['keyBits.high', { keyBits: { high: 5 } }, 'keyBits.high'],
    ['keyBits.low', { keyBits: { high: 4, low: '2' } }, 'keyBits.low'],
    ['valueBits.low', { valueBits: { low: 16 } }, 'valueBits.low'],
    ['valueBits.middle', { valueBits: { middle: 4 } }, 'valueBits.middle'],
    ['lowBits above highBits', { lowBits: 4, highBits: 2 }, 'lowBits'],
    ['valueBits.low above', { highBits: 8, valueBits: { high: 2, low: 3 } }, 'valueBits.low'],
    ['auto beside another ratio', { auto: { share: 0.5 } }, 'auto'],
    ['keyBits as a pair', { keyBits: [4, 2] }, 'keyBits.0'],
    ['probes.recent', { probes: { recent: -0.1 } }, 'probes.recent'],
    ['probes.random', { probes: { random: 1.5 } }, 'probes.random'],
    ['probes.random as text', { probes: { random: '5' } }, 'probes.random'],
    ['probes.special', { probes: { special: 2 } }, 'probes.special'],
    ['probes.newest', { probes: { newest: 0.1 } }, 'probes.newest'],
    ['an unknown option', { saliencyRation: 0.6 }, 'saliencyRation'],
    ["another policy's option", { bits: 4 }, 'bits'],
  ])('%s', (_, options, argument) => {
    expectBadOption('zipcache', options, argument)
  })

  test('a value that JSON cannot say is named all the same', () => {
    const loop: { norm?: unknown } = {}
    loop.norm = loop
    expectBadOption('zipcache', { keyRange: loop }, 'keyRange')
    expect(() => resolvePolicy({ name: 'zipcache', window: Number.NaN })).toThrow('is NaN')
  })
})

describe('uniform options that are refused', () => {
  const bad: Bad[] = [
    ...notBits.flatMap((v): Bad[] => [
      ['bits', v],
      ['keyBits', v],
      ['valueBits', v],
    ]),
    ...[0, 65537, 1.5, ...notNumbers].map((v): Bad => ['window', v]),
    ...[...notRanges, { high: 'minmax' }].flatMap((v): Bad[] => [
      ['keyRange', v],
      ['valueRange', v],
    ]),
    ['saliencyRatio', 0.6],
    ['highBits', 4],
  ]
  test.each(bad)('%s: %p', (option, value) => {
    expectBadOption('uniform', { [option]: value }, option)
  })
})

describe('options of the policies that keep rows', () => {
  test.each<[string, object, string]>([
    ['uniform', { granularity: 'head' }, 'granularity'],
    ['rotated', { bits: 5 }, 'bits'],
    ['rotated', { groupSize: 48 }, 'groupSize'],
    ['rotated', { range: 'max' }, 'range'],
    ['rotated', { window: 0 }, 'window'],
    ['rotated', { granularity: 'token' }, 'granularity'],
    ['kivi', { bits: 3 }, 'bits'],
    ['kivi', { groupSize: 24 }, 'groupSize'],
    ['kivi', { groupSize: 8 }, 'groupSize'],
    ['kivi', { residual: 100 }, 'residual'],
    ['kivi', { residual: 96, groupSize: 64 }, 'residual'],
    ['h2o', { heavy: 1.5 }, 'heavy'],
    ['h2o', { recent: -0.1 }, 'recent'],
    ['h2o', { window: 100 }, 'window'],
    ['snapkv', { capacity: 1 }, 'capacity'],
    ['snapkv', { window: 64, capacity: 64 }, 'window'],
    ['snapkv', { kernel: 4 }, 'kernel'],
    ['snapkv', { pooling: 'mean' }, 'pooling'],
  ])('%s: %j is refused', (name, options, argument) => {
    expectBadOption(name, options, argument)
  })
})

test.each(['full', 'fp16'])('%s has no options', (name) => {
  expectBadOption(name, { window: 100 }, 'window')
})

describe('options that are read', () => {
  test("zipcache's defaults are the paper's", () => {
    const policy = resolvePolicy('zipcache')
    const minmax = { keyRange: 'minmax', valueRange: 'minmax' }
    expect(policy.compression).toMatchObject({
      window: 100,
      metric: 'normalized',
      high: { keyBits: 4, valueBits: 4, ...minmax },
      low: { keyBits: 2, valueBits: 2, ...minmax },
    })
    const { nSalient } = compressionOf('zipcache')
    expect(nSalient(100)).toBe(60)
    expect(nSalient(1000)).toBe(600)
  })

  test("zipcache-plus's defaults are its own, options change them one by one", () => {
    const cube = { keyRange: { norm: 3 }, valueRange: 'minmax' }
    expect(compressionOf('zipcache-plus')).toMatchObject({
      window: 112,
      metric: 'normalized',
      high: { keyBits: 4, valueBits: 4, ...cube },
      low: { keyBits: 3, valueBits: 2, ...cube },
    })
    expect(compressionOf('zipcache-plus').nSalient(1000)).toBe(100)
    // Salient tokens of a window fill their pages.
    for (const [window, saliencyRatio, nSalient] of [
      [112, undefined, 16],
      [160, undefined, 16],
      [161, undefined, 32],
      [112, 0, 0],
      [112, 1, 112],
      [10, 0.5, 10],
    ] as const) {
      const plan = compressionOf({ name: 'zipcache-plus', window, saliencyRatio })
      expect(plan.nSalient(window)).toBe(nSalient)
    }
    expect(compressionOf('zipcache-plus').nSalient(112)).toBe(PAGE_TOKENS)
    expect(
      compressionOf({
        name: 'zipcache-plus',
        highBits: 8,
        keyRange: { low: 'minmax' },
        metric: 'accumulated',
      }),
    ).toMatchObject({
      metric: 'accumulated',
      high: { keyBits: 8, valueBits: 8, keyRange: { norm: 3 } },
      low: { keyBits: 3, valueBits: 2, keyRange: 'minmax' },
    })
  })

  test("the authors' code: causal counts in prompts, the closing row in windows", () => {
    const compression = compressionOf({ name: 'zipcache-official', window: 30 })
    expect(compression).toMatchObject({ metric: 'causal', windowMetric: 'accumulated' })
    expect([...compression.windowProbes(toSeed(1))]).toEqual([29])
    expect(compression.nSalient(100)).toBe(60)
  })

  test.each<[string, object, string]>([
    ['zipcache-official', { metric: 'normalized' }, 'metric'],
    ['mikv', { metric: 'normalized' }, 'metric'],
    ['mikv', { probes: 'recent' }, 'probes'],
    ['zipcache-plus', { bits: 4 }, 'bits'],
  ])('%s has no option of %j', (name, options, argument) => {
    expectBadOption(name, options, argument)
  })

  test('uniform is min/max at a window of 100 by default', () => {
    const precision = { keyBits: 4, valueBits: 4, keyRange: 'minmax', valueRange: 'minmax' }
    expect(compressionOf('uniform')).toMatchObject({ window: 100, high: precision, low: precision })
  })

  test('K and V have bits of their own, which win over bits for both', () => {
    expect(
      compressionOf({ name: 'zipcache', highBits: 8, lowBits: 3, valueBits: { low: 2 } }),
    ).toMatchObject({
      high: { keyBits: 8, valueBits: 8 },
      low: { keyBits: 3, valueBits: 2 },
    })
    expect(
      compressionOf({
        name: 'zipcache',
        keyBits: { high: 4, low: 3 },
        valueBits: { high: 2, low: 2 },
      }),
    ).toMatchObject({ high: { keyBits: 4, valueBits: 2 }, low: { keyBits: 3, valueBits: 2 } })
    expect(compressionOf({ name: 'uniform', bits: 2, keyBits: 4 }).high).toMatchObject({
      keyBits: 4,
      valueBits: 2,
    })
  })

  test('K and V, salient and regular, have ranges of their own', () => {
    expect(
      compressionOf({
        name: 'zipcache',
        keyRange: { norm: 3 },
        valueRange: { low: { norm: 2 } },
      }),
    ).toMatchObject({
      high: { keyRange: { norm: 3 }, valueRange: 'minmax' },
      low: { keyRange: { norm: 3 }, valueRange: { norm: 2 } },
    })
    expect(compressionOf({ name: 'uniform', valueRange: { norm: 6 } }).high).toMatchObject({
      keyRange: 'minmax',
      valueRange: { norm: 6 },
    })
  })

  test('null and undefined mean the default', () => {
    const none = { saliencyRatio: undefined, keyBits: null, keyRange: null, probes: undefined }
    const policy = resolvePolicy({ name: 'zipcache', ...none } as unknown as PolicySpec)
    expect(JSON.stringify(policy)).toBe(JSON.stringify(resolvePolicy('zipcache')))
  })

  test.each([
    [5, 'policy: is 5, expected one of full, '],
    [null, 'policy: is null, expected'],
    [{}, 'policy: is undefined, expected'],
    ['none', 'policy: is "none", expected'],
  ])('%j is no policy', (given, message) => {
    expect(() => resolvePolicy(given as PolicySpec)).toThrow(message)
  })

  test('the bounds themselves are allowed', () => {
    for (const saliencyRatio of [0, 1]) resolvePolicy({ name: 'zipcache', saliencyRatio })
    for (const window of [1, 65536]) resolvePolicy({ name: 'uniform', window })
    for (const share of [0, 1]) {
      resolvePolicy({ name: 'zipcache', probes: { recent: share, random: share } })
    }
  })
})
