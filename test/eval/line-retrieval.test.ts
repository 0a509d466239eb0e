import { evaluateLineRetrieval } from '../../lib/eval/evaluate-line-retrieval'
import { fakeModel, lookUp } from './fake-model'

const base = { lines: [5, 9], questions: 4, seed: 1, policies: ['fp16', 'zipcache'] }

test('one row for each number of lines and policy', async () => {
  const model = fakeModel()
  const { rows } = await evaluateLineRetrieval({ ...base, model })
  expect(rows.map(({ lines, policy }) => [lines, policy])).toEqual([
    [5, 'fp16'],
    [5, 'zipcache'],
    [9, 'fp16'],
    [9, 'zipcache'],
  ])
  for (const row of rows) {
    expect(row).toMatchObject({ questions: 4, accuracy: 100, ask: 'inside' })
    expect(row.ratio).toBeCloseTo(row.policy === 'fp16' ? 1 : 5)
    expect(Number.isInteger(row.bytes)).toBe(true)
  }
})

test('every policy answers the same prompts with the same seed, each in a sequence of its own', async () => {
  const model = fakeModel()
  await evaluateLineRetrieval({ ...base, model })
  expect(model.calls).toHaveLength(16)
  for (let i = 0; i < 16; i += 2) {
    const [fp16, zipcache] = [model.calls[i], model.calls[i + 1]]
    expect(fp16?.prefills).toEqual(zipcache?.prefills)
    expect(fp16?.seed).toBe(zipcache?.seed)
  }
  const prompts = model.calls.map(({ prefills }) => JSON.stringify(prefills))
  expect(new Set(prompts).size).toBe(8)
  expect(model.calls.every(({ disposed }) => disposed === 1)).toBe(true)
})

test('bytes are read after the last digit', async () => {
  const model = fakeModel()
  const { rows } = await evaluateLineRetrieval({
    ...base,
    lines: [5],
    questions: 1,
    policies: ['fp16'],
    model,
  })
  const call = model.calls[0]
  const promptTokens = call?.prefills[0]?.length ?? 0
  expect(call?.generated).toEqual([13])
  expect(rows[0]?.bytes).toBe((promptTokens + 13) * 100)
})

test('asked after, the question is a turn of its own', async () => {
  const inside = fakeModel()
  const after = fakeModel()
  await evaluateLineRetrieval({ ...base, model: inside })
  const { rows } = await evaluateLineRetrieval({ ...base, model: after, ask: 'after' })
  expect(rows.every(({ ask, accuracy }) => ask === 'after' && accuracy === 100)).toBe(true)
  for (const [i, { prefills }] of after.calls.entries()) {
    expect(prefills).toHaveLength(2)
    expect(prefills[1]).toHaveLength(22)
    expect(prefills.flat()).toEqual(inside.calls[i]?.prefills[0])
  }
})

test('accuracy is the percentage of answers with all five digits right', async () => {
  let asked = 0
  const model = fakeModel({
    answer: (prompt) => {
      const right = lookUp(prompt)
      // Of four: right, one digit wrong, too few digits, nothing.
      return [right, right.replace(/\d (?=>)/, 'x '), right.replace(/\d (?=>)/, ''), ''][
        asked++ % 4
      ]!
    },
  })
  const { rows } = await evaluateLineRetrieval({
    ...base,
    questions: 8,
    policies: ['zipcache'],
    model,
  })
  expect(rows.map(({ accuracy }) => accuracy)).toEqual([25, 25])
})

test('an answer that never comes ends after 16 tokens', async () => {
  const model = fakeModel({ answer: () => 'the '.repeat(100) })
  const { rows } = await evaluateLineRetrieval({ ...base, model })
  expect(rows.every(({ accuracy }) => accuracy === 0)).toBe(true)
  expect(model.calls.every(({ generated }) => generated[0] === 16)).toBe(true)
})

test('the same seed asks the same, another seed something else', async () => {
  const promptsOf = async (seed: number) => {
    const model = fakeModel()
    await evaluateLineRetrieval({ ...base, seed, model })
    return JSON.stringify(model.calls.map(({ prefills }) => prefills))
  }
  expect(await promptsOf(1)).toBe(await promptsOf(1))
  expect(await promptsOf(1)).not.toBe(await promptsOf(2))
})

test('reports progress after each answer', async () => {
  const seen: { done: number; total: number }[] = []
  await evaluateLineRetrieval({
    ...base,
    model: fakeModel(),
    onProgress: (progress) => seen.push(progress),
  })
  expect(seen).toEqual(Array.from({ length: 16 }, (_, i) => ({ done: i + 1, total: 16 })))
})

test('a policy with options names itself in its row', async () => {
  const policy = { name: 'zipcache', saliencyRatio: 0.2 } as const
  const { rows } = await evaluateLineRetrieval({ ...base, policies: [policy], model: fakeModel() })
  expect(rows[0]?.policy).toBe('zipcache saliencyRatio=0.2')
})

describe('sequences are disposed of', () => {
  test.each(['prefill', 'token'] as const)('when a %s fails', async (failing) => {
    const model = fakeModel({
      before: (step) => {
        if (step === failing) throw new Error('out of luck')
      },
    })
    await expect(evaluateLineRetrieval({ ...base, model })).rejects.toThrow('out of luck')
    expect(model.calls.map(({ disposed }) => disposed)).toEqual([1])
  })

  test.each(['prefill', 'token'] as const)('when aborted in a %s', async (abortAt) => {
    const controller = new AbortController()
    const reason = new Error('enough')
    const model = fakeModel({
      before: (step) => {
        if (step === abortAt) controller.abort(reason)
      },
    })
    const { signal } = controller
    await expect(evaluateLineRetrieval({ ...base, model, signal })).rejects.toBe(reason)
    expect(model.calls.map(({ disposed }) => disposed)).toEqual([1])
  })

  test('when aborted before it begins', async () => {
    const model = fakeModel()
    const signal = AbortSignal.abort(new Error('never mind'))
    await expect(evaluateLineRetrieval({ ...base, model, signal })).rejects.toThrow('never mind')
    expect(model.calls).toEqual([])
  })
})

test.each([
  ['lines', { lines: [] }],
  ['lines', { lines: [0] }],
  ['questions', { questions: 0 }],
  ['questions', { questions: 1.5 }],
  ['policies', { policies: [] }],
  ['seed', { seed: Number.NaN }],
  ['ask', { ask: 'outside' as 'after' }],
])('refuses %s: %j', async (argument, options) => {
  const model = fakeModel()
  await expect(evaluateLineRetrieval({ ...base, ...options, model })).rejects.toMatchObject({
    code: 'ERR_ZC_ARGUMENT',
    argument,
  })
  expect(model.calls).toEqual([])
})

test('refuses a model without a tokenizer', async () => {
  const model = fakeModel({ tokenizer: null })
  await expect(evaluateLineRetrieval({ ...base, model })).rejects.toMatchObject({
    code: 'ERR_ZC_TOKENIZER',
  })
})
