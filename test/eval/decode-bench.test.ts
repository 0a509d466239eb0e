import { benchDecode, benchPositions } from '../../lib/eval/decode-bench'
import { spread } from '../../lib/eval/decode-timing'
import { longPrompt } from '../../lib/eval/long-prompt'
import { fakeModel, wordTokenizer } from './fake-model'

const base = { contexts: [30, 100], policies: ['fp16', 'zipcache'], tokens: 7, repeats: 3 }

describe('benchDecode', () => {
  test('one row for each context and policy, bytes at the length asked for', async () => {
    const { rows } = await benchDecode({ ...base, model: fakeModel() })
    expect(rows.map(({ context, policy, bytes }) => [context, policy, bytes])).toEqual([
      [30, 'fp16', 3000],
      [30, 'zipcache', 600],
      [100, 'fp16', 10000],
      [100, 'zipcache', 2000],
    ])
    for (const { decodeMsPerToken, prefillMs } of rows) {
      const { median, min, max } = decodeMsPerToken
      expect(min).toBeGreaterThan(0)
      expect(median).toBeGreaterThanOrEqual(min)
      expect(max).toBeGreaterThanOrEqual(median)
      expect(prefillMs).toBeGreaterThan(0)
    }
  })

  test('measures tokens in turns on the same sequences, warm-up first', async () => {
    const model = fakeModel()
    await benchDecode({ ...base, contexts: [30], model })
    expect(model.calls).toHaveLength(2)
    for (const { prefills, generated, disposed } of model.calls) {
      expect(prefills).toHaveLength(1)
      expect(prefills[0]).toHaveLength(30)
      expect(generated).toEqual([4, 7, 7, 7])
      expect(disposed).toBe(1)
    }
    expect(model.calls[0]?.prefills).toEqual(model.calls[1]?.prefills)
  })

  test('refuses a context beyond the positions before anything is computed', async () => {
    const fits = benchPositions(100, base.tokens, base.repeats)
    await benchDecode({ ...base, model: fakeModel({ maxPositions: fits }) })
    const model = fakeModel({ maxPositions: fits - 1 })
    await expect(benchDecode({ ...base, model })).rejects.toMatchObject({
      code: 'ERR_ZC_CONTEXT_LENGTH',
      argument: 'context',
    })
    expect(model.calls).toEqual([])
  })

  test.each([
    ['tokens', { tokens: 0 }],
    ['repeats', { repeats: 0.5 }],
    ['context', { contexts: [-1] }],
  ])('refuses %s: %j', async (argument, options) => {
    await expect(benchDecode({ ...base, ...options, model: fakeModel() })).rejects.toMatchObject({
      code: 'ERR_ZC_ARGUMENT',
      argument,
    })
  })

  test('disposes of every sequence when one fails', async () => {
    let prefills = 0
    const model = fakeModel({
      before: (step) => {
        if (step === 'prefill' && ++prefills === 2) throw new Error('no memory')
      },
    })
    await expect(benchDecode({ ...base, model })).rejects.toThrow('no memory')
    expect(model.calls.map(({ disposed }) => disposed)).toEqual([1, 1])
  })
})

describe('longPrompt', () => {
  test.each([1, 21, 22, 23, 38, 1000, 10_000])('has exactly %i tokens', (length) => {
    const ids = longPrompt(fakeModel(), length, 0)
    expect(ids).toHaveLength(length)
    const end = wordTokenizer.encode('\n answer :', { addSpecialTokens: false })
    expect(ids.slice(-3)).toEqual(end.slice(-length))
  })

  test('random ids for a model with other words', () => {
    const model = fakeModel({ tokenizer: null })
    const ids = longPrompt(model, 2000, 5)
    expect(ids).toHaveLength(2000)
    expect(Math.min(...ids)).toBe(0)
    expect(Math.max(...ids)).toBe(model.config.vocabSize - 1)
    expect(longPrompt(model, 2000, 5)).toEqual(ids)
    expect(longPrompt(model, 2000, 6)).not.toEqual(ids)
  })
})

test.each([
  [[3], { median: 3, min: 3, max: 3 }],
  [[5, 1, 3], { median: 3, min: 1, max: 5 }],
  [[4, 10, 1, 2], { median: 3, min: 1, max: 10 }],
])('spread of %j', (values, expected) => {
  expect(spread(values)).toEqual(expected)
})
