import { join } from 'node:path'
import {
  createEngine,
  type GeneratedToken,
  type GenerateOptions,
  type PolicySpec,
  type Sequence,
} from '../../lib/index'
import { toSeed, uniform } from '../../lib/random'
import { sample } from '../../lib/reference/index'
import { readFixturePrompts } from '../eval/fixture-prompts'
import { expectRejected } from '../support/errors'
import { kFixtures, kTrainedModels } from './model-copies'
import { collect, idsOf, someIds, useModel } from './running'

const model = useModel(join(kTrainedModels, 'line-retrieval'))
/** Weights that nobody trained, sure of nothing. */
const random = useModel(join(kFixtures, 'llama'))
/** Answered with `line quaint - image : REGISTER_CONTENT is < 5 5 7 4 2 > \n answer : line …`, greedily. */
const prompt = readFixturePrompts()[0]
const [kGreater, kNewline] = [9, 4]
const answer = [...prompt.answer_ids, kGreater, kNewline]
const answerText = 'line quaint - image : REGISTER_CONTENT is < 5 5 7 4 2 > \n'

const generate = (options: GenerateOptions) =>
  collect(model().generate(prompt.ids, { policy: 'full', ...options }))

describe('greedy', () => {
  test('takes the likeliest token, and its text', async () => {
    const { ids, text, logprobs } = await generate({ maxTokens: 15 })
    expect(ids).toEqual(answer)
    expect(text).toBe(answerText)
    expect(text).toBe(model().tokenizer!.decode(ids))
    for (const logprob of logprobs) expect(logprob).toBeLessThanOrEqual(0)
    // The model is sure of what it was trained to say.
    expect(Math.exp(logprobs.reduce((a, b) => a + b))).toBeGreaterThan(0.8)
  })

  test('does not depend on the seed, on top-k, top-p or min-p', async () => {
    for (const options of [{ seed: 9 }, { topK: 1 }, { topP: 0.1 }, { minP: 1 }]) {
      expect((await generate({ maxTokens: 15, ...options })).ids).toEqual(answer)
    }
  })

  test('of no tokens is a prefill', async () => {
    const sequence = model().createSequence()
    expect(await collect(sequence.generate(prompt.ids, { maxTokens: 0 }))).toMatchObject({
      ids: [],
    })
    expect([sequence.length, sequence.finishReason]).toEqual([prompt.ids.length, 'length'])
    expect((await collect(sequence.generate(null, { maxTokens: 13 }))).ids).toEqual(
      prompt.answer_ids,
    )
    sequence.dispose()
  })

  test('a text is a prompt, too', async () => {
    const text = model().tokenizer!.decode(prompt.ids)
    const { ids } = await collect(model().generate(text, { maxTokens: 13, policy: 'full' }))
    expect(ids).toEqual(prompt.answer_ids)
  })

  test('a typed array is a prompt, too', async () => {
    const { ids } = await collect(model().generate(Int32Array.from(prompt.ids), { maxTokens: 13 }))
    expect(ids).toEqual(prompt.answer_ids)
  })
})

describe('sampling', () => {
  /** Tokens and log-probabilities by the reference, over logits of the whole text so far at once. */
  async function expectReference(options: GenerateOptions, n = 25): Promise<number[]> {
    const start = someIds(40, model().config.vocabSize)
    const { ids, logprobs } = await collect(
      model().generate(start, { policy: 'full', maxTokens: n, ignoreEos: true, ...options }),
    )
    const { vocabSize } = model().config
    const all = [...start, ...ids]
    const logits = await model().logits(all, { policy: 'full' })
    const params = {
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      ...options,
    }
    ids.forEach((id, step) => {
      const at = start.length + step
      const seen = new Uint8Array(vocabSize)
      for (const earlier of all.slice(0, at)) seen[earlier] = 1
      const row = logits.subarray((at - 1) * vocabSize, at * vocabSize)
      const u = uniform(toSeed(options.seed ?? 0), at)
      const expected = sample({ logits: row, params, seen, u })
      expect({ step, id }).toEqual({ step, id: expected.id })
      expect(Math.abs(logprobs[step] - expected.logprob)).toBeLessThan(2e-4)
    })
    return ids
  }

  test.each<[string, GenerateOptions]>([
    ['temperature 1', { temperature: 1 }],
    ['temperature 0.3', { temperature: 0.3, seed: 3 }],
    ['temperature 2', { temperature: 2, seed: 4 }],
    ['top-k', { temperature: 1.5, topK: 5, seed: 1 }],
    ['top-p', { temperature: 1.5, topP: 0.7, seed: 2 }],
    ['min-p', { temperature: 2, minP: 0.1, seed: 5 }],
    ['all of them', { temperature: 1.2, topK: 20, topP: 0.9, minP: 0.02, seed: 6 }],
    ['a repetition penalty, greedily', { repetitionPenalty: 1.3 }],
    ['a repetition penalty', { temperature: 1, repetitionPenalty: 2, seed: 7 }],
    ['a negative seed', { temperature: 1, seed: -1 }],
  ])('follows the reference: %s', async (_, options) => {
    await expectReference(options)
  })

  test('the same seed gives the same tokens, another seed others', async () => {
    const draw = (seed: number) => idsOf(random(), [5, 6, 7], 20, { temperature: 1, seed })
    const draws = []
    for (const seed of [1, 2, 3, 1]) draws.push((await draw(seed)).join())
    expect(draws[3]).toBe(draws[0])
    expect(new Set(draws).size).toBe(3)
  })

  test('top-k of one is greedy at any temperature', async () => {
    expect((await generate({ temperature: 5, topK: 1, maxTokens: 15 })).ids).toEqual(answer)
  })

  test('probabilities of all tokens sum to one', async () => {
    // log-probabilities of a token are its logit less the log of the sum over the vocabulary
    const { ids, logprobs } = await generate({ maxTokens: 5 })
    const { vocabSize } = model().config
    const logits = await model().logits([...prompt.ids, ...ids], { policy: 'full' })
    logprobs.forEach((logprob, step) => {
      const row = logits.subarray((prompt.ids.length - 1 + step) * vocabSize).subarray(0, vocabSize)
      const total = row.reduce((sum, x) => sum + Math.exp(x - row[ids[step]]), 0)
      expect(logprob).toBeCloseTo(-Math.log(total), 4)
    })
  })
})

describe('stopping', () => {
  const stopped = async (options: GenerateOptions, sequence = model().createSequence()) => {
    const { ids, text } = await collect(
      sequence.generate(prompt.ids, { maxTokens: 15, ...options }),
    )
    const { finishReason } = sequence
    sequence.dispose()
    return { ids, text, finishReason }
  }

  test('for lack of room', async () => {
    expect(await stopped({})).toEqual({ ids: answer, text: answerText, finishReason: 'length' })
    expect(await stopped({ maxTokens: 1 })).toMatchObject({ ids: [5], finishReason: 'length' })
  })

  test('at a stop token, which is not part of it', async () => {
    expect(await stopped({ stopTokens: [kGreater] })).toEqual({
      ids: prompt.answer_ids,
      text: 'line quaint - image : REGISTER_CONTENT is < 5 5 7 4 2',
      finishReason: 'stop',
    })
    expect(await stopped({ stopTokens: [100, 5] })).toEqual({
      ids: [],
      text: '',
      finishReason: 'stop',
    })
    expect(await stopped({ stopTokens: [kGreater], ignoreEos: true })).toMatchObject({
      ids: prompt.answer_ids,
    })
  })

  test('at a stop text, which is not part of it', async () => {
    expect(await stopped({ stop: ' is' })).toMatchObject({
      text: 'line quaint - image : REGISTER_CONTENT',
      finishReason: 'stop',
    })
    expect(await stopped({ stop: 'line' })).toMatchObject({ text: '', finishReason: 'stop' })
    expect(await stopped({ stop: ['nowhere', '5 7', 'NOT'] })).toMatchObject({
      text: 'line quaint - image : REGISTER_CONTENT is < 5 ',
      finishReason: 'stop',
    })
  })

  test('at a stop text that ends inside a token', async () => {
    expect(await stopped({ stop: 'GISTER' })).toMatchObject({
      text: 'line quaint - image : RE',
      finishReason: 'stop',
    })
  })

  test.each([
    ['full', 'line', 0],
    ['full', ' is', 6],
    ['full', 'GISTER', 5], // the token that it begins in is not part of it either
    ['full', ['nowhere', '5 7', 'NOT'], 9],
    ['zipcache', 'line quaint - image', 0],
    ['zipcache', '5 7 4', 9],
    // Two windows are packed by then: that cannot be taken back.
    [{ name: 'zipcache', window: 6 }, '- image', 2],
    [{ name: 'zipcache', window: 6 }, answerText.trim(), 12],
    ['kivi4', '5 7', 10], // nor can what lies in rows
  ] as [PolicySpec, string | string[], number][])(
    'and goes on from before it: %j, %j',
    async (policy, stop, nKept) => {
      const sequence = model().createSequence({ policy })
      const tokens = sequence.generate(prompt.ids, { maxTokens: 15, stop })
      const { text } = await collect(tokens)
      expect(tokens.finishReason).toBe('stop')
      const kept = sequence.tokens.slice(prompt.ids.length)
      expect(kept).toEqual(answer.slice(0, nKept))
      if (policy === 'full') expect(text.startsWith(model().tokenizer!.decode(kept))).toBe(true)
      const rest = await idsOf(sequence, null, answer.length - nKept)
      expect([...kept, ...rest]).toEqual(
        await idsOf(model(), prompt.ids, answer.length, { policy }),
      )
      sequence.dispose()
    },
  )

  test('not at a text that only begins like a stop text', async () => {
    expect(await stopped({ stop: '5 5 7 4 3' })).toEqual({
      ids: answer,
      text: answerText,
      finishReason: 'length',
    })
  })

  test('with what was held back for a stop text that never came', async () => {
    expect(await stopped({ stop: '4 2 > \n and on' })).toMatchObject({
      text: answerText,
      finishReason: 'length',
    })
    const { text, finishReason } = await stopped({ stop: '4 2 !', stopTokens: [kGreater] })
    expect({ text, finishReason }).toEqual({
      text: 'line quaint - image : REGISTER_CONTENT is < 5 5 7 4 2',
      finishReason: 'stop',
    })
  })

  test('a stop token is told only for text that was held back, and says that it is one', async () => {
    const ends = async (stop: string) => {
      const all: GeneratedToken[] = []
      const options = { maxTokens: 15, stop, stopTokens: [kGreater] }
      for await (const token of model().generate(prompt.ids, options)) all.push(token)
      return all.filter(({ isStop }) => isStop).map(({ id, text }) => [id, text])
    }
    expect(await ends('nowhere')).toEqual([])
    expect(await ends('4 2 !')).toEqual([[kGreater, '4 2']])
  })

  test('a text that goes on with that of the prompt keeps its first space', async () => {
    const { text } = await stopped({ continueText: true })
    expect(text).toBe(` ${answerText}`)
  })

  test("at the model's own end of text, unless that is ignored", async () => {
    // So hot that any token is as likely as another: </s> is one in 320.
    const hot = { temperature: 1000, maxTokens: 60, seed: 6 }
    const start = someIds(10, random().config.vocabSize)
    const sequence = random().createSequence({ policy: 'fp16' })
    const { ids } = await collect(sequence.generate(start, hot))
    expect(sequence.finishReason).toBe('stop')
    expect(ids).not.toContain(2)
    sequence.dispose()
    const ignoring = await idsOf(random(), start, 60, { ...hot, policy: 'fp16' })
    expect(ignoring.slice(0, ids.length + 1)).toEqual([...ids, 2])
    expect(ignoring).toHaveLength(60)
  })

  test('again at the same end when asked to go on', async () => {
    const sequence = model().createSequence()
    const stop = { maxTokens: 30, stopTokens: [kGreater] }
    await collect(sequence.generate(prompt.ids, stop))
    expect((await collect(sequence.generate(null, stop))).ids).toEqual([])
    expect(await idsOf(sequence, null, 2)).toEqual([kGreater, kNewline])
    sequence.dispose()
  })

  test('has no reason before and while it runs, nor when its loop is left', async () => {
    const sequence = model().createSequence()
    expect(sequence.finishReason).toBeNull()
    for await (const { id } of sequence.generate(prompt.ids, { maxTokens: 5 })) {
      expect(sequence.finishReason).toBeNull()
      if (id === answer[3]) break
    }
    expect(sequence.finishReason).toBeNull()
    await idsOf(sequence, null, 1)
    expect(sequence.finishReason).toBe('length')
    sequence.dispose()
  })
})

describe('a stream of tokens says by itself why it ended', () => {
  test.each(['a model', 'an engine', 'a sequence'])('of %s', async (whose) => {
    await using engine = createEngine({ model: model(), kvMemory: 2 ** 24 })
    const source = whose === 'a model' ? model() : engine
    const sequences: Sequence[] = []
    const generate = (options: GenerateOptions) => {
      if (whose !== 'a sequence') return source.generate(prompt.ids, options)
      const sequence = engine.createSequence()
      sequences.push(sequence)
      return sequence.generate(prompt.ids, options)
    }
    for (const [options, nTokens, reason] of [
      [{ maxTokens: 3 }, 3, 'length'],
      [{ maxTokens: 0 }, 0, 'length'],
      [{ maxTokens: 3, stopTokens: [5] }, 0, 'stop'],
      [{ maxTokens: 15, stop: ' is' }, 7, 'stop'],
    ] as const) {
      const tokens = generate(options)
      const ids: number[] = []
      for await (const { id } of tokens) {
        expect(tokens.finishReason).toBeNull()
        ids.push(id)
      }
      expect([ids.length, tokens.finishReason]).toEqual([nTokens, reason])
    }
    const left = generate({ maxTokens: 3 })
    for await (const _ of left) break
    expect(left.finishReason).toBeNull()
    const failed = generate({ maxTokens: -1 })
    await expectRejected(failed.next(), { code: 'ERR_ZC_ARGUMENT', argument: 'maxTokens' })
    expect(failed.finishReason).toBeNull()
    for (const sequence of sequences) sequence.dispose()
    expect(source.stats().sequences).toBe(0)
  })
})

describe('leaving the loop', () => {
  test.each(['full', { name: 'zipcache', window: 6 }, 'kivi4', 'h2o'] as const)(
    'and going on gives what one loop gives: %j',
    async (policy) => {
      const expected = await idsOf(model(), prompt.ids, 15, { policy })
      const sequence = model().createSequence({ policy })
      const ids: number[] = []
      for (const [input, n] of [
        [prompt.ids, 3],
        [null, 1],
        [null, 7],
        [null, 4],
      ] as const) {
        let left = n
        for await (const { id } of sequence.generate(input, { maxTokens: 50 })) {
          ids.push(id)
          if (--left === 0) break
        }
      }
      expect(ids).toEqual(expected)
      sequence.dispose()
    },
  )

  test('before the first token leaves the sequence as it was', async () => {
    const sequence = model().createSequence()
    const tokens = sequence.generate(prompt.ids, { maxTokens: 3 })
    await tokens.return()
    expect(sequence.length).toBe(0)
    expect(await idsOf(sequence, prompt.ids, 13)).toEqual(prompt.answer_ids)
    sequence.dispose()
  })

  test('of model.generate returns its memory', async () => {
    const used = model().kvMemory.used
    for await (const _ of model().generate(prompt.ids)) break
    expect(model().kvMemory.used).toBe(used)
  })
})

describe('the context ends', () => {
  test('and so does the generation', async () => {
    const { maxPositions, vocabSize } = random().config
    const sequence = random().createSequence({ policy: 'uniform2' })
    await sequence.prefill(someIds(maxPositions - 4, vocabSize))
    expect(await idsOf(sequence, null, 100)).toHaveLength(4)
    expect(sequence.finishReason).toBe('length')
    await expectRejected(sequence.prefill([5, 6]), {
      code: 'ERR_ZC_CONTEXT_LENGTH',
      argument: 'prompt',
      message: /4098 tokens.* 4096/,
    })
    sequence.dispose()
  })
})

describe('options that are refused', () => {
  const bad: [string, unknown][] = [
    ...[-1, 1.5, Number.NaN, '5', 2 ** 31].map((v): [string, unknown] => ['maxTokens', v]),
    ...[-0.1, Number.NaN, Number.POSITIVE_INFINITY, '1'].map((v): [string, unknown] => [
      'temperature',
      v,
    ]),
    ...[-1, 0.5, '3'].map((v): [string, unknown] => ['topK', v]),
    ...[-1, 1.5, 21].map((v): [string, unknown] => ['topLogprobs', v]),
    ...[-0.1, 1.1, Number.NaN].map((v): [string, unknown] => ['topP', v]),
    ...[-0.1, 1.1].map((v): [string, unknown] => ['minP', v]),
    ...[0, -1, 1e9].map((v): [string, unknown] => ['repetitionPenalty', v]),
    ...[0.5, Number.NaN, '1', {}].map((v): [string, unknown] => ['seed', v]),
    ...['', [''], 5, [5], {}].map((v): [string, unknown] => ['stop', v]),
    ...['9', 9, ['9'], [1.5], {}].map((v): [string, unknown] => ['stopTokens', v]),
    ['stopTokens', [-1]],
    ['stopTokens', [1e6]],
    ['policy', 'full'], // of a request, not of a sequence that has one
    ['topk', 3],
  ]
  test.each(bad)('%s: %p', async (option, value) => {
    const sequence = model().createSequence()
    const tokens = sequence.generate(prompt.ids, { [option]: value })
    await expectRejected(collect(tokens), { code: 'ERR_ZC_ARGUMENT', argument: option })
    expect(sequence.length).toBe(0)
    sequence.dispose()
  })

  test('are told apart from what they look like', async () => {
    for (const [options, message] of [
      [{ temperature: '1' }, 'temperature: is "1", expected a number of 0 to 1000'],
      [{ seed: '7' }, 'seed: is "7", expected an integer'],
      [{ stop: [''] }, 'stop: is [""], expected a text, or a list of texts, none empty'],
    ] as const) {
      const tokens = model().generate([5], options as never)
      await expect(tokens.next()).rejects.toThrow(message)
    }
    const messages = [{ role: 'user', content: 'line' }]
    await expect(
      model()
        .generate(messages as never)
        .next(),
    ).rejects.toThrow(
      'prompt: token 0 is {"role":"user","content":"line"}, expected a whole number below 192',
    )
  })
})
