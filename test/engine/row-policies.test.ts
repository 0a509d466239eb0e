/** Policies whose rows are dequantized, in a model. */
import { join } from 'node:path'
import { createEngine, type PolicySpec } from '../../lib/index'
import { expectRefused, expectRejected } from '../support/errors'
import { kFixtures, ModelCopies } from './model-copies'
import { rowPolicies } from './requests'
import { idsOf, maxDifference, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
const copies = new ModelCopies()
afterAll(() => copies.remove())

/** The logits after prompts, and after tokens that follow them one by one. */
async function logitsAfter(policy: PolicySpec, turns: number[][]): Promise<Float32Array> {
  const sequence = model().createSequence({ policy })
  let last: Float32Array = new Float32Array(0)
  for (const turn of turns) last = await sequence.logits(turn)
  sequence.dispose()
  return last
}

/** fp16 rounds a later prompt's rows before they attend to each other, a row store after it. */
const float16 = 5e-3

const ids = someIds(200, 320)
const turns = [ids.slice(0, 120), ids.slice(120, 121), ids.slice(121, 160), ids.slice(160)]

test.each<PolicySpec>([
  { name: 'h2o', heavy: 1, recent: 1 },
  'snapkv', // of 2048 tokens
  { name: 'kivi', residual: 1024 },
  { name: 'rotated', window: 1000 },
  { name: 'gear', window: 1000 },
  { name: 'mikv', preset: 'paper', saliencyRatio: 1 },
  // L of full rank is all that D lost.
  { name: 'gear', rank: 32, windowRank: 32, outliers: 0 },
])('%j, as long as nothing is dropped or quantized, is fp16', async (policy) => {
  const [own, plain] = [await logitsAfter(policy, turns), await logitsAfter('fp16', turns)]
  expect(maxDifference(own, plain)).toBeLessThan(float16)
})

test.each<[PolicySpec, number]>([
  ['uniform8-token', 0.05],
  ['uniform8-group', 0.05],
  ['uniform8-channel', 0.05],
  [{ name: 'rotated', bits: 8 }, 0.05],
  ['rotated4', 1],
  ['kivi4', 1],
  ['gear4', 0.75],
  [{ name: 'mikv', preset: 'paper', lowBits: 4 }, 1],
  [{ name: 'mikv', preset: 'paper', saliencyRatio: 0, lowBits: 4 }, 1],
])('%j is near fp16, and not the same', async (policy, allowed) => {
  const [own, plain] = [await logitsAfter(policy, turns), await logitsAfter('fp16', turns)]
  expect(maxDifference(own, plain)).toBeLessThan(allowed)
  expect(maxDifference(own, plain)).toBeGreaterThan(1e-4)
})

test("gear's outliers and ranks each bring it nearer to fp16", async () => {
  const plain = await logitsAfter('fp16', turns)
  const error = async (outliers: number, rank: number) => {
    const policy = { name: 'gear', outliers, rank, windowRank: rank } as const
    return maxDifference(await logitsAfter(policy, turns), plain)
  }
  const codesAlone = await error(0, 0)
  const [corrected, kept] = [await error(0, 16), await error(0.2, 0)]
  for (const each of [corrected, kept]) expect(each).toBeLessThan(0.9 * codesAlone)
  expect(await error(0.2, 16)).toBeLessThan(Math.min(corrected, kept))
})

test.each<PolicySpec>(['h2o', { name: 'snapkv', capacity: 60 }])(
  '%j drops tokens: other logits, fewer bytes, the same positions',
  async (policy) => {
    const [own, plain] = [await logitsAfter(policy, turns), await logitsAfter('fp16', turns)]
    expect(maxDifference(own, plain)).toBeGreaterThan(1e-3)
    const sequence = model().createSequence({ policy })
    await sequence.prefill(ids)
    expect(sequence.length).toBe(200)
    expect(sequence.bytes.ratio).toBeGreaterThan(2)
    await idsOf(sequence, null, 30)
    expect(sequence.bytes.ratio).toBeGreaterThan(policy === 'h2o' ? 2.4 : 2)
    sequence.dispose()
  },
)

test.each(rowPolicies)('%j: a fork goes on as its origin does', async (policy) => {
  const sequence = model().createSequence({ policy, seed: 1 })
  const { used } = model().kvMemory
  await idsOf(sequence, ids.slice(0, 90), 25)
  const fork = sequence.fork()
  const own = await idsOf(sequence, ids.slice(90, 100), 30)
  expect(await idsOf(fork, ids.slice(90, 100), 30)).toEqual(own)
  sequence.dispose()
  fork.dispose()
  expect(model().kvMemory.used).toBeLessThan(used)
})

const dropping: PolicySpec[] = [
  { name: 'snapkv', capacity: 8, window: 4 },
  { name: 'h2o', heavy: 0.9, recent: 0.1 },
]
test.each([...rowPolicies, ...dropping])(
  '%j: tokens one by one are what a generation is',
  async (policy) => {
    const prompt = ids.slice(0, 70)
    const expected = await idsOf(model(), prompt, 40, { policy })
    const sequence = model().createSequence({ policy })
    const own: number[] = []
    for (let n = 0; n < 40; n++) own.push(...(await idsOf(sequence, n ? null : prompt, 1)))
    expect(own).toEqual(expected)
    sequence.dispose()
  },
)

test('an abort leaves the sequence as it was, and its memory', async () => {
  const sequence = model().createSequence({ policy: 'kivi2' })
  await sequence.prefill(ids.slice(0, 50))
  const { used } = model().kvMemory
  const controller = new AbortController()
  const prefill = sequence.prefill(ids, { signal: controller.signal })
  setImmediate(() => controller.abort(new Error('enough')))
  await expect(prefill).rejects.toThrow('enough')
  expect(sequence.length).toBe(50)
  expect(model().kvMemory.used).toBe(used)
  sequence.dispose()
})

test('a prompt that does not fit is refused, the sequence is as before', async () => {
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 20 })
  const sequence = engine.createSequence({ policy: 'h2o' })
  await sequence.prefill(ids.slice(0, 20))
  const { used } = engine.kvMemory
  await expectRejected(sequence.prefill(someIds(4000, 320)), { code: 'ERR_ZC_OUT_OF_MEMORY' })
  expect([sequence.length, engine.kvMemory.used]).toEqual([20, used])
  expect(await idsOf(sequence, null, 5)).toHaveLength(5)
})

test('saving is refused', async () => {
  const sequence = model().createSequence({ policy: 'kivi2' })
  await sequence.prefill(ids.slice(0, 50))
  await expectRejected(sequence.save(join(kFixtures, 'never')), {
    code: 'ERR_ZC_UNSUPPORTED',
    message: /kivi2/,
  })
  expect(await idsOf(sequence, null, 3)).toHaveLength(3)
  sequence.dispose()
})

test('groups that do not divide the heads are refused', () => {
  expectRefused(() => model().createSequence({ policy: { name: 'rotated', groupSize: 128 } }), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'policy.groupSize',
  })
})

describe('a model with sinks', () => {
  const gptOss = useModel(join(kFixtures, 'gpt-oss'))

  test.each<PolicySpec>([
    { name: 'kivi', residual: 1024 },
    { name: 'rotated', window: 1000 },
    { name: 'gear', window: 1000 },
  ])('%j, as long as nothing is quantized, is fp16', async (policy) => {
    const ids = someIds(120, gptOss().config.vocabSize)
    const logits: Float32Array[] = []
    for (const own of [policy, 'fp16'] as const) {
      const sequence = gptOss().createSequence({ policy: own })
      await sequence.prefill(ids.slice(0, 90))
      logits.push(await sequence.logits(ids.slice(90)))
      sequence.dispose()
    }
    expect(maxDifference(logits[0], logits[1])).toBeLessThan(float16)
  })
})

describe('a model with a sliding window', () => {
  const dir = copies.copy(join(kFixtures, 'mistral'), { config: { sliding_window: 24 } })
  const mistral = useModel(dir)

  test('attends to the rows in its window', async () => {
    const near = async (policy: PolicySpec) => {
      const sequence = mistral().createSequence({ policy })
      const prompt = someIds(100, mistral().config.vocabSize)
      await sequence.prefill(prompt.slice(0, 60))
      await sequence.prefill(prompt.slice(60, 61))
      const logits = await sequence.logits(prompt.slice(61))
      sequence.dispose()
      return logits
    }
    const plain = await near('fp16')
    expect(maxDifference(await near({ name: 'kivi', residual: 1024 }), plain)).toBeLessThan(float16)
    expect(maxDifference(await near('uniform8-token'), plain)).toBeLessThan(0.05)
  })

  test.each(['h2o', 'snapkv'])('cannot bear %s', (policy) => {
    expectRefused(() => mistral().createSequence({ policy }), { code: 'ERR_ZC_UNSUPPORTED' })
  })
})
