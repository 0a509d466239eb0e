import { POLICY_NAMES, type PolicySpec, resolvePolicy } from '../../lib/policy/index'
import { expectRefused } from '../support/errors'
import { compressionOf, describePolicy } from './common'

const specs: [name: string, spec: PolicySpec, needsProbes: boolean][] = [
  ['full', 'full', false],
  ['fp16', 'fp16', false],
  ['zipcache', 'zipcache', true],
  ['zipcache r = 0', { name: 'zipcache', saliencyRatio: 0 }, true],
  ['zipcache r = 1', { name: 'zipcache', saliencyRatio: 1 }, true],
  ['zipcache window 1', { name: 'zipcache', window: 1 }, true],
  ['zipcache window 7', { name: 'zipcache', window: 7, metric: 'accumulated' }, true],
  ['zipcache no shares', { name: 'zipcache', probes: { recent: 0, random: 0 } }, true],
  ['zipcache all rows', { name: 'zipcache', probes: { recent: 1, random: 1 } }, true],
  [
    'zipcache 4/3 keys, 4/2 values',
    {
      name: 'zipcache',
      keyBits: { high: 4, low: 3 },
      valueBits: { high: 4, low: 2 },
      keyRange: { norm: 3 },
      valueRange: { high: 'minmax', low: { norm: 2 } },
    },
    true,
  ],
  ['zipcache locality', { name: 'zipcache', metric: 'locality' }, false],
  ['zipcache causal', { name: 'zipcache', metric: 'causal' }, true],
  ['zipcache all rows by name', { name: 'zipcache', probes: 'all' }, true],
  ['zipcache random', { name: 'zipcache', probes: 'random' }, true],
  ['zipcache recent', { name: 'zipcache', probes: 'recent' }, true],
  ['zipcache special', { name: 'zipcache', probes: 'special' }, true],
  ['zipcache-plus', 'zipcache-plus', true],
  ['zipcache-official', 'zipcache-official', true],
  ['mikv', 'mikv', true],
  ['uniform2', 'uniform2', false],
  ['uniform3', 'uniform3', false],
  ['uniform4', 'uniform4', false],
  ['uniform8', 'uniform8', false],
  ...POLICY_NAMES.map((name): [string, PolicySpec, boolean] => [
    `registered ${name}`,
    name,
    name.startsWith('zipcache') || name === 'mikv',
  ]),
]

for (const [name, spec, needsProbes] of specs) describePolicy(name, spec, needsProbes)

describe('policies by name', () => {
  test.each([...POLICY_NAMES])('%s resolves and keeps its name', (name) => {
    expect(resolvePolicy(name).name).toBe(name)
  })

  test('full keeps the compute type, the others float16', () => {
    expect(resolvePolicy('full')).toEqual({
      name: 'full',
      tail: 'compute',
      attention: 'packed',
      compression: null,
      rows: null,
    })
    expect(resolvePolicy('fp16')).toEqual({ ...resolvePolicy('full'), name: 'fp16', tail: 'f16' })
    for (const name of ['zipcache', 'uniform2']) expect(resolvePolicy(name).tail).toBe('f16')
  })

  test.each([2, 3, 4, 8] as const)('uniform%i stores every K and V at that many bits', (bits) => {
    for (const spec of [`uniform${bits}`, { name: 'uniform', bits } as const]) {
      const { high, low, nSalient } = compressionOf(spec)
      expect(high).toMatchObject({ keyBits: bits, valueBits: bits })
      expect(low).toEqual(high)
      expect([1, 99, 100].map(nSalient)).toEqual([1, 99, 100])
    }
  })

  test.each([
    ['zipcache', 'normalized', 'normalized'],
    ['zipcache-plus', 'normalized', 'normalized'],
    ['zipcache-official', 'causal', 'accumulated'],
    ['mikv', 'accumulated', 'accumulated'],
    [{ name: 'zipcache', metric: 'causal' }, 'causal', 'causal'],
  ] as const)(
    '%j scores prompts and windows by metrics of its own',
    (spec, metric, windowMetric) => {
      expect(compressionOf(spec)).toMatchObject({ metric, windowMetric })
    },
  )

  test('uniform without bits has 4', () => {
    expect(compressionOf('uniform').high).toMatchObject({ keyBits: 4, valueBits: 4 })
    expect(resolvePolicy('uniform').name).toBe('uniform4')
  })

  test('a name as an object is the name as a string', () => {
    const plain = (spec: PolicySpec) => JSON.stringify(resolvePolicy(spec))
    expect(plain({ name: 'zipcache' })).toBe(plain('zipcache'))
    expect(plain({ name: 'fp16' })).toBe(plain('fp16'))
  })

  test.each<[PolicySpec, PolicySpec]>([
    [
      { name: 'uniform4', window: 50 },
      { name: 'uniform', bits: 4, window: 50 },
    ],
    [{ name: 'uniform3-group' }, { name: 'uniform', bits: 3, granularity: 'group' }],
    [
      { name: 'mikv-paper', lowBits: 3 },
      { name: 'mikv', preset: 'paper', lowBits: 3 },
    ],
    [
      { name: 'kivi2', residual: 64 },
      { name: 'kivi', bits: 2, residual: 64 },
    ],
  ])('options go with a name that says some of them: %j is %j', (short, long) => {
    expect(JSON.stringify(resolvePolicy(short))).toBe(JSON.stringify(resolvePolicy(long)))
  })

  test('an option that the name says otherwise is refused', () => {
    expectRefused(() => resolvePolicy({ name: 'uniform4', bits: 2 } as never), {
      code: 'ERR_ZC_ARGUMENT',
      message: /^policy: uniform4's bits is 2, but its name says 4$/,
    })
    const agreeing = resolvePolicy({ name: 'uniform4', bits: 4 } as never)
    expect(JSON.stringify(agreeing)).toBe(JSON.stringify(resolvePolicy('uniform4')))
  })

  test.each<unknown>([
    'zipcach',
    'ZipCache',
    '',
    'h3o',
    'uniform5',
    'uniform0',
    'uniform16',
    'uniform-4',
    'toString',
    '__proto__',
    {},
    { name: 'mikvs' },
    { name: 4 },
    { name: 10n },
    { name: null },
    null,
    7,
    true,
    [],
  ])('%p is refused', (spec) => {
    expectRefused(() => resolvePolicy(spec as PolicySpec), {
      code: 'ERR_ZC_ARGUMENT',
      message: /^policy: .* expected (one of|2|2, 3, 4, 8)/,
    })
  })
})
