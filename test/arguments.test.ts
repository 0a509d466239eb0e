/** Whatever a caller without types gives zipcache or zipcache/eval, it is told which argument is wrong. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import * as evals from '../lib/eval/index'
import * as zipcache from '../lib/index'
import { type Call, faultsOf } from './support/hostile-arguments'

let model: zipcache.Model
let engine: zipcache.Engine
let sequence: zipcache.Sequence
beforeAll(async () => {
  model = await zipcache.loadModel(zipcache.exampleModel(), { threads: 1, kvMemory: 64 << 20 })
  engine = zipcache.createEngine({ model, kvMemory: 64 << 20 })
  sequence = engine.createSequence()
  await sequence.prefill([1, 2, 3])
})
afterAll(async () => {
  await model.dispose()
  rmSync(folder, { recursive: true })
})

const kept = { policy: { name: 'zipcache', saliencyRatio: 0.5 }, seed: 1 }
const generation = {
  ...{ maxTokens: 1, temperature: 0.5, topK: 1, topP: 0.9, minP: 0, seed: 1, ignoreEos: false },
  ...{ repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, logitBias: { 3: 1 } },
  ...{ topLogprobs: 1, stop: ['end'], stopTokens: [3], continueText: false },
}
const question = { model: null, lines: [2], questions: 1, seed: 1, policies: ['fp16'] }
const spec = { task: 'line-retrieval', lines: 2, ask: 'inside', chat: false }
const folder = mkdtempSync(path.join(tmpdir(), 'zipcache-arguments-'))
const file = (name: string) => path.join(folder, name)

async function all(tokens: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of tokens) break
}

/** Good calls: what fuzzing changes in one place. */
const calls: readonly [name: string, call: Call, args: () => unknown[]][] = [
  ['resolvePolicy', zipcache.resolvePolicy as Call, () => [kept.policy]],
  ['generateLineRetrieval', zipcache.generateLineRetrieval as Call, () => [{ lines: 2, seed: 1 }]],
  [
    'evaluateLineRetrieval',
    zipcache.evaluateLineRetrieval as Call,
    () => [{ ...question, model, ask: 'inside', signal: new AbortController().signal }],
  ],
  ['createEngine', createAndDispose, () => [{ model, kvMemory: 4 << 20, maxBatch: 1 }]],
  ['loadModel', loadAndDispose, () => [zipcache.exampleModel(), { device: 'cpu', threads: 1 }]],
  ['Model.estimate', method(() => model, 'estimate'), () => [{ tokens: 3, policy: 'zipcache' }]],
  ['Model.logits', method(() => model, 'logits'), () => [[1, 2], kept]],
  ['Engine.createSequence', created(() => engine), () => [{ ...kept, recordSaliency: true }]],
  ['Model.createSequence', created(() => model), () => [{ ...kept, recordSaliency: true }]],
  [
    'Engine.openPrefix',
    async (...args) =>
      (
        (await method(() => engine, 'openPrefix')(...args)) as zipcache.OpenedPrefix
      ).sequence.dispose(),
    () => [
      [1, 2],
      { ...kept, recordSaliency: true, scope: '', signal: new AbortController().signal },
    ],
  ],
  [
    'Engine.generate',
    generated(() => engine),
    () => [[1, 2], { ...generation, ...kept, prefixTokens: 1 }],
  ],
  ['Model.generate', generated(() => model), () => [[1, 2], { ...generation, policy: 'fp16' }]],
  ['Sequence.generate', generated(() => sequence.fork()), () => [[1, 2], generation]],
  ['Sequence.prefill', method(() => sequence.fork(), 'prefill'), () => [[1, 2], {}]],
  ['Sequence.logits', method(() => sequence.fork(), 'logits'), () => [[1, 2], {}]],
  ['Sequence.save', method(() => sequence, 'save'), () => [file('saved')]],
  ['Engine.restore', method(() => engine, 'restore'), () => [file('saved')]],
  ['bootstrapMean', evals.bootstrapMean as Call, () => [[1, 2, 3]]],
  ['mcnemar', evals.mcnemar as Call, () => [3, 2]],
  ['signFlipTest', evals.signFlipTest as Call, () => [[1, 0, -1]]],
  ['wilson', evals.wilson as Call, () => [1, 2]],
  [
    'granularityRatio',
    evals.granularityRatio as Call,
    () => ['token', 4, { tokens: 9, width: 8, batch: 1 }],
  ],
  [
    'mixedRatio',
    evals.mixedRatio as Call,
    () => [
      { r: 0.5, high: 4, low: 2 },
      { tokens: 9, width: 8, batch: 1 },
    ],
  ],
  ['policyLabel', evals.policyLabel as Call, () => [kept.policy]],
  [
    'inspectSaliency',
    evals.inspectSaliency as Call,
    () => [{ model, ids: ids(120), policy: 'zipcache', seed: 1, bins: 2 }],
  ],
  [
    'makeTask',
    evals.makeTask as Call,
    () => [spec, { tokenizer: model.tokenizer, questions: 1, seed: 1 }],
  ],
  ['localAsker', evals.localAsker as Call, () => [{ model, tasks: [spec], questions: 1, seed: 1 }]],
  [
    'evaluate',
    evals.evaluate as Call,
    () => [{ askers: [asker], policies: ['fp16'], batch: 1, ask: false }],
  ],
  [
    'modelAsker',
    async (...args) => await (await evals.modelAsker(...(args as [never]))).close(),
    () => [{ dir: zipcache.exampleModel(), threads: 1, tasks: [spec], questions: 1, seed: 1 }],
  ],
  [
    'Journal.open',
    async (...args) => await (await evals.Journal.open(...(args as [never, never, never]))).close(),
    () => [file('journal'), { model: 'a' }, 'build'],
  ],
]

const asker = { tasks: [], identity: {}, ask: async () => {}, close: async () => {} }
const ids = (n: number) => Array.from({ length: n }, (_, i) => 1 + (i % 100))

test.each(calls)('%s refuses by name', async (name, call, args) => {
  expect(await faultsOf(name, call, args(), [sequence, model])).toEqual([])
})

test('all functions are tried', () => {
  const tried = new Set(calls.map(([name]) => name))
  const functions = Object.entries({ ...zipcache, ...evals }).filter(
    ([, value]) => typeof value === 'function' && !/^class /.test(String(value)),
  )
  const left = functions.map(([name]) => name).filter((name) => !tried.has(name))
  expect(left).toEqual(['exampleModel', 'workerAsker'])
})

function method(of: () => object, name: string): Call {
  return (...args) => {
    const owner = of()
    return (owner as Record<string, Call>)[name]?.apply(owner, args)
  }
}
function created(of: () => zipcache.Engine | zipcache.Model): Call {
  return (...args) =>
    of()
      .createSequence(...(args as []))
      .dispose()
}
function generated(of: () => { generate: (...args: never[]) => AsyncIterable<unknown> }): Call {
  return (...args) => all(of().generate(...(args as never[])))
}
async function createAndDispose(...args: unknown[]): Promise<void> {
  await zipcache.createEngine(...(args as [never])).dispose()
}
async function loadAndDispose(...args: unknown[]): Promise<void> {
  await (await zipcache.loadModel(...(args as [string]))).dispose()
}
