import { runDemo } from '../../lib/eval/demo'
import { fakeModel, lookUp } from './fake-model'

const base = { lines: 20, seed: 1, policies: ['fp16', 'zipcache'] }

test('the same question to every policy', async () => {
  const model = fakeModel()
  const demo = await runDemo({ ...base, model })
  expect(demo.question).toMatch(/^tell me what is the REGISTER_CONTENT in line \S+ - \S+ \?/)
  expect(demo.expected).toMatch(/^\d{5}$/)
  expect(demo.results.map(({ policy }) => policy)).toEqual(['fp16', 'zipcache'])
  for (const result of demo.results) {
    expect(result).toMatchObject({ answer: demo.expected, correct: true })
    expect(result.bytes.fp16).toBe((demo.promptTokens + 13) * 100)
    expect(result.ratio).toBe(result.bytes.ratio)
    expect(result.prefillMs).toBeGreaterThan(0)
    expect(result.decodeMsPerToken).toBeGreaterThan(0)
  }
  const asked = model.calls.slice(2)
  expect(asked[0]?.prefills).toEqual(asked[1]?.prefills)
  expect(asked[0]?.generated).toEqual([13, 25, 25, 25, 25])
  expect(model.calls.every(({ disposed }) => disposed === 1)).toBe(true)
})

test('a wrong answer is shown as such, and so is none', async () => {
  const model = fakeModel({
    answer: (prompt, policy) =>
      policy === 'fp16' ? lookUp(prompt).replace(/[\d ]{9} >/, '1 2 3 4 5 >') : 'the the',
  })
  const { results } = await runDemo({ ...base, model })
  expect(results).toMatchObject([
    { answer: '12345', correct: false },
    { answer: null, correct: false },
  ])
})

test('refuses more lines than the model has positions for', async () => {
  const model = fakeModel({ maxPositions: 400 })
  await expect(runDemo({ ...base, model })).rejects.toMatchObject({
    code: 'ERR_ZC_CONTEXT_LENGTH',
    argument: 'lines',
  })
  expect(model.calls).toEqual([])
})
