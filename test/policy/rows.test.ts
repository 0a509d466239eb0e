/** Policies whose rows are dequantized: their plans, without native code. */
import fc from 'fast-check'
import { type PolicySpec, resolvePolicy } from '../../lib/policy/index'
import type { KeptPlan, QuantizedPlan, RowPlan, TieredPlan } from '../../lib/policy/policy'
import { heaviest, pooled } from '../../lib/policy/scores'
import { expectRefused } from '../support/errors'
import { propertyRuns } from '../support/properties'

function planOf(spec: PolicySpec): RowPlan {
  const { rows } = resolvePolicy(spec)
  if (!rows) throw new Error(`${JSON.stringify(spec)} keeps no rows`)
  return rows
}
const quantized = (spec: PolicySpec) => planOf(spec) as QuantizedPlan
const kept = (spec: PolicySpec) => planOf(spec) as KeptPlan

const BLOCK = 16

const quantizing: PolicySpec[] = [
  'uniform4-group',
  'uniform2-token',
  { name: 'uniform', granularity: 'channel', window: 7 },
  'rotated4',
  'kivi2',
  'kivi4',
  { name: 'kivi', groupSize: 64, residual: 192 },
  'gear4',
  'gear2',
]

describe.each(quantizing)('%j', (spec) => {
  test('quantizes the oldest tokens, never one twice, and leaves whole blocks', () => {
    const steps = fc.array(fc.integer({ min: 1, max: 300 }), { maxLength: 20 })
    fc.assert(
      fc.property(steps, (turns) => {
        for (const codec of [quantized(spec).key, quantized(spec).value]) {
          let [total, before] = [0, 0]
          for (const n of turns) {
            const now = codec.nQuantized(total + n, before)
            expect(now).toBeGreaterThanOrEqual(before)
            expect(now).toBeLessThanOrEqual(total + n)
            // What goes out of the old rows in 16 bits is whole blocks, or all of them.
            if (now < total) expect((now - before) % BLOCK).toBe(0)
            expect(codec.nQuantized(total + n, now)).toBe(now)
            total += n
            before = now
          }
        }
      }),
      propertyRuns(100),
    )
  })
})

test('gear has the published settings', () => {
  const correction = { outliers: 0.02 }
  const four = { bits: 4, groupSize: 0, tokenGroup: 0, correction }
  expect(quantized('gear4').key).toMatchObject({ ...four, scheme: 'channelwise' })
  expect(quantized('gear4').value).toMatchObject({ ...four, scheme: 'tokenwise' })
  const two = { bits: 2, correction }
  expect(quantized('gear2').key).toMatchObject({ ...two, scheme: 'channelwise', tokenGroup: 64 })
  expect(quantized('gear2').value).toMatchObject({ ...two, scheme: 'groupwise', groupSize: 64 })
  const rank = (n: number) => quantized('gear4').key.correction?.rank(n)
  expect([20, 64, 65, 5000].map(rank)).toEqual([2, 2, 4, 4])
  for (const n of [1, 63]) expect(quantized('gear4').key.nQuantized(n, 0)).toBe(0)
  for (const n of [64, 300]) expect(quantized('gear4').value.nQuantized(n, 0)).toBe(n)
})

test('kivi keeps at least 128 of V and less than 128 of K in 16 bits', () => {
  const { key, value } = quantized('kivi2')
  for (const n of [1, 127, 128, 129, 145, 160, 255, 256, 1000]) {
    expect(key.nQuantized(n, 0)).toBe(Math.floor(n / 128) * 128)
    expect(value.nQuantized(n, 0) % 32).toBe(0)
    const left = n - value.nQuantized(n, 0)
    expect(left).toBeGreaterThanOrEqual(Math.min(n, 128))
    expect(left).toBeLessThan(128 + 32)
  }
  expect(key).toMatchObject({ scheme: 'channelwise', bits: 2, tokenGroup: 32 })
  expect(value).toMatchObject({ scheme: 'groupwise', bits: 2, groupSize: 32 })
})

test("uniform's granularities are the rows of Table 1", () => {
  for (const [granularity, key, value] of [
    ['group', 'groupwise', 'groupwise'],
    ['token', 'tokenwise', 'tokenwise'],
    ['channel', 'channelwise', 'tokenwise'],
  ] as const) {
    for (const bits of [2, 4, 8] as const) {
      expect(resolvePolicy(`uniform${bits}-${granularity}`)).toMatchObject({
        name: `uniform${bits}-${granularity}`,
        attention: 'dequantized',
        compression: null,
        rows: { key: { scheme: key, bits }, value: { scheme: value, bits } },
      })
    }
  }
  expect(resolvePolicy('uniform4-cst')).toMatchObject({ attention: 'packed', rows: null })
})

test('rotated rotates both, in groups of a head by default', () => {
  const { key, value } = quantized({ name: 'rotated', bits: 3 })
  expect(key).toMatchObject({ scheme: 'groupwise', bits: 3, groupSize: 0, rotated: true })
  expect(value).toEqual(key)
  expect(quantized('kivi4').key.rotated).toBe(false)
})

describe('h2o', () => {
  const { nKept, nObservers, select, accumulates } = kept('h2o')

  test('keeps 20% heavy and 20% recent tokens of the prompt, from then on', () => {
    expect(accumulates).toBe(true)
    const prompt = { nRows: 100, promptLength: 100, isPrompt: true }
    expect(nKept(prompt)).toBe(40)
    expect(nObservers(prompt, 100)).toBe(100)
    const step = { nRows: 41, promptLength: 100, isPrompt: false }
    expect(nKept(step)).toBe(40)
    expect(nObservers(step, 1)).toBe(1)
    const scores = Float32Array.from({ length: 41 }, (_, row) => (row === 3 ? 0 : 1 / (row + 1)))
    const rows = [...select(scores, step)]
    expect(rows).toHaveLength(40)
    expect(rows).not.toContain(3) // the only one to go
  })

  test('keeps no more than there is', () => {
    const facts = { nRows: 10, promptLength: 10, isPrompt: true }
    const both = kept({ name: 'h2o', heavy: 0.9, recent: 0.9 })
    expect(both.nKept(facts)).toBe(10)
    expect([...both.select(new Float32Array(10), facts)]).toEqual([...Array(10).keys()])
  })

  test('keeps the newest token whatever the shares', () => {
    const none = kept({ name: 'h2o', heavy: 0, recent: 0 })
    const facts = { nRows: 9, promptLength: 9, isPrompt: true }
    expect(none.nKept(facts)).toBe(1)
    expect([...none.select(new Float32Array(9).fill(1), facts)]).toEqual([8])
  })
})

describe('mikv of its own paper', () => {
  const { nKept, select, bits } = planOf('mikv-paper') as TieredPlan

  test('keeps a fifth in 16 bits, and lets 16 tokens go at a time', () => {
    expect(bits).toBe(2)
    expect(nKept(300, 300)).toBe(60)
    expect(nKept(79, 319)).toBe(79)
    expect(nKept(80, 320)).toBe(64)
    expect(nKept(10, 10)).toBe(10)
  })

  test('half of them for their attention, half because they are new', () => {
    const scores = Float32Array.of(9, 1, 5, 7, 0, 0, 0, 0)
    expect([...select(scores, 4)]).toEqual([0, 3, 6, 7])
    expect([...select(scores, 5)]).toEqual([0, 3, 5, 6, 7])
  })

  test('has options of its own, and the other preset has not', () => {
    const paper = { name: 'mikv', preset: 'paper' } as const
    expect(planOf({ ...paper, lowBits: 3 })).toMatchObject({ kind: 'tiered', bits: 3 })
    expect(resolvePolicy({ name: 'mikv', preset: 'zipcache' }).name).toBe('mikv')
    for (const [spec, message] of [
      [{ ...paper, window: 5 }, "policy: mikv has no option 'window'"],
      [{ ...paper, lowBits: 8 }, "policy: mikv's lowBits is 8, expected one of 2, 3, 4"],
      [{ name: 'mikv', preset: 'official' }, /^policy: mikv's preset is "official", expected/],
      [{ name: 'mikv', metric: 'causal' }, "policy: mikv has no option 'metric'"],
    ] as const) {
      const refused = () => resolvePolicy(spec as unknown as PolicySpec)
      expectRefused(refused, { code: 'ERR_ZC_ARGUMENT', message: message as RegExp })
    }
  })
})

describe('snapkv', () => {
  const small = kept({ name: 'snapkv', capacity: 6, window: 2, kernel: 3 })

  test('keeps the window and what it looks at, with neighbours, once a prompt', () => {
    const prompt = { nRows: 12, promptLength: 12, isPrompt: true }
    expect(small.nKept(prompt)).toBe(6)
    expect(small.nObservers(prompt, 12)).toBe(2)
    const scores = Float32Array.of(0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 50, 50)
    // means of three: rows 2, 3 and 4 have 3, rows 6, 7 and 8 a third
    expect([...small.select(scores, prompt)]).toEqual([2, 3, 4, 6, 10, 11])
    expect(small.nKept({ ...prompt, nRows: 7, isPrompt: false })).toBe(7)
    expect(small.nObservers({ ...prompt, isPrompt: false }, 1)).toBe(0)
    expect(small.nKept({ ...prompt, nRows: 4 })).toBe(4)
  })

  test('pools by mean or maximum', () => {
    const scores = Float32Array.of(3, 0, 0, 6, 0)
    expect([...pooled(scores, 3, 'average')]).toEqual([1, 1, 2, 2, 2])
    expect([...pooled(scores, 3, 'max')]).toEqual([3, 3, 6, 6, 6])
    expect([...pooled(scores, 1, 'average')]).toEqual([...scores])
  })
})

test('the heaviest rows ascend, ties go to the older', () => {
  expect([...heaviest(Float32Array.of(1, 2, 2, 0, 2, 9), 2, 1)]).toEqual([1, 2, 5])
  expect([...heaviest(Float32Array.of(5, 4, 3), 0, 2)]).toEqual([1, 2])
  expect([...heaviest(Float32Array.of(5, 4, 3), 2, 1)]).toEqual([0, 1, 2])
})
