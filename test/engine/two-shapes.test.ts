/** Layers whose heads have two shapes, and layers that attend to others' keys: in batches, on devices, seen from outside. */
import { join } from 'node:path'
import { sliceRows } from '../../lib/engine/prefill'
import { createEngine, loadModel, type Model, type PolicySpec } from '../../lib/index'
import { describeCache } from '../../lib/server/session-cache'
import { describeDevices } from '../support/backends'
import { expectRefused } from '../support/errors'
import { kFixtures } from './model-copies'
import { collect, expectSame, someIds, useModel } from './running'

const kVocab = 160
const prompts = [someIds(70, kVocab, 1), someIds(9, kVocab, 2), someIds(33, kVocab, 3)]

/** Answers to the prompts; `together`: in one batch, drafted from what each is `known` to be. */
async function answers(
  model: Model,
  policy: PolicySpec,
  { together, known = [] }: { together: boolean; known?: readonly number[][] },
) {
  const engine = createEngine({ model, kvMemory: 1 << 24 })
  const options = { policy, maxTokens: 40, ignoreEos: true, seed: 7 }
  try {
    const all: Awaited<ReturnType<typeof collect>>[] = []
    const answer = async (i: number) => {
      const prediction = known[i]
      const own = prediction ? { ...options, prediction } : options
      all[i] = await collect(engine.generate(prompts[i] as number[], own))
    }
    if (together) await Promise.all(prompts.map((_, i) => answer(i)))
    else for (const i of prompts.keys()) await answer(i)
    const { acceptedTokens, kvMemory } = engine.stats()
    expect([acceptedTokens > 0, kvMemory.used]).toEqual([known.length > 0, 0])
    return all
  } finally {
    await engine.dispose()
  }
}

describeDevices(
  'a batch of models with heads of two shapes',
  (device) => {
    test.each([
      ['gemma4', { name: 'zipcache', window: 24 }],
      ['gemma4', 'full'],
      ['gemma4-e', { name: 'zipcache', window: 24 }],
      ['gemma4-e', 'fp16'],
      ['gemma4-moe', 'full'],
    ] as const)(
      '%s, %j: three rows, a masked one and drafts say what each says alone on the CPU',
      async (name, policy) => {
        const dir = join(kFixtures, name)
        const options = { dtype: 'f32', kvMemory: 1 << 24 } as const
        const here = await loadModel(dir, { ...options, device: 'cpu' })
        const there = await loadModel(dir, { ...options, device })
        try {
          const alone = await answers(here, policy, { together: false })
          const known = alone.map(({ ids }) => ids)
          for (const own of [[], known]) {
            const batch = await answers(there, policy, { together: true, known: own })
            expect(batch.map(({ ids }) => ids)).toEqual(known)
            for (const [i, { logprobs }] of batch.entries()) {
              logprobs.forEach((logprob, at) => {
                const expected = alone[i]?.logprobs[at] as number
                expect(Math.abs(logprob - expected)).toBeLessThan(device === 'cpu' ? 1e-6 : 2e-2)
              })
            }
          }
        } finally {
          await here.dispose()
          await there.dispose()
        }
      },
      240_000,
    )
  },
  ['cpu', 'cuda-emu', 'cuda'],
)

describe.each(['gemma4', 'gemma4-e'])('a prompt of %s', (name) => {
  const model = useModel(join(kFixtures, name))
  const sliced = useModel(join(kFixtures, name))
  beforeAll(() => {
    // Of MLPs that were so wide 64 rows would be a slice; it is work space alone that is.
    Object.assign(sliced().config, { intermediateSize: 40_000 })
    expect([model, sliced].map((own) => sliceRows(own()))).toEqual([512, 64])
  })

  test.each<PolicySpec>([
    'full',
    'fp16',
    { name: 'zipcache', window: 30, saliencyRatio: 0.4 },
    { name: 'zipcache', window: 30, saliencyRatio: 'auto' },
  ])('is the same in slices, to the bit: %j', async (policy) => {
    const found = []
    for (const own of [model(), sliced()]) {
      using sequence = own.createSequence({ policy })
      await sequence.prefill(someIds(150, kVocab, 1)) // 64, 64 and 22 rows
      const first = await collect(sequence.generate(null, { maxTokens: 12, ignoreEos: true }))
      // Behind what is compressed, or in the tail.
      const logits = await sequence.logits(someIds(200, kVocab, 2))
      const next = await collect(sequence.generate(null, { maxTokens: 40, ignoreEos: true }))
      found.push({ first, next, logits })
    }
    const [whole, inSlices] = found
    expectSame(inSlices!.logits, whole!.logits)
    expect([inSlices!.first, inSlices!.next]).toEqual([whole!.first, whole!.next])
  })
})

describe.each([
  ['gemma4', useModel(join(kFixtures, 'gemma4'))],
  ['gemma4-e', useModel(join(kFixtures, 'gemma4-e'))],
  ['gemma4-moe', useModel(join(kFixtures, 'gemma4-moe'))],
])('%s', (name, model) => {
  const ids = someIds(150, kVocab)
  const nKvHeads = { gemma4: [2, 1, 2, 1], 'gemma4-e': [2, 2, 2], 'gemma4-moe': [4, 4, 2] }[name]

  test.each<PolicySpec>([
    { name: 'zipcache', window: 30, saliencyRatio: 0.4 },
    { name: 'zipcache', window: 30, saliencyRatio: 'auto' },
  ])('salient tokens come layer by layer, each its heads: %j', async (policy) => {
    using sequence = model().createSequence({ policy, recordSaliency: true })
    await sequence.prefill(ids)
    const layers = await sequence.salientTokens()
    expect(layers.map((heads) => heads.length)).toEqual(nKvHeads)
    const { high } = sequence.bytes.byClass
    expect(high).toBeGreaterThan(0)
    const counts = new Array<number>(ids.length).fill(0)
    for (const positions of layers.flat()) {
      expect([...positions]).toEqual([...new Set(positions)].sort((a, b) => a - b))
      for (const position of positions) counts[position]++
    }
    const nHeads = layers.flat().length
    const { salientShare, scores, bits, tailStart } = await sequence.tokenMap()
    expect(tailStart).toBe(150)
    expect([...salientShare]).toEqual(counts.map((n) => Math.fround(n / nHeads)))
    expect([...bits]).toEqual(counts.map((n) => Math.fround(2 + (2 * n) / nHeads)))
    expect(scores.every(Number.isFinite)).toBe(true)
    const [salient, regular] = sequence.segments
    expect(salient?.nTokens).toBeCloseTo(
      layers.flat().reduce((n, own) => n + own.length, 0) / nHeads,
    )
    expect((salient?.nTokens ?? 0) + (regular?.nTokens ?? 0)).toBe(150)
    const told = (await describeCache(sequence, model())) as { heads: number; tokens: object[] }
    expect(told).toMatchObject({ heads: nHeads })
    expect(told.tokens).toHaveLength(150)
  })

  test.each(['kivi2', 'h2o', 'mikv-paper', 'uniform4-token'])('no rows are kept: %s', (policy) => {
    const fault = { code: 'ERR_ZC_UNSUPPORTED', argument: 'policy', message: /two/ } as const
    expectRefused(() => model().createSequence({ policy }), fault)
    expectRefused(() => model().estimate({ tokens: 10, policy }), fault)
  })
})
