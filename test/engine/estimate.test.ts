/** What a prompt takes, told before it is run. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { POLICY_NAMES, type PolicySpec } from '../../lib/index'
import { resolvePolicy } from '../../lib/policy/index'
import { expectRefused } from '../support/errors'
import { kFixtures, kTrainedModels } from './model-copies'
import { someIds, useModel } from './running'

const policies: PolicySpec[] = [
  ...POLICY_NAMES,
  { name: 'zipcache', window: 30, saliencyRatio: 1 },
  { name: 'zipcache', metric: 'locality' },
  { name: 'snapkv', capacity: 200 },
  { name: 'rotated', groupSize: 16 },
  { name: 'gear', rank: 0, outliers: 0, groupSize: 32 },
]

// `node test/runtime/programs/peak-memory.cjs 16384 zipcache` takes longer prompts.
const onLinux = process.platform === 'linux' ? test : test.skip // reads /proc
onLinux.each(['zipcache', 'fp16'])(
  'holds for the whole process within a tenth: %s',
  (policy) => {
    const program = join(__dirname, '..', 'runtime', 'programs', 'peak-memory.cjs')
    const child = spawnSync(process.execPath, [program, '4096', policy], { encoding: 'utf8' })
    expect(child).toMatchObject({ status: 0, stderr: '' })
    const { measured, estimated } = JSON.parse(child.stdout)
    expect(measured).toBeLessThan(1.1 * estimated)
    expect(measured).toBeGreaterThan(0.9 * estimated)
  },
  120_000,
)

describe.each([
  ['llama', useModel(join(kFixtures, 'llama'))],
  ['qwen3', useModel(join(kFixtures, 'qwen3'))],
  ['phi3', useModel(join(kFixtures, 'phi3'))],
  ['smollm3', useModel(join(kFixtures, 'smollm3'))],
  ['gemma3 in bfloat16', useModel(join(kFixtures, 'gemma3'), { dtype: 'bf16' })],
  ['qwen3-moe', useModel(join(kFixtures, 'qwen3-moe'))],
  ['qwen2-moe', useModel(join(kFixtures, 'qwen2-moe'))],
  ['glm4-moe in 8 bits', useModel(join(kFixtures, 'glm4-moe'), { weights: 'int8' })],
  ['ministral3', useModel(join(kFixtures, 'ministral3'))],
  ['mixtral in bfloat16', useModel(join(kFixtures, 'mixtral'), { dtype: 'bf16' })],
  ['mixtral in 8 bits', useModel(join(kFixtures, 'mixtral'), { weights: 'int8' })],
  ['llama in bfloat16', useModel(join(kFixtures, 'llama'), { dtype: 'bf16' })],
  ['mixtral in 4 bits', useModel(join(kFixtures, 'mixtral'), { weights: 'int4' })],
  ['qwen3.5', useModel(join(kFixtures, 'qwen3.5'))],
  ['qwen3.5-moe in bfloat16', useModel(join(kFixtures, 'qwen3.5-moe'), { dtype: 'bf16' })],
  ['qwen3 in 8 bits', useModel(join(kFixtures, 'qwen3'), { weights: 'int8' })],
  ['gemma4', useModel(join(kFixtures, 'gemma4'))],
  ['gemma4 in bfloat16', useModel(join(kFixtures, 'gemma4'), { dtype: 'bf16' })],
  ['gemma4-e', useModel(join(kFixtures, 'gemma4-e'))],
  ['gemma4-e in bfloat16', useModel(join(kFixtures, 'gemma4-e'), { dtype: 'bf16' })],
  ['gemma4-moe', useModel(join(kFixtures, 'gemma4-moe'))],
  ['gemma4-moe in bfloat16', useModel(join(kFixtures, 'gemma4-moe'), { dtype: 'bf16' })],
  ['gemma4-moe in 4 bits', useModel(join(kFixtures, 'gemma4-moe'), { weights: 'int4' })],
  [
    'line-retrieval in bfloat16',
    useModel(join(kTrainedModels, 'line-retrieval'), { dtype: 'bf16' }),
  ],
])('%s', (name, model) => {
  const lengths = name.startsWith('line') ? [4000] : [1, 20, 99, 100, 700]
  // They keep no positions of tokens, which a sliding window looks at.
  const blind = (policy: PolicySpec) =>
    ['mikv-paper', 'h2o', 'snapkv'].includes(typeof policy === 'string' ? policy : policy.name)
  // They keep rows of heads of one shape.
  const keepsRows = (policy: PolicySpec) => resolvePolicy(policy).rows !== null
  // Their K and V are 32 channels of a token; it asks for whole 64.
  const isNarrow = /^((qwen2|glm4)-moe|ministral3)/.test(name)
  const own = policies
    .filter((policy) => !(name.startsWith('gemma3') && blind(policy)))
    .filter((policy) => !(name.startsWith('gemma4') && keepsRows(policy)))
    .filter((policy) => !(isNarrow && policy === 'gear2'))

  test.each(own)('is what a prompt then takes, to the byte: %j', async (policy) => {
    for (const tokens of lengths) {
      const { weights, cache, peak } = model().estimate({ tokens, policy })
      const sequence = model().createSequence({ policy })
      await sequence.prefill(someIds(tokens, 160))
      expect([tokens, sequence.bytes.resident]).toEqual([tokens, cache])
      expect([tokens, sequence.bytes.peak]).toEqual([tokens, peak - weights])
      sequence.dispose()
    }
  })
})

describe.each([
  ['qwen3', 'f32'],
  ['qwen3', 'bf16'],
  ['gemma4', 'bf16'],
  ['gemma4-e', 'f32'],
] as const)('of one token, and a window of one: %s in %s', (name, dtype) => {
  const model = useModel(join(kFixtures, name), { dtype })

  test.each<PolicySpec>([
    ...[0, 0.4, 0.6, 1].map((r) => ({ name: 'zipcache', saliencyRatio: r, window: 1 }) as const),
    { name: 'zipcache', metric: 'locality', window: 1 },
    { name: 'zipcache-official', window: 1 },
    { name: 'uniform', bits: 4, window: 1 },
  ])('to the byte: %j', async (policy) => {
    for (const tokens of [1, 2]) {
      const { weights, cache, peak } = model().estimate({ tokens, policy })
      const sequence = model().createSequence({ policy })
      await sequence.prefill(someIds(tokens, 160))
      expect([tokens, sequence.bytes.resident]).toEqual([tokens, cache])
      expect([tokens, sequence.bytes.peak]).toEqual([tokens, peak - weights])
      sequence.dispose()
    }
  })

  test("no more than that where r is 'auto'", async () => {
    const policy = { name: 'zipcache', saliencyRatio: 'auto', window: 1 } as const
    const { weights, cache, peak } = model().estimate({ tokens: 1, policy })
    const sequence = model().createSequence({ policy })
    await sequence.prefill([5])
    expect(sequence.bytes.resident).toBeLessThanOrEqual(cache)
    expect(sequence.bytes.peak).toBeLessThanOrEqual(peak - weights)
    expect(sequence.bytes.peak).toBeGreaterThan(0.7 * (peak - weights))
    sequence.dispose()
  })
})

describe('of the shipped model', () => {
  const model = useModel(join(kTrainedModels, 'line-retrieval'))

  test('is a sum of parts that can be told', () => {
    const estimate = model().estimate({ tokens: 4096 })
    const { weights, cache, keysAndValues, activations, peak } = estimate
    expect(weights + cache + keysAndValues + activations).toBe(peak)
    const { nKvHeads, headDim } = model().config
    expect(keysAndValues).toBe(2 * 4096 * nKvHeads * headDim * 4)
    // Activations grow with tokens times width, not with their square.
    const longer = model().estimate({ tokens: 8192 })
    expect(longer.activations).toBeLessThan(2.1 * activations)
  })

  test.each([0, -1, 0.5, NaN, '5'])('of %p tokens is refused', (tokens) => {
    const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'tokens' } as const
    expectRefused(() => model().estimate({ tokens: tokens as number }), fault)
    expectRefused(() => model().estimate(undefined as never), fault)
    expectRefused(() => model().estimate({ tokens: 5, policy: 'unheard of' }), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'policy',
    })
  })

  test('of more tokens than the context holds is refused at once', () => {
    const fault = { code: 'ERR_ZC_CONTEXT_LENGTH', argument: 'tokens', message: /8192/ } as const
    expectRefused(() => model().estimate({ tokens: 8193 }), fault)
    expectRefused(() => model().estimate({ tokens: 2 ** 40 }), fault)
  })
})
