/** Requests as clients make them, all at once and unlike each other, and what each is to be given. */
import fc from 'fast-check'
import {
  createEngine,
  type Engine,
  type GenerateOptions,
  type Model,
  type PolicySpec,
  type SequenceOptions,
} from '../../lib/index'
import { someIds } from './running'

/** What a client asks for, and how it behaves. Its times are turns of the event loop. */
export interface Request {
  promptLength: number
  promptSeed: number
  policy: PolicySpec
  /** of the probes and of the draws */
  seed: number
  temperature: number
  repetitionPenalty: number
  promptLookup: number
  maxTokens: number
  /** when it comes */
  joinAt: number
  /** it waits so long after each token */
  pause: number
  /** it leaves after so many tokens */
  leaveAfter: number
  /** it aborts so long after it came; 0: it does not */
  abortAfter: number
}

/** Tokens with the probabilities that the model gave them. */
export interface Answer {
  ids: number[]
  logprobs: number[]
}

export const testPolicies: readonly PolicySpec[] = [
  'full',
  'fp16',
  'zipcache',
  'uniform4',
  { name: 'zipcache', window: 12 },
  { name: 'zipcache', window: 20, saliencyRatio: 0.25, highBits: 8 },
  { name: 'uniform', bits: 4, window: 17 },
]

/** Policies whose sequences are in no batch. */
export const rowPolicies: readonly PolicySpec[] = [
  { name: 'uniform', bits: 4, granularity: 'token', window: 17 },
  { name: 'rotated', bits: 3, window: 20 },
  { name: 'kivi', bits: 2, groupSize: 16, residual: 32 },
  { name: 'gear', bits: 2, groupSize: 32, window: 20 },
  'h2o',
  { name: 'snapkv', capacity: 60, window: 12 },
  { name: 'mikv', preset: 'paper', lowBits: 4 },
]

/** Heads that differ in their salient tokens. */
const unevenPolicy: PolicySpec = {
  name: 'zipcache',
  window: 20,
  saliencyRatio: 'auto',
  auto: { coverage: 0.7 },
}

/** Lengths around windows, pages and where prompts are compressed at once, and any others. */
const promptLengths = fc.oneof(
  fc.constantFrom(1, 2, 11, 12, 13, 16, 17, 19, 20, 21, 99, 100, 101, 199, 200),
  fc.integer({ min: 1, max: 250 }),
)

/** Any request; half of them stay to the end. */
export const requests: fc.Arbitrary<Request> = fc.record({
  promptLength: promptLengths,
  promptSeed: fc.integer({ min: 1, max: 99 }),
  policy: fc.constantFrom(...testPolicies, ...rowPolicies, unevenPolicy),
  seed: fc.integer({ min: 0, max: 5 }),
  temperature: fc.constantFrom(0, 0, 0.7, 1.5),
  repetitionPenalty: fc.constantFrom(1, 1, 1.3),
  promptLookup: fc.constantFrom(0, 0, 1, 5, 15),
  maxTokens: fc.integer({ min: 1, max: 60 }),
  joinAt: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 120 })),
  pause: fc.constantFrom(0, 0, 0, 1, 7),
  leaveAfter: fc.oneof(fc.constant(1e9), fc.integer({ min: 1, max: 40 })),
  abortAfter: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 150 })),
})

/** Gives the event loop so many turns. */
export async function turns(n: number): Promise<void> {
  for (let i = 0; i < n; i++) await new Promise((resolve) => setImmediate(resolve))
}

export function promptOf({ promptLength, promptSeed }: Request, vocabSize: number): number[] {
  return someIds(promptLength, vocabSize, promptSeed)
}

export function optionsOf(request: Request): GenerateOptions & SequenceOptions {
  const { policy, seed, temperature, repetitionPenalty, promptLookup, maxTokens } = request
  const how = { policy, seed, temperature, repetitionPenalty, promptLookup, maxTokens }
  return { ...how, ignoreEos: true }
}

/** Makes a request of an engine as its client would: what it got until it ended, left or aborted. */
export async function serve(
  engine: Engine | Model,
  request: Request,
  vocabSize: number,
): Promise<Answer & { isWhole: boolean }> {
  const { joinAt, pause, leaveAfter, abortAfter } = request
  const answer = { ids: [] as number[], logprobs: [] as number[], isWhole: false }
  await turns(joinAt)
  const controller = new AbortController()
  if (abortAfter > 0) void turns(abortAfter).then(() => controller.abort())
  const options = { ...optionsOf(request), signal: controller.signal }
  try {
    for await (const { id, logprob } of engine.generate(promptOf(request, vocabSize), options)) {
      answer.ids.push(id)
      answer.logprobs.push(logprob)
      if (answer.ids.length >= leaveAfter) return answer
      await turns(pause)
    }
  } catch (error) {
    if (error === controller.signal.reason) return answer
    throw error
  }
  answer.isWhole = true
  return answer
}

/**
 * What requests get alone, each on an engine of its own and a token a step; known answers are
 * remembered.
 */
export class Oracle {
  readonly #model: () => Model
  readonly #known = new Map<string, Answer>()

  constructor(model: () => Model) {
    this.#model = model
  }

  async answer(request: Request): Promise<Answer> {
    const { joinAt, pause, leaveAfter, abortAfter, promptLookup, ...asked } = request
    const key = JSON.stringify(asked)
    let answer = this.#known.get(key)
    if (!answer) {
      const model = this.#model()
      await using engine = createEngine({ model, kvMemory: 1 << 26, maxBatch: 1 })
      const patient = { joinAt: 0, pause: 0, leaveAfter: 1e9, abortAfter: 0, promptLookup: 0 }
      answer = await serve(engine, { ...request, ...patient }, model.config.vocabSize)
      this.#known.set(key, answer)
    }
    return answer
  }

  /** Throws unless an answer is the one that the request gets alone, as far as it goes. */
  async check(request: Request, given: Answer & { isWhole: boolean }): Promise<void> {
    const expected = await this.answer(request)
    const n = given.isWhole ? expected.ids.length : given.ids.length
    const differs = (at: number) =>
      given.ids[at] !== expected.ids[at] || given.logprobs[at] !== expected.logprobs[at]
    for (let i = 0; i < Math.max(n, given.ids.length); i++) {
      if (!differs(i)) continue
      throw new Error(
        [
          `token ${i} of ${given.ids.length} differs from what the request gets alone`,
          `  request  ${JSON.stringify(request)}`,
          `  batched  ${given.ids[i]} at ${given.logprobs[i]}`,
          `  alone    ${expected.ids[i]} at ${expected.logprobs[i]}`,
        ].join('\n'),
      )
    }
  }
}

/** Expects that an engine has nothing under way and holds no memory. */
export async function expectIdle(engine: Engine): Promise<void> {
  await turns(3) // the loop notices who has left
  const { queued, prefilling, decoding, sequences, kvMemory } = engine.stats()
  const { used } = kvMemory
  expect({ queued, prefilling, decoding, sequences, used }).toEqual({
    queued: 0,
    prefilling: 0,
    decoding: 0,
    sequences: 0,
    used: 0,
  })
}
