/** Tokens that are drafted from the text so far: the answer is what it is without, in fewer steps. */
import { join } from 'node:path'
import fc from 'fast-check'
import { PromptLookup } from '../../lib/engine/prompt-lookup'
import { createEngine, type GenerateOptions, type PolicySpec, type Sequence } from '../../lib/index'
import { describeDevices } from '../support/backends'
import { expectRejected } from '../support/errors'
import { propertyRuns } from '../support/properties'
import { kTrainedModels } from './model-copies'
import { testPolicies } from './requests'
import { collect, someIds, useModel, withModel } from './running'

describe('what is drafted', () => {
  const draftOf = (tokens: number[], room = 4) => [...new PromptLookup(tokens, 15).draft(room)]

  test('is what followed the newest tokens before', () => {
    expect(draftOf([1, 2, 3, 4, 5, 6, 7, 2, 3])).toEqual([4, 5, 6])
    expect(draftOf([1, 2, 3, 4, 5, 6, 7, 2, 3], 2)).toEqual([4, 5])
  })

  test('is what followed the longest repetition, and the newest of several', () => {
    expect(draftOf([9, 1, 2, 3, 50, 8, 2, 3, 60, 9, 1, 2, 3], 1)).toEqual([50])
    expect(draftOf([2, 3, 50, 2, 3, 60, 7, 2, 3], 1)).toEqual([60])
  })

  test('goes on as a text that repeats itself', () => {
    expect(draftOf([1, 2, 1, 2])).toEqual([1, 2, 1])
    expect(draftOf([5, 5, 5])).toEqual([5, 5, 5])
  })

  test.each([[[]], [[1]], [[1, 1]], [[1, 2, 3]], [[1, 2, 3, 1]], [[1, 2, 3, 2]], [[2, 3, 3, 2]]])(
    'is nothing where no two tokens are repeated: %j',
    (tokens) => {
      expect(draftOf(tokens)).toEqual([])
    },
  )

  test('is nothing without room', () => {
    expect(draftOf([1, 2, 1, 2], 0)).toEqual([])
    expect(draftOf([1, 2, 1, 2], -1)).toEqual([])
  })

  test('grows where all was right, and becomes shorter where less than half was', () => {
    const lookup = new PromptLookup([1, 2, 1, 2], 15)
    const length = () => lookup.draft(100).length
    const lengths = [length()]
    for (const nRight of [3, 7, 15, 15, 8, 7, 4, 3, 2, 1, 0, 0, 1]) {
      lookup.judge(length(), nRight)
      lengths.push(length())
    }
    expect(lengths).toEqual([3, 7, 15, 15, 15, 15, 7, 7, 3, 3, 1, 1, 1, 3])
    const bounded = new PromptLookup([1, 2, 1, 2], 5)
    bounded.judge(3, 3)
    expect(bounded.draft(100)).toHaveLength(5)
  })

  test('goes on behind a token that was another, twice', () => {
    const lookup = new PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 90, 1, 2], 15)
    expect([...lookup.draft(4)]).toEqual([3, 4, 5])
    lookup.judge(3, 2) // 3 and 4, then 70 instead of 5
    for (const id of [3, 4, 70]) lookup.push(id)
    expect([...lookup.draft(4)]).toEqual([6, 7, 8])
    lookup.judge(3, 0)
    lookup.push(71)
    expect([...lookup.draft(4)]).toEqual([7])
    lookup.judge(1, 0)
    lookup.push(72)
    expect([...lookup.draft(4)]).toEqual([])
  })

  test('property: the same for tokens that were there and for those that came', () => {
    const texts = fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 600 })
    fc.assert(
      fc.property(texts, fc.nat(600), (tokens, at) => {
        const grown = new PromptLookup(tokens.slice(0, at), 15)
        for (const id of tokens.slice(at)) grown.push(id)
        expect([...grown.draft(15)]).toEqual([...new PromptLookup(tokens, 15).draft(15)])
      }),
      propertyRuns(100),
    )
  })
})

/** Text that was there before comes again, and again. */
function repeating(nTokens: number, vocabSize: number): number[] {
  const [a, b] = [someIds(13, vocabSize, 2), someIds(8, vocabSize, 3)]
  const tokens: number[] = []
  while (tokens.length < nTokens) tokens.push(...a, ...b, ...a)
  return tokens.slice(0, nTokens)
}

describe('an answer', () => {
  const model = useModel(join(kTrainedModels, 'line-retrieval'))

  const policies: readonly PolicySpec[] = [
    ...testPolicies,
    'zipcache-plus',
    { name: 'zipcache', window: 1 },
    { name: 'zipcache', window: 2 },
    { name: 'zipcache', saliencyRatio: 'auto', window: 24 },
  ]
  const ways = [
    { temperature: 0 },
    { temperature: 0.6 },
    { temperature: 0, repetitionPenalty: 1.02 },
  ]
  test.each(policies.flatMap((policy) => ways.map((way) => ({ policy, ...way }))))(
    'is the same with drafts and without, in fewer steps: %j',
    async ({ policy, ...way }) => {
      const prompt = repeating(150, model().config.vocabSize)
      const asked = { policy, ...way, seed: 4, maxTokens: 140, ignoreEos: true }
      const answer = async (promptLookup: number) => {
        await using engine = createEngine({ model: model(), kvMemory: 1 << 26, maxBatch: 1 })
        const { ids, logprobs } = await collect(engine.generate(prompt, { ...asked, promptLookup }))
        return { ids, logprobs, stats: engine.stats() }
      }
      const plain = await answer(0)
      expect(plain.stats).toMatchObject({ steps: 139, draftTokens: 0, acceptedTokens: 0 })
      for (const promptLookup of [1, 4, 15]) {
        const { ids, logprobs, stats } = await answer(promptLookup)
        expect(ids).toEqual(plain.ids)
        expect(logprobs).toEqual(plain.logprobs)
        expect(stats.steps).toBe(139 - stats.acceptedTokens)
        expect(stats.windowsClosed).toBe(plain.stats.windowsClosed)
      }
      const { draftTokens, acceptedTokens } = (await answer(15)).stats
      const isWindowOfFew = typeof policy === 'object' && 'window' in policy && policy.window! < 3
      if (isWindowOfFew) expect(draftTokens).toBe(0)
      else if (way.temperature === 0) expect(acceptedTokens).toBeGreaterThan(20)
      else expect(draftTokens).toBeGreaterThan(acceptedTokens)
    },
  )

  /** What a sequence is after `nRead` tokens of an answer, and says then. */
  async function left(sequence: Sequence, nRead: number, options: GenerateOptions) {
    const prompt = repeating(120, model().config.vocabSize)
    let n = 0
    for await (const _ of sequence.generate(prompt, { ignoreEos: true, ...options })) {
      if (++n >= nRead) break
    }
    const { length, tokens, bytes } = sequence
    // A draft may have been the first token of a page, which the table keeps room for.
    const { tables: _, ...held } = bytes.byClass
    const next = await collect(sequence.generate([7, 8, 9], { maxTokens: 8, ignoreEos: true }))
    return { length, tokens, held, next }
  }

  test.each(['fp16', { name: 'zipcache', window: 30 } as const])(
    'that is left after any token leaves the sequence as without drafts: %j',
    async (policy) => {
      for (let nRead = 1; nRead <= 45; nRead += nRead < 8 ? 1 : 3) {
        const found = []
        for (const promptLookup of [0, 15]) {
          using sequence = model().createSequence({ policy })
          found.push(await left(sequence, nRead, { maxTokens: 60, promptLookup }))
        }
        expect(found[1]).toEqual(found[0])
      }
    },
  )

  test("is the same where drafts make a page table move, and another's takes its place", async () => {
    const { vocabSize } = model().config
    const asked = { maxTokens: 6, ignoreEos: true }
    // The third token of a draft is the first of a page; the other's first token is, too, and its table
    // grows to what this one's was for some of these lengths.
    for (const nPages of [13, 17, 21, 24]) {
      const prompt = someIds(16 * nPages - 2, vocabSize, 2)
      const plain = await collect(model().generate(prompt, { ...asked, policy: 'fp16' }))
      for (let nOthers = 1; nOthers < nPages; nOthers += 3) {
        await using engine = createEngine({ model: model(), kvMemory: 1 << 24 })
        const [one, other] = [1, 2].map(() => engine.createSequence({ policy: 'fp16' }))
        await one.prefill(prompt)
        await other.prefill(someIds(16 * nOthers, vocabSize, 3))
        const [found] = await Promise.all([
          collect(one.generate(null, { ...asked, prediction: plain.ids })),
          collect(other.generate(null, asked)),
        ])
        expect(found).toEqual(plain)
        expect(engine.stats().acceptedTokens).toBeGreaterThan(0)
      }
    }
  })

  test('ends at the same place by length, stop token and the end of the context', async () => {
    const { vocabSize, maxPositions } = model().config
    const prompt = repeating(100, vocabSize)
    const { ids } = await collect(
      model().generate(prompt, { maxTokens: 60, ignoreEos: true, policy: 'fp16' }),
    )
    const near = repeating(maxPositions - 20, vocabSize)
    const ends: [number[], GenerateOptions][] = [
      ...Array.from({ length: 20 }, (_, i): [number[], GenerateOptions] => [
        prompt,
        { maxTokens: 1 + i },
      ]),
      [prompt, { stopTokens: [ids[30]] }],
      [near, {}],
    ]
    for (const [asked, options] of ends) {
      const found = []
      for (const promptLookup of [0, 15]) {
        using sequence = model().createSequence({ policy: 'zipcache' })
        const { ids: got } = await collect(
          sequence.generate(asked, { ignoreEos: true, ...options, promptLookup }),
        )
        const { finishReason, length, tokens } = sequence
        found.push({ got, finishReason, length, tokens })
      }
      expect(found[1]).toEqual(found[0])
    }
  })

  test.each([
    { repetitionPenalty: 1.02, topLogprobs: 1 },
    { presencePenalty: 0.01 },
    { frequencyPenalty: 0.001, temperature: 0.3 },
    { logitBias: { 3: 1 } },
    { topLogprobs: 2 },
    { topLogprobs: 3, temperature: 0.3, stop: ['6 7'] },
  ] as GenerateOptions[])(
    'beside what changes logits is the same, in fewer steps: %j',
    async (change) => {
      const prompt = repeating(120, model().config.vocabSize)
      await using engine = createEngine({ model: model(), kvMemory: 1 << 26 })
      const answer = async (promptLookup: number) => {
        const { steps } = engine.stats()
        const tokens = []
        const asked = { maxTokens: 60, ignoreEos: true, ...change, promptLookup }
        for await (const { isDrafted: _, ...token } of engine.generate(prompt, asked))
          tokens.push(token)
        return { tokens, steps: engine.stats().steps - steps }
      }
      const plain = await answer(0)
      const drafted = await answer(8)
      expect(drafted.tokens).toEqual(plain.tokens)
      const { acceptedTokens, draftTokens } = engine.stats()
      expect(acceptedTokens).toBeGreaterThan(5)
      expect(draftTokens).toBeGreaterThanOrEqual(acceptedTokens)
      expect(drafted.steps).toBeLessThan(plain.steps - 5)
    },
  )

  test('drafts nothing in rows', async () => {
    const prompt = repeating(120, model().config.vocabSize)
    await using engine = createEngine({ model: model(), kvMemory: 1 << 26 })
    const asked = { maxTokens: 20, ignoreEos: true, policy: 'h2o' } as const
    const plain = await collect(engine.generate(prompt, asked))
    expect(await collect(engine.generate(prompt, { ...asked, promptLookup: 8 }))).toEqual(plain)
    expect(engine.stats().draftTokens).toBe(0)
  })

  test.each([-1, 16, 1.5, Number.NaN, '4'])('promptLookup: %p is refused', async (value) => {
    const promptLookup = value as number
    const tokens = model().generate([1, 2, 3], { promptLookup })
    await expectRejected(collect(tokens), { code: 'ERR_ZC_ARGUMENT', argument: 'promptLookup' })
  })
})

describeDevices(
  'on a device',
  (device) => {
    test.each(['f32', 'bf16'] as const)(
      '%s: an answer with drafts is that without',
      async (dtype) => {
        const options = { device, dtype, kvMemory: 1 << 24 }
        await withModel(join(kTrainedModels, 'line-retrieval'), options, async (model) => {
          const prompt = repeating(130, model.config.vocabSize)
          const policy = { name: 'zipcache', window: 32 } as const
          const asked = { maxTokens: 48, ignoreEos: true, policy }
          const plain = await collect(model.generate(prompt, asked))
          const { steps } = model.stats()
          const drafted = await collect(model.generate(prompt, { ...asked, promptLookup: 7 }))
          expect(drafted.ids).toEqual(plain.ids)
          drafted.logprobs.forEach((logprob, i) => {
            expect(Math.abs(logprob - plain.logprobs[i])).toBeLessThan(
              device === 'cpu' ? 1e-30 : 1e-3,
            )
          })
          const { acceptedTokens } = model.stats()
          expect(acceptedTokens).toBeGreaterThan(10)
          expect(model.stats().steps - steps).toBe(steps - acceptedTokens)
        })
      },
      240_000,
    )
  },
  ['cpu', 'cuda-emu', 'cuda'],
)
