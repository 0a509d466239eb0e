/** Heads with different shares of salient tokens, and corrected scores, in a model. */
import { join } from 'node:path'
import { createEngine, type Model, type PolicySpec, type Sequence } from '../../lib/index'
import { type Tensor, unpackSegment } from '../../lib/ops/index'
import type { MixedAttentionArgs } from '../../lib/ops/mixed-attention'
import { expectRejected } from '../support/errors'
import { kFixtures, kTrainedModels } from './model-copies'
import { idsOf, maxDifference, someIds, useModel, withModel } from './running'

let mockCounts: ((nTokens: number, nHeads: number) => number[]) | null = null
jest.mock('../../lib/policy/auto-ratio', () => {
  const actual = jest.requireActual('../../lib/policy/auto-ratio')
  return {
    ...actual,
    salientCounts: (scores: { scores: Float32Array; gains: Float64Array }, budget: object) => {
      const nHeads = scores.gains.length
      const given = mockCounts?.(scores.scores.length / nHeads, nHeads)
      return given ? Int32Array.from(given) : actual.salientCounts(scores, budget)
    },
  }
})
let mockHear: ((args: MixedAttentionArgs) => void) | null = null
jest.mock('../../lib/ops/mixed-attention', () => {
  const actual = jest.requireActual('../../lib/ops/mixed-attention')
  return {
    ...actual,
    mixedAttention: (args: MixedAttentionArgs) => {
      actual.mixedAttention(args)
      mockHear?.(args)
    },
  }
})
afterEach(() => {
  mockCounts = null
  mockHear = null
})

const model = useModel(join(kFixtures, 'llama'))
const windowed = useModel(join(kFixtures, 'gemma3'))
const ids = someIds(150, 320)
const common = { name: 'zipcache', window: 20, metric: 'accumulated' } as const

/** Sequences of a fixed r, and of heads that are each given as many tokens as that says. */
function fixedAndAuto(own: Model, r: number) {
  mockCounts = (n, nHeads) => new Array<number>(nHeads).fill(n - Math.floor((1 - r) * n + 1e-9))
  const open = (saliencyRatio: number | 'auto') =>
    own.createSequence({ policy: { ...common, saliencyRatio }, seed: 3 })
  return [open(r), open('auto')] as const
}

test('heads that are given as many as r says are those of a fixed r, to the bit', async () => {
  const [fixed, auto] = fixedAndAuto(model(), 0.6)
  for (const turn of [ids.slice(0, 100), ids.slice(100, 130)]) {
    expect(await auto.logits(turn)).toEqual(await fixed.logits(turn))
    // Two windows close: they go on with the prompt's share.
    expect(await idsOf(auto, null, 45)).toEqual(await idsOf(fixed, null, 45))
  }
  expect(await auto.logits(ids.slice(130, 135))).toEqual(await fixed.logits(ids.slice(130, 135)))
  for (const name of ['high', 'low', 'params', 'bitmaps', 'tail'] as const) {
    expect([name, auto.bytes.byClass[name]]).toEqual([name, fixed.bytes.byClass[name]])
  }
  expect(auto.bytes.paperRatio).toBeCloseTo(fixed.bytes.paperRatio as number, 1)
  auto.dispose()
  fixed.dispose()
})

test('so they are where sliding windows hide a class alone', async () => {
  const [fixed, auto] = fixedAndAuto(windowed(), 0.1)
  // Of a window 2 tokens are salient; the 18 others lie in two pages, of which the first goes first.
  for (const turn of [ids.slice(0, 53), ids.slice(53, 60)]) {
    expect(await auto.logits(turn)).toEqual(await fixed.logits(turn))
    expect(await idsOf(auto, null, 90)).toEqual(await idsOf(fixed, null, 90))
  }
  auto.dispose()
  fixed.dispose()
})

/** K and V of a sequence's first compression, dequantized: (layers)(n, n_kv_heads, head_dim) each. */
async function unpacked(policy: PolicySpec, n: number): Promise<{ k: number[]; v: number[] }[]> {
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 22 })
  const sequence = engine.createSequence({ policy, seed: 3 })
  await sequence.prefill(ids.slice(0, n))
  let heard: { pool: Tensor; table: Promise<Tensor> } | null = null
  const views: Tensor[] = []
  mockHear = ({ pool, tables, starts }) => {
    heard ??= {
      pool,
      table: starts.read().then((start) => {
        const at = (start as Int32Array)[0]
        const view = tables.view([tables.length - at], at)
        views.push(view)
        return view
      }),
    }
  }
  await sequence.prefill([5])
  const { pool, table } = heard as unknown as { pool: Tensor; table: Promise<Tensor> }
  const { nLayers, nKvHeads, headDim } = model().config
  const rows: { k: number[]; v: number[] }[] = []
  for (let layer = 0; layer < nLayers; layer++) {
    const [k, v] = [0, 1].map(() =>
      model().device.from(new Float32Array(n * nKvHeads * headDim).fill(99), [
        n,
        nKvHeads,
        headDim,
      ]),
    )
    for (const segment of sequence.segments.keys()) {
      const place = { layer, segment: segment + 1, base: 0 }
      unpackSegment({ pool, table: (await table) as Tensor<'i32'>, k, v, ...place })
    }
    rows.push({ k: [...(await k.read())], v: [...(await v.read())] })
    for (const tensor of [k, v]) tensor.dispose()
  }
  for (const view of views) view.dispose()
  return rows
}

test('each head is split and packed by itself: all, some or none of its tokens salient', async () => {
  const n = 100
  mockCounts = () => [n, 0]
  const uneven = await unpacked({ ...common, saliencyRatio: 'auto' }, n)
  mockCounts = () => [37, 64]
  const mixed = await unpacked({ ...common, saliencyRatio: 'auto' }, n)
  mockCounts = null
  const fixed = (ratio: number) => unpacked({ ...common, saliencyRatio: ratio }, n)
  const { headDim, nKvHeads } = model().config
  const headOf = (x: number[], head: number) =>
    x.filter((_, i) => Math.floor(i / headDim) % nKvHeads === head)
  for (const [rows, head, twin] of [
    [uneven, 0, await fixed(1)],
    [uneven, 1, await fixed(0)],
    [mixed, 0, await fixed(0.37)],
    [mixed, 1, await fixed(0.64)],
  ] as const) {
    for (const [layer, { k, v }] of rows.entries()) {
      expect(headOf(k, head)).toEqual(headOf(twin[layer].k, head))
      expect(headOf(v, head)).toEqual(headOf(twin[layer].v, head))
    }
  }
})

const auto: PolicySpec = { ...common, saliencyRatio: 'auto', auto: { coverage: 0.7 } }

test('heads differ, bytes are what the pool handed out, and all come back', async () => {
  const { used } = model().kvMemory
  const sequence = model().createSequence({ policy: auto, seed: 1 })
  const sum = (s: Sequence) => Object.values(s.bytes.byClass).reduce((a, b) => a + b)
  for (const turn of [ids.slice(0, 90), ids.slice(90)]) {
    await idsOf(sequence, turn, 50)
    expect(sequence.bytes.resident).toBe(model().kvMemory.used - used)
    expect(sequence.bytes.resident).toBe(sum(sequence))
  }
  const [salient] = sequence.segments
  expect(salient.nTokens % 16).not.toBe(0) // a mean over heads
  const fork = sequence.fork()
  expect(await idsOf(fork, null, 45)).toEqual(await idsOf(sequence, null, 45))
  await expectRejected(sequence.save(join(kFixtures, 'never')), {
    code: 'ERR_ZC_UNSUPPORTED',
    argument: 'policy',
  })
  fork.dispose()
  sequence.dispose()
  expect(model().kvMemory.used).toBe(used)
})

test('a budget is kept, and used', async () => {
  const n = 150
  const bytesOf = async (policy: PolicySpec) => {
    const sequence = model().createSequence({ policy })
    await sequence.prefill(ids)
    const { resident, byClass } = sequence.bytes
    sequence.dispose()
    return { resident, ...byClass }
  }
  const all = await bytesOf({ ...common, saliencyRatio: 1 })
  const { nLayers, headDim } = model().config
  const more = (2 * 16 * headDim * (4 - 2)) / 8 // of a page at 4 bits than of one at 2
  const budgets = [24_000, 27_000, 30_000, 36_000]
  for (const budgetBytes of [...budgets, 1e9]) {
    const policy: PolicySpec = { ...common, saliencyRatio: 'auto', auto: { budgetBytes } }
    const { resident, high, low } = await bytesOf(policy)
    const estimate = model().estimate({ tokens: n, policy })
    expect(resident).toBeLessThanOrEqual(estimate.cache)
    if (budgetBytes < 1e9) {
      expect(resident).toBeLessThanOrEqual(budgetBytes)
      expect([high > 0, low > 0]).toEqual([true, true])
      // Layers have whole pages each: less than one of the difference goes unused in each.
      expect(resident).toBeGreaterThan(budgetBytes - nLayers * more)
    } else {
      expect([high, low]).toEqual([all.high, 0])
    }
  }
  const tight = await bytesOf({ ...common, saliencyRatio: 'auto', auto: { budgetBytes: 1 } })
  expect(tight.high).toBe(0)
})

test.each(['gemma4', 'gemma4-e'])(
  'so it is where layers have heads of two shapes: %s',
  async (name) => {
    await withModel(join(kFixtures, name), {}, async (own) => {
      const prompt = someIds(150, 160)
      const bytesOf = async (policy: PolicySpec) => {
        const sequence = own.createSequence({ policy })
        await sequence.prefill(prompt)
        const { resident, peak, byClass } = sequence.bytes
        const { cache, weights, peak: most } = own.estimate({ tokens: 150, policy })
        expect(resident).toBeLessThanOrEqual(cache)
        expect(peak).toBeLessThanOrEqual(most - weights)
        sequence.dispose()
        return { resident, ...byClass }
      }
      const withBudget = (budgetBytes: number): PolicySpec => ({
        ...common,
        ...{ saliencyRatio: 'auto', auto: { budgetBytes } },
      })
      const least = await bytesOf(withBudget(1))
      const all = await bytesOf({ ...common, saliencyRatio: 1 })
      expect(least.high).toBe(0)
      for (const share of [0.6, 0.7, 0.8, 0.9, 1]) {
        const budgetBytes = Math.floor(least.resident + share * (all.resident - least.resident))
        const { resident, high, low } = await bytesOf(withBudget(budgetBytes))
        expect(resident).toBeLessThanOrEqual(budgetBytes)
        // What windows hide is given back afterwards, and is not counted on.
        expect([high > 0, low > 0]).toEqual([share > 0.6, true])
      }
    })
  },
)

test('by default no more is salient than under the fixed r, in whole pages of a layer', async () => {
  for (const share of [undefined, 0, 0.25, 0.6, 1]) {
    const sequence = model().createSequence({
      policy: { ...common, saliencyRatio: 'auto', ...(share !== undefined && { auto: { share } }) },
    })
    await sequence.prefill(ids)
    const { high } = sequence.bytes.byClass
    sequence.dispose()
    const { nLayers, nKvHeads, headDim } = model().config
    const page = 16 * headDim + 64 // K and V at 4 bits, and V's parameters
    const pages =
      share === 1
        ? nKvHeads * Math.ceil(150 / 16)
        : Math.floor(((share ?? 0.6) * 150 * nKvHeads) / 16)
    expect([share, high]).toEqual([share, nLayers * pages * page])
  }
})

test('an abort half-way takes the pages back', async () => {
  const sequence = model().createSequence({ policy: auto })
  await sequence.prefill(ids.slice(0, 60))
  // A page table that has grown stays.
  const pages = () => sequence.bytes.resident - sequence.bytes.byClass.tables
  const before = pages()
  const outside = () => model().kvMemory.used - sequence.bytes.resident
  const others = outside()
  const controller = new AbortController()
  const prefill = sequence.prefill(someIds(700, 320), { signal: controller.signal })
  for (let i = 0; i < 4; i++) await new Promise((resolve) => setImmediate(resolve))
  controller.abort(new Error('enough'))
  await expect(prefill).rejects.toThrow('enough')
  expect([sequence.length, pages(), outside()]).toEqual([60, before, others])
  expect(await idsOf(sequence, null, 5)).toHaveLength(5)
  sequence.dispose()
})

describe('corrected scores', () => {
  test('choose other tokens, as many of them', async () => {
    const last = async (policy: PolicySpec) => {
      const sequence = model().createSequence({ policy })
      await sequence.prefill(ids)
      const { byClass } = sequence.bytes
      const logits = await sequence.logits([5, 6])
      sequence.dispose()
      return { byClass, logits }
    }
    const plain = await last({ ...common, saliencyRatio: 0.2 })
    const fair = await last({ ...common, saliencyRatio: 0.2, saliency: { correct: 'position' } })
    expect(fair.byClass).toEqual(plain.byClass)
    expect(maxDifference(fair.logits, plain.logits)).toBeGreaterThan(1e-4)
  })
})

describe('the trained model', () => {
  const trained = useModel(join(kTrainedModels, 'line-retrieval'))

  test('gives heads different shares', async () => {
    const sequence = trained().createSequence({
      policy: { name: 'zipcache', saliencyRatio: 'auto' },
    })
    await sequence.prefill(someIds(500, 192))
    const { byClass } = sequence.bytes
    expect(byClass.high).toBeGreaterThan(0)
    expect(byClass.low).toBeGreaterThan(0)
    sequence.dispose()
  })
})
