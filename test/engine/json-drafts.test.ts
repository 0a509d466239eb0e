/** What a schema leaves no choice about is drafted: the answer is what it is without, in fewer steps. */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { DecodeStep } from '../../lib/engine/decode-step'
import { ZipCacheError } from '../../lib/errors'
import { TokenMasker } from '../../lib/grammar/index'
import {
  createEngine,
  type Engine,
  type GenerateOptions,
  type LoadOptions,
  loadModel,
  type Model,
  type PolicySpec,
} from '../../lib/index'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { describeDevices } from '../support/backends'
import { propertyRuns } from '../support/properties'
import { kFixtures } from './model-copies'
import { collect, someIds } from './running'

const schema = {
  type: 'object',
  properties: {
    temperature: { type: 'integer', minimum: 0, maximum: 99 },
    conditions: { enum: ['clear', 'cloudy'] },
    'wind speed': { type: 'object', properties: { kmh: { type: 'boolean' } }, required: ['kmh'] },
  },
  required: ['temperature', 'conditions', 'wind speed'],
}

/** A model of bytes; what it says is anything. */
async function load(options: LoadOptions): Promise<Model> {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-json-'))
  for (const name of ['config.json', 'model.safetensors']) {
    copyFileSync(join(kFixtures, 'llama', name), join(folder, name))
  }
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(byteLevelTokenizer()))
  try {
    return await loadModel(folder, { kvMemory: 2 ** 26, ...options })
  } finally {
    rmSync(folder, { recursive: true })
  }
}

let model: Model
beforeAll(async () => {
  model = await load({ threads: 1 })
})
afterAll(() => model.dispose())
afterEach(() => jest.restoreAllMocks())

const prompt = () => someIds(60, 256)

async function answer(options: GenerateOptions & { policy?: string }, likely?: () => number[]) {
  const { policy = 'zipcache', ...asked } = options
  const spy = likely && jest.spyOn(TokenMasker.prototype, 'likely').mockImplementation(likely)
  await using engine = createEngine({ model, kvMemory: 2 ** 24, maxBatch: 1 })
  const stream = engine.generate(prompt(), { json: schema, policy, maxTokens: 300, ...asked })
  const { ids, logprobs, text } = await collect(stream)
  spy?.mockRestore()
  return { ids, logprobs, text, stats: engine.stats(), finishReason: stream.finishReason }
}

describe.each(['fp16', 'zipcache', 'full'])('%s', (policy) => {
  test.each([
    { temperature: 0 },
    { temperature: 1.5, seed: 3 },
    { temperature: 1, seed: 5, topLogprobs: 3, presencePenalty: 0.5 },
    { temperature: 0, repetitionPenalty: 1.3 },
    { temperature: 0, promptLookup: 15 },
    { temperature: 0, maxTokens: 40 },
  ])('%j', async (way) => {
    const plain = await answer({ ...way, policy, promptLookup: 0 }, () => [])
    expect(plain.stats.draftTokens).toBe(0)
    const { stats, ...found } = await answer({ ...way, policy })
    expect(found).toEqual({ ...plain, stats: undefined })
    // A byte is a token here: what the schema leaves no choice about is right, white space is anything.
    expect(stats.acceptedTokens).toBeGreaterThan(10)
    expect(stats.steps).toBe(plain.stats.steps - stats.acceptedTokens)
  })
})

test('half of a small answer is what its schema says', async () => {
  const { text, ids, stats } = await answer({ temperature: 0 })
  expect(Object.keys(JSON.parse(text))).toEqual(['temperature', 'conditions', 'wind speed'])
  expect(stats.steps).toBeLessThan(ids.length / 2)
})

test('property: whatever is drafted, the answer is the same', async () => {
  const plain = await answer({ temperature: 1.2, seed: 1 }, () => [])
  const anything = fc.array(fc.array(fc.nat(255), { maxLength: 20 }), {
    minLength: 1,
    maxLength: 8,
  })
  await fc.assert(
    fc.asyncProperty(anything, fc.boolean(), async (drafts, isRightAtTimes) => {
      let n = 0
      const original = TokenMasker.prototype.likely
      const likely = function (this: TokenMasker): number[] {
        const right = isRightAtTimes && n % 2 === 0 ? original.call(this) : []
        return [...right.slice(0, 3), ...(drafts[n++ % drafts.length] as number[])]
      }
      const { ids, logprobs } = await answer(
        { temperature: 1.2, seed: 1 },
        likely as () => number[],
      )
      expect({ ids, logprobs }).toEqual({ ids: plain.ids, logprobs: plain.logprobs })
    }),
    propertyRuns(20),
  )
})

test('a grammar that cannot be followed so far ahead drafts nothing', async () => {
  const plain = await answer({ temperature: 0 }, () => [])
  const { stats, ...found } = await answer({ temperature: 0 }, () => {
    throw new ZipCacheError('ERR_ZC_UNSUPPORTED', 'too many ways')
  })
  expect(found).toEqual({ ...plain, stats: undefined })
  expect(stats.draftTokens).toBe(0)
})

test('what fails otherwise while it is drafted fails its own request alone', async () => {
  await using engine = createEngine({ model, kvMemory: 2 ** 24 })
  const free = () => collect(engine.generate(prompt(), { maxTokens: 60, ignoreEos: true }))
  const alone = await free()
  jest.spyOn(TokenMasker.prototype, 'likely').mockImplementation(() => {
    throw new TypeError('a fault')
  })
  const held = collect(engine.generate(prompt(), { json: schema, maxTokens: 60 }))
  const [failed, other] = await Promise.allSettled([held, free()])
  expect(failed).toMatchObject({ status: 'rejected', reason: { message: 'a fault' } })
  expect(other).toMatchObject({ status: 'fulfilled', value: { ids: alone.ids } })
  expect(engine.stats()).toMatchObject({ queued: 0, decoding: 0 })
})

test('requests of one batch draft beside others that do not', async () => {
  await using engine = createEngine({ model, kvMemory: 2 ** 24 })
  const alone = await answer({ temperature: 0 }, () => [])
  const others = await collect(engine.generate(prompt(), { maxTokens: 80, ignoreEos: true }))
  const free = () => collect(engine.generate(prompt(), { maxTokens: 80, ignoreEos: true }))
  const held = () =>
    collect(engine.generate(prompt(), { json: schema, policy: 'zipcache', maxTokens: 300 }))
  const [a, b, c, d] = await Promise.all([free(), held(), held(), free()])
  expect([a.ids, d.ids]).toEqual([others.ids, others.ids])
  expect([b.ids, c.ids]).toEqual([alone.ids, alone.ids])
  expect(engine.stats().acceptedTokens).toBeGreaterThan(40)
})

interface Talk extends GenerateOptions {
  policy: PolicySpec
  /** Tokens of the first answer, at most: then its reader leaves. */
  leave: number
}

/** Two answers of JSON, the first perhaps not to its end, and one that is free: tokens, and how long the sequence is. */
async function talk(engine: Engine, { policy, leave, ...asked }: Talk): Promise<unknown[]> {
  using sequence = engine.createSequence({ policy })
  const said: unknown[] = []
  for (const options of [{ json: schema }, { json: schema }, { maxTokens: 12, ignoreEos: true }]) {
    const isFirst = said.length === 0
    let left = isFirst ? leave : Number.POSITIVE_INFINITY
    const prompt = isFirst ? prompts.first : prompts.next
    for await (const { id, logprob } of sequence.generate(prompt, { ...asked, ...options })) {
      said.push(id, logprob)
      if (--left === 0) break
    }
    said.push(sequence.length)
  }
  return said
}
const prompts = { first: someIds(41, 256), next: someIds(5, 256) }

test('property: many at a time, left anywhere, with room for a few rows: what each says alone without drafts', async () => {
  const policy = fc.oneof(
    fc.constantFrom('fp16', 'full', 'kivi2'),
    fc.integer({ min: 4, max: 40 }).map((window) => ({ name: 'zipcache' as const, window })),
  )
  const someTalk: fc.Arbitrary<Talk> = fc.record({
    policy,
    temperature: fc.constantFrom(0, 1.3),
    seed: fc.nat(9),
    promptLookup: fc.constantFrom(0, 15),
    presencePenalty: fc.constantFrom(0, 0.5),
    stop: fc.constantFrom([], 'co', '":'),
    maxTokens: fc.integer({ min: 1, max: 150 }),
    leave: fc.integer({ min: 1, max: 200 }),
  })
  const talks = fc.array(someTalk, { minLength: 2, maxLength: 5 })
  const rooms = fc.array(fc.integer({ min: 1, max: 16 }), { minLength: 1, maxLength: 7 })
  let nAccepted = 0
  await fc.assert(
    fc.asyncProperty(talks, rooms, async (all, room) => {
      const plain: unknown[] = []
      {
        const spy = jest.spyOn(TokenMasker.prototype, 'likely').mockReturnValue([])
        await using engine = createEngine({ model, kvMemory: 2 ** 24 })
        for (const one of all) plain.push(await talk(engine, { ...one, promptLookup: 0 }))
        spy.mockRestore()
      }
      let n = 0
      const original = DecodeStep.prototype.roomFor
      const spy = jest.spyOn(DecodeStep.prototype, 'roomFor').mockImplementation(function (
        this: DecodeStep,
        nRows,
      ) {
        return Math.min(original.call(this, nRows), room[n++ % room.length] as number)
      })
      await using engine = createEngine({ model, kvMemory: 2 ** 24 })
      const found = await Promise.all(all.map((one) => talk(engine, one)))
      spy.mockRestore()
      expect(found).toEqual(plain)
      nAccepted += engine.stats().acceptedTokens
    }),
    propertyRuns(8),
  )
  expect(nAccepted).toBeGreaterThan(100)
})

describeDevices(
  'on a device',
  (device) => {
    test('the answer is that without', async () => {
      const own = await load({ device, dtype: 'f32' })
      try {
        const asked = {
          json: schema,
          policy: { name: 'zipcache', window: 32 },
          maxTokens: 90,
        } as const
        const spy = jest.spyOn(TokenMasker.prototype, 'likely').mockReturnValue([])
        const plain = await collect(own.generate(prompt(), asked))
        spy.mockRestore()
        const { steps } = own.stats()
        const found = await collect(own.generate(prompt(), asked))
        expect(found.ids).toEqual(plain.ids)
        const { acceptedTokens } = own.stats()
        expect(acceptedTokens).toBeGreaterThan(10)
        expect(own.stats().steps - steps).toBe(steps - acceptedTokens)
      } finally {
        await own.dispose()
      }
    }, 240_000)
  },
  ['cpu', 'cuda-emu', 'cuda'],
)
