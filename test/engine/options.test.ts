/** What callers without types, or in a hurry, give for options. */
import { join } from 'node:path'
import { runInNewContext } from 'node:vm'
import { createEngine, type GenerateOptions, loadModel } from '../../lib/index'
import { expectRefused, expectRejected } from '../support/errors'
import { kFixtures } from './model-copies'
import { collect, useModel } from './running'

const kLlama = join(kFixtures, 'llama')
const model = useModel(kLlama, { threads: 1, kvMemory: 2 ** 24 })

test.each([null, 5, 'x'])('%j are no options, wherever they are given', async (options) => {
  const none = options as never
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 24 })
  const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'options' } as const
  const sequence = engine.createSequence()
  await expectRejected(loadModel(kLlama, none), fault)
  await expectRejected(collect(engine.generate([5], none)), fault)
  await expectRejected(collect(model().generate([5], none)), fault)
  await expectRejected(collect(sequence.generate([5], none)), fault)
  await expectRejected(sequence.prefill([5], none), fault)
  await expectRejected(sequence.logits([5], none), fault)
  await expectRejected(model().logits([5], none), fault)
  await expectRejected(engine.openPrefix([5], none), fault)
  for (const owner of [engine, model()]) expectRefused(() => owner.createSequence(none), fault)
})

test('a misspelt option of a sequence is not lost', async () => {
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 24 })
  const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'polcy' } as const
  const misspelt = { polcy: 'fp16' } as never
  expectRefused(() => engine.createSequence(misspelt), fault)
  await expectRejected(engine.openPrefix([5], misspelt), fault)
  await expectRejected(model().logits([5], misspelt), fault)
})

test.each([
  ['a Map', new Map([[5, 100]])],
  ['of another realm', runInNewContext('({ 5: 100 })')],
  ['without a prototype', Object.assign(Object.create(null), { 5: 100 })],
])('logitBias: %s', async (_, logitBias) => {
  const run = (options: GenerateOptions) =>
    collect(model().generate([5], { maxTokens: 4, ...options }))
  expect(await run({ logitBias })).toEqual(await run({ logitBias: { 5: 100 } }))
})

test.each([
  [[[1, 2]]],
  [{ a: 2 }],
  [{ '': 2 }],
  [{ 1: '2' }],
  [{ 1: 101 }],
  [{ 999999: 1 }],
  [null],
  [5],
  [new Set([1])],
])('logitBias: %j', async (bias) => {
  const generation = collect(model().generate([5], { logitBias: bias as never }))
  await expectRejected(generation, { code: 'ERR_ZC_ARGUMENT', argument: 'logitBias' })
})
