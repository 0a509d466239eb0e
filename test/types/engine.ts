/** What programs may write of models, engines and sequences, and what the compiler refuses. */
import {
  type CacheBytes,
  createEngine,
  Device,
  type Engine,
  type EngineStats,
  type FinishReason,
  type GeneratedToken,
  loadModel,
  type MemoryEstimate,
  type Model,
  type ModelTokenizer,
  type Sequence,
  type TokenStream,
} from '../../lib/index.js'
import { type Equal, expectType } from './equal.js'

export async function models(signal: AbortSignal) {
  const model = await loadModel('dir', { device: 'auto', dtype: 'bf16', threads: 2, signal })
  expectType<Equal<typeof model, Model>>()
  expectType<Equal<typeof model.tokenizer, ModelTokenizer | null>>()
  expectType<Equal<typeof model.dtype, 'f32' | 'bf16'>>()
  await loadModel('dir', { device: await Device.open('cpu', { threads: 1 }), kvMemory: 2 ** 30 })
  await loadModel('dir', { weights: 'int8' })
  await loadModel('dir', { weights: 'int4' })
  // @ts-expect-error There are no such weights.
  await loadModel('dir', { weights: 'int2' })
  expectType<Equal<ReturnType<Model['estimate']>, MemoryEstimate>>()
  expectType<Equal<ReturnType<Model['logits']>, Promise<Float32Array>>>()
  await using _released = model

  // @ts-expect-error: a folder is needed
  await loadModel()
  // @ts-expect-error: weights are not computed in float16
  await loadModel('dir', { dtype: 'f16' })
  // @ts-expect-error: no such option
  await loadModel('dir', { devices: 'cpu' })
  // @ts-expect-error: a tokenizer may be missing
  model.tokenizer.encode('text')
  // @ts-expect-error: what a model is does not change
  model.config.nLayers = 1
  // @ts-expect-error: an estimate is of a number of tokens
  model.estimate({ policy: 'zipcache' })
}

export async function engines(model: Model, signal: AbortSignal) {
  await using engine = createEngine({
    model,
    kvMemory: 2 ** 30,
    maxBatch: 8,
    reclaim: () => false,
  })
  expectType<Equal<typeof engine, Engine>>()
  expectType<Equal<ReturnType<Engine['stats']>, EngineStats>>()
  const schema = { type: 'object', properties: { name: { type: 'string' } } }
  const request = { maxTokens: 8, json: schema, policy: 'uniform4', prefixTokens: 4, signal }
  for await (const token of engine.generate('a text', request)) {
    expectType<Equal<typeof token, GeneratedToken>>()
    // @ts-expect-error: a token is not to be changed
    token.text = ''
  }
  for await (const _ of engine.generate(Int32Array.of(1, 2), { logitBias: new Map([[3, -1]]) }));
  const tokens = engine.generate('a text')
  expectType<Equal<typeof tokens, TokenStream>>()
  expectType<Equal<ReturnType<Model['generate']>, TokenStream>>()
  expectType<Equal<ReturnType<Sequence['generate']>, TokenStream>>()
  expectType<Equal<typeof tokens.finishReason, FinishReason | null>>()
  const plain: AsyncGenerator<GeneratedToken, void, undefined> = tokens
  await plain.return()

  // @ts-expect-error: how much memory caches may take has no default here
  createEngine({ model })
  // @ts-expect-error: a prompt is one text, or the ids of one
  engine.generate(['a text'])
  // @ts-expect-error: prefixTokens is an engine's option, not a model's
  model.generate('a text', { prefixTokens: 4 })
  // @ts-expect-error: stop is a text or texts
  engine.generate('a text', { stop: 13 })
  // @ts-expect-error: why it ended is told, not set
  tokens.finishReason = 'stop'
  // @ts-expect-error: counters are read
  engine.stats().steps = 0
}

export async function sequences(model: Model) {
  using sequence = model.createSequence({ policy: 'kivi2', seed: 7 })
  expectType<Equal<typeof sequence, Sequence>>()
  expectType<Equal<typeof sequence.finishReason, FinishReason | null>>()
  expectType<Equal<typeof sequence.bytes, CacheBytes>>()
  expectType<Equal<typeof sequence.bytes.paperRatio, number | null>>()
  await sequence.prefill([1, 2, 3])
  for await (const { top } of sequence.generate(null, { topLogprobs: 2 })) {
    // @ts-expect-error: nothing is told of other tokens unless it is asked for
    top.length
  }
  const fork: Sequence = sequence.fork()
  fork.dispose()

  // @ts-expect-error: there must be something to go on from, null says: what it holds
  sequence.generate()
  // @ts-expect-error: the policy is chosen when a sequence is made
  await sequence.prefill([1], { policy: 'zipcache' })
  // @ts-expect-error: bytes are measured
  sequence.bytes.resident = 0
}
