/** Models with recurrent layers: a sequence's state goes where its keys and values go. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { KvCache } from '../../lib/cache/index'
import { DecodeStep } from '../../lib/engine/decode-step'
import {
  createEngine,
  type Engine,
  type EngineOptions,
  POLICY_NAMES,
  type PolicySpec,
  type Sequence,
  ZipCacheError,
} from '../../lib/index'
import { stateShape } from '../../lib/model/layer-kinds'
import { kFixtures, kTrainedModels, ModelCopies } from './model-copies'
import { collect, idsOf, maxDifference, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'qwen3.5'))
const kVocab = 160
const zip: PolicySpec = { name: 'zipcache', window: 12 }
const policies: PolicySpec[] = ['full', 'fp16', zip, 'kivi2', 'h2o']
const prompt = someIds(40, kVocab, 1)
const question = someIds(9, kVocab, 2)

async function withEngine(
  body: (engine: Engine) => Promise<void>,
  options: Partial<EngineOptions> = {},
): Promise<void> {
  const engine = createEngine({ model: model(), kvMemory: 64 << 20, ...options })
  try {
    await body(engine)
  } finally {
    await engine.dispose()
    expect(engine.kvMemory.used).toBe(0)
  }
}

/** What a sequence says next, which tells whether its state is the one after its tokens. */
const nextOf = (sequence: Sequence) => sequence.fork().logits(question)

async function prefilled(engine: Engine, policy: PolicySpec, ...turns: number[][]) {
  const sequence = engine.createSequence({ policy })
  for (const ids of turns) await sequence.prefill(ids)
  return sequence
}

test('a prompt of many slices is the same in turns, token by token, and in one', () =>
  withEngine(async (engine) => {
    const ids = someIds(1200, kVocab, 3)
    const whole = await prefilled(engine, 'full', ids)
    const expected = await nextOf(whole)
    for (const ends of [[1], [512], [3, 4, 700, 1199]]) {
      const turns = [...ends, ids.length].map((end, i) => ids.slice(i === 0 ? 0 : ends[i - 1], end))
      const logits = await nextOf(await prefilled(engine, 'full', ...turns))
      expect(maxDifference(logits, expected)).toBeLessThan(2e-5)
    }
  }))

test.each<PolicySpec>(['full', 'fp16', 'zipcache', 'kivi2'])(
  'generated tokens leave the state that a prompt of them does: %j',
  (policy) =>
    withEngine(async (engine) => {
      const answering = await prefilled(engine, policy, prompt)
      const ids = await idsOf(answering, null, 30)
      expect(answering.tokens).toEqual([...prompt, ...ids])
      const reading = await prefilled(engine, policy, prompt, ids)
      expect(maxDifference(await nextOf(answering), await nextOf(reading))).toBeLessThan(5e-3)
    }),
)

test.each(policies)('forks go on by themselves: %j', (policy) =>
  withEngine(async (engine) => {
    const alone = async (continuation: number[], n: number) =>
      idsOf(await prefilled(engine, policy, prompt, continuation), null, n)
    const expected = [await alone(question, 25), await alone([5, 6], 25)]
    const sequence = await prefilled(engine, policy, prompt)
    const before = await nextOf(sequence)
    const forks = [sequence.fork(), sequence.fork()]
    const answers = await Promise.all([
      idsOf(forks[0] as Sequence, question, 25),
      idsOf(forks[1] as Sequence, [5, 6], 25),
    ])
    expect(answers).toEqual(expected)
    expect(maxDifference(await nextOf(sequence), before)).toBe(0)
    // A step, too, writes a state of its own.
    const answering = await prefilled(engine, policy, prompt, question)
    const kept = answering.fork()
    expect(await idsOf(answering, null, 25)).toEqual(expected[0])
    expect(await idsOf(kept, null, 25)).toEqual(expected[0])
  }),
)

test.each(policies)('a prompt that is given up leaves the state as it was: %j', (policy) =>
  withEngine(async (engine) => {
    const sequence = await prefilled(engine, policy, prompt)
    const before = await nextOf(sequence)
    const controller = new AbortController()
    const aborted = sequence.prefill(someIds(900, kVocab, 4), { signal: controller.signal })
    setImmediate(() => controller.abort())
    await expect(aborted).rejects.toThrow()
    expect(sequence.tokens).toEqual(prompt)
    expect(maxDifference(await nextOf(sequence), before)).toBe(0)
  }),
)

test.each(policies)('a loop that is left early has run nothing ahead: %j', (policy) =>
  withEngine(async (engine) => {
    for (const n of [1, 2, 11, 12, 13]) {
      const left = await prefilled(engine, policy, prompt)
      const ids: number[] = []
      for await (const { id } of left.generate(null, { maxTokens: 60, ignoreEos: true })) {
        ids.push(id)
        if (ids.length === n) break
      }
      const asked = await prefilled(engine, policy, prompt)
      expect(ids).toEqual(await idsOf(asked, null, n))
      expect(left.tokens).toEqual(asked.tokens)
      expect(await idsOf(left, question, 10)).toEqual(await idsOf(asked, question, 10))
    }
  }),
)

test('behind a stop token all tokens before it stay, as the state has seen them', () =>
  withEngine(async (engine) => {
    const sequence = await prefilled(engine, zip, prompt)
    const { ids } = await collect(sequence.generate(null, { maxTokens: 20, ignoreEos: true }))
    const stopped = await prefilled(engine, zip, prompt)
    const stopToken = ids[6] as number
    const nBefore = ids.indexOf(stopToken)
    const answer = await idsOf(stopped, null, 20, { stopTokens: [stopToken] })
    expect(answer).toEqual(ids.slice(0, nBefore))
    expect(stopped.finishReason).toBe('stop')
    const asked = await prefilled(engine, zip, prompt)
    await idsOf(asked, null, nBefore)
    expect(stopped.tokens).toEqual(asked.tokens)
    expect(await idsOf(stopped, question, 10)).toEqual(await idsOf(asked, question, 10))
  }))

test.each([{}, { presencePenalty: 1e-9 }])('an answer goes on behind a stop token: %j', (options) =>
  withEngine(async (engine) => {
    const others = [3, 50].map((n) => idsOf(engine, someIds(n, kVocab), 60))
    const whole = await idsOf(await prefilled(engine, zip, prompt), null, 20, options)
    const stopToken = whole[6] as number
    const nBefore = whole.indexOf(stopToken)
    const sequence = await prefilled(engine, zip, prompt)
    await idsOf(sequence, null, 20, { ...options, stopTokens: [stopToken] })
    expect(sequence.tokens).toEqual([...prompt, ...whole.slice(0, nBefore)])
    expect(await idsOf(sequence, null, 20 - nBefore, options)).toEqual(whole.slice(nBefore))
    await Promise.all(others)
  }),
)

test('a step that cannot begin ends its sequences: their tokens have not changed the state', () =>
  withEngine(async (engine) => {
    const sequence = await prefilled(engine, 'full', prompt)
    const lost = new Error('no step')
    const spy = jest.spyOn(DecodeStep.prototype, 'run').mockImplementationOnce(() => {
      throw lost
    })
    await expect(idsOf(sequence, null, 5)).rejects.toBe(lost)
    spy.mockRestore()
    expect(sequence.isUsable).toBe(false)
  }))

test('a batch answers as each alone, and nothing is drafted', () =>
  withEngine(async (engine) => {
    const prompts = [7, 30, 100, 640].map((n, i) => someIds(n, kVocab, 10 + i))
    const settings = { maxTokens: 30, ignoreEos: true, promptLookup: 8, policy: zip }
    const answer = async (ids: number[]) => (await collect(engine.generate(ids, settings))).ids
    const alone: number[][] = []
    for (const ids of prompts) alone.push(await answer(ids))
    expect(await Promise.all(prompts.map(answer))).toEqual(alone)
    expect(engine.stats()).toMatchObject({ draftTokens: 0 })
  }))

test('runs that began apart have their tokens of the same steps', () =>
  withEngine(async (engine) => {
    const n = 100
    const answer = (length: number) => idsOf(engine, someIds(length, kVocab), n, { policy: 'full' })
    await Promise.all([10, 47, 84, 121, 158, 195, 232, 269].map(answer))
    expect(engine.stats().steps).toBeLessThan(1.5 * n)
  }))

test('a declared prefix changes no answer, whether it was kept or not', async () => {
  const ids = [...prompt, ...question]
  const settings = { maxTokens: 20, ignoreEos: true, policy: zip, prefixTokens: prompt.length }
  const answers: number[][] = []
  for (const prefixMemory of [0, 32 << 20]) {
    await withEngine(
      async (engine) => {
        for (let i = 0; i < 2; i++) {
          answers.push((await collect(engine.generate(ids, settings))).ids)
        }
        expect(engine.stats().prefixHits).toBe(prefixMemory > 0 ? 1 : 0)
      },
      { prefixMemory },
    )
  }
  for (const other of answers.slice(1)) expect(other).toEqual(answers[0])
})

test('it takes as much after any number of tokens', () =>
  withEngine(async (engine) => {
    const { recurrence } = model().config
    const { nLayers, nHeads, convBytes, headBytes } = stateShape({ recurrence })!
    const bytes = nLayers * (convBytes + nHeads * headBytes)
    expect([nLayers, convBytes, headBytes]).toEqual([3, 3 * 4 * (2 * 2 * 16 + 4 * 32), 4 * 16 * 32])
    const sequence = engine.createSequence({ policy: zip })
    expect(sequence.bytes.byClass.states).toBe(0)
    for (const n of [1, 200]) {
      await sequence.prefill(someIds(n, kVocab))
      expect(sequence.bytes.byClass.states).toBe(bytes)
    }
    await idsOf(sequence, null, 20)
    expect(sequence.bytes.byClass.states).toBe(bytes)
    expect(sequence.bytes.fp16).toBe(sequence.length * 2 * 2 * 32 * 2 + bytes)
  }))

test('a window that cannot be compressed ends the sequence: its token cannot be taken back', () =>
  withEngine(async (engine) => {
    const sequence = await prefilled(engine, zip, prompt)
    const other = await prefilled(engine, zip, prompt)
    const full = new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'no room for the window')
    const spy = jest.spyOn(KvCache.prototype, 'stage').mockImplementationOnce(() => {
      throw full
    })
    await expect(idsOf(sequence, null, 30)).rejects.toBe(full)
    spy.mockRestore()
    expect(sequence.isUsable).toBe(false)
    await expect(sequence.prefill(question)).rejects.toThrow()
    expect(await idsOf(other, null, 30)).toHaveLength(30)
  }))

test.each(POLICY_NAMES)('every policy answers: %s', (policy) =>
  withEngine(async (engine) => {
    const sequence = await prefilled(engine, policy, someIds(150, kVocab))
    expect(await idsOf(sequence, null, 20)).toHaveLength(20)
    expect(await idsOf(sequence, question, 5)).toHaveLength(5)
  }),
)

describe('with a tokenizer', () => {
  const copies = new ModelCopies()
  afterAll(() => copies.remove())
  const text = readFileSync(join(kTrainedModels, 'line-retrieval', 'tokenizer.json'), 'utf8')
  const speaking = useModel(
    copies.copy(join(kFixtures, 'qwen3.5'), { files: { 'tokenizer.json': text } }),
  )

  test('tokens of a stop text stay, as the state has seen them', async () => {
    const open = async () => {
      const sequence = speaking().createSequence({ policy: zip })
      await sequence.prefill(prompt)
      return sequence
    }
    const whole = await open()
    const tokens: { id: number; text: string }[] = []
    for await (const token of whole.generate(null, { maxTokens: 20, ignoreEos: true })) {
      tokens.push(token)
    }
    // A text that the tenth token has a part of, and the one before it the rest.
    const stop = tokens[8]!.text + tokens[9]!.text
    const all = tokens.map((token) => token.text)
    const nBefore = all.findIndex((_, i) =>
      all
        .slice(0, i + 1)
        .join('')
        .includes(stop),
    )
    expect(nBefore).toBeGreaterThan(0)
    const stopped = await open()
    const said = await collect(
      stopped.generate(null, { maxTokens: 20, ignoreEos: true, stop: [stop] }),
    )
    expect(said.text).toBe(all.join('').split(stop)[0])
    expect(stopped.finishReason).toBe('stop')
    // All that were run for its last token, and the token before it among them.
    expect(stopped.tokens).toEqual([...prompt, ...tokens.slice(0, nBefore).map(({ id }) => id)])
    const asked = await open()
    await idsOf(asked, null, nBefore + 1)
    expect(asked.tokens.slice(0, -1)).toEqual(stopped.tokens)
    for (const each of [whole, stopped, asked]) each.dispose()
  })
})
