import {
  appendFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type EvalResult, type Evaluation, evaluate } from '../../lib/eval/evaluate'
import { evaluateLineRetrieval } from '../../lib/eval/evaluate-line-retrieval'
import { inspectSaliency } from '../../lib/eval/inspect'
import { Journal } from '../../lib/eval/journal'
import { generateLineRetrieval } from '../../lib/eval/line-retrieval-prompt'
import { localAsker } from '../../lib/eval/local-asker'
import { modelAsker } from '../../lib/eval/model-asker'
import { makeTask, type TaskSpec } from '../../lib/eval/task-list'
import { policyLabel } from '../../lib/policy/policy-label'
import { expectRefused, expectRejected } from '../support/errors'
import { fakeModel, lookUp } from './fake-model'

const policies = ['fp16', 'zipcache', 'uniform2']
const tasks: TaskSpec[] = [
  { task: 'line-retrieval', lines: 5 },
  { task: 'line-retrieval', lines: 9, ask: 'after' },
]
const identity = { model: 'fake' }

/** Wrong at what depends on policy and prompt alone. */
function forgetful(prompt: string, policy: unknown): string {
  const right = lookUp(prompt)
  const misses = policy === 'uniform2' || (policy === 'zipcache' && /< [0-4]/.test(right))
  return misses ? 'the the' : right
}

async function run(options: Partial<Evaluation> & { before?: () => void } = {}) {
  const { before, ...rest } = options
  const model = fakeModel({
    answer: forgetful,
    ...(before && { before: (step: string) => step === 'prefill' && before() }),
  })
  const asker = await localAsker({ model, tasks, questions: 10, seed: 3, identity })
  const result = await evaluate({ askers: [asker], policies, ...rest })
  return { result, calls: model.calls }
}

let expected: EvalResult
let dir: string
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'zipcache-journal-'))
  expected = (await run()).result
})
afterAll(() => rmSync(dir, { recursive: true }))

let nFiles = 0
const newFile = () => join(dir, `journal-${nFiles++}.jsonl`)
const open = (file: string, more: Record<string, string | number> = {}) =>
  Journal.open(file, { ...identity, seed: 3, ...more }, '1.0')

test('rows: hits in percent with their interval, and what the caches took', () => {
  expect(expected.rows.map(({ policy, facts }) => [facts.lines, facts.ask, policy])).toEqual([
    ...policies.map((policy) => [5, 'inside', policy]),
    ...policies.map((policy) => [9, 'after', policy]),
  ])
  const [fp16, zipcache, uniform2] = expected.rows
  expect(fp16).toMatchObject({ questions: 10, value: 100, high: 100, ratio: 1 })
  expect(fp16?.low).toBeCloseTo(72.2467, 3)
  expect(uniform2).toMatchObject({ value: 0, low: 0 })
  expect(zipcache?.value).toBeGreaterThan(0)
  expect(zipcache?.value).toBeLessThan(100)
  expect(zipcache?.ratio).toBeCloseTo(5)
})

test('pairs: every two policies, on the same questions', () => {
  const pairs = expected.pairs.filter(({ facts }) => facts.lines === 5)
  expect(pairs.map(({ a, b }) => [a, b])).toEqual([
    ['fp16', 'zipcache'],
    ['fp16', 'uniform2'],
    ['zipcache', 'uniform2'],
  ])
  const missed = 10 - (expected.rows[1]?.value as number) / 10
  expect(pairs[0]).toMatchObject({ questions: 10, wins: missed, losses: 0 })
  expect(pairs[1]).toMatchObject({ wins: 10, losses: 0, p: 2 / 1024 })
})

test.each([1, 3, 64])('a batch of %i gives the same', async (batch) => {
  expect((await run({ batch })).result).toEqual(expected)
})

test('rows of what the journal has, nothing being asked', async () => {
  const file = newFile()
  const first = await open(file)
  const controller = new AbortController()
  let n = 0
  const onProgress = () => {
    if (++n === 10) controller.abort(new Error('enough'))
  }
  const { signal } = controller
  await expect(run({ journal: first, batch: 1, signal, onProgress })).rejects.toThrow('enough')
  await first.close()
  const second = await open(file)
  const { result, calls } = await run({ journal: second, ask: false })
  await second.close()
  expect(calls).toEqual([])
  expect(result.rows.map(({ questions }) => questions)).toEqual([4, 3, 3])
  expect(result.pairs.map(({ questions }) => questions)).toEqual([3, 3, 3])
})

test('an answer that is there twice counts once', async () => {
  const file = newFile()
  const first = await open(file)
  await run({ journal: first })
  await first.close()
  const lines = readFileSync(file, 'utf8').split('\n')
  appendFileSync(file, `${lines.slice(2, 20).join('\n')}\n`)
  const second = await open(file)
  expect((await run({ journal: second })).result).toEqual(expected)
  await second.close()
})

test('tasks that are for some policies only', async () => {
  const only = (task: number, policy: string) => task === 0 || policy === 'zipcache'
  const { result, calls } = await run({ only })
  expect(calls).toHaveLength(40)
  expect(result.rows).toEqual(
    expected.rows.filter(({ facts, policy }) => facts.lines === 5 || policy === 'zipcache'),
  )
  const file = newFile()
  const whole = await open(file)
  await run({ journal: whole })
  await whole.close()
  const journal = await open(file)
  expect((await run({ journal, only })).result).toEqual(result)
  await journal.close()
})

test('several askers give the same, and each question is asked once', async () => {
  const models = [fakeModel({ answer: forgetful }), fakeModel({ answer: forgetful })]
  const askers = await Promise.all(
    models.map((model) => localAsker({ model, tasks, questions: 10, seed: 3 })),
  )
  expect(await evaluate({ askers, policies })).toEqual(expected)
  expect(models.map(({ calls }) => calls.length).reduce((a, b) => a + b)).toBe(60)
  expect(models.every(({ calls }) => calls.length > 0)).toBe(true)
})

describe('a journal', () => {
  test('what is there is not asked again', async () => {
    const file = newFile()
    const first = await open(file)
    await run({ journal: first, policies: ['fp16', 'zipcache'] })
    await first.close()
    const second = await open(file)
    const { result, calls } = await run({ journal: second })
    await second.close()
    expect(calls.map(({ policy }) => policy)).toEqual(new Array(20).fill('uniform2'))
    expect(result).toEqual(expected)
    const third = await open(file)
    const progress: unknown[] = []
    const again = await run({ journal: third, onProgress: (p) => progress.push(p) })
    await third.close()
    expect(again.calls).toEqual([])
    expect(progress).toEqual([])
    expect(again.result).toEqual(expected)
  })

  test.each([1, 17, 40, 59])(
    'interrupted after %i answers, and again: the same',
    async (nAnswers) => {
      const file = newFile()
      for (let turn = 0; turn < 3; turn++) {
        const journal = await open(file)
        const controller = new AbortController()
        let n = 0
        const onProgress = () => {
          if (++n === nAnswers) controller.abort(new Error('enough'))
        }
        await run({ journal, signal: controller.signal, onProgress }).catch((error: Error) => {
          if (error.message !== 'enough') throw error
        })
        await journal.close()
        // A kill leaves a part of a line.
        appendFileSync(file, '{"task":"line-retr')
      }
      const journal = await open(file)
      const { result } = await run({ journal })
      await journal.close()
      expect(result).toEqual(expected)
      const lines = readFileSync(file, 'utf8').trimEnd().split('\n')
      expect(lines).toHaveLength(2 + 60)
      for (const line of lines) JSON.parse(line)
    },
  )

  test('a cut within a character is dropped, too', async () => {
    const file = newFile()
    const journal = await open(file)
    await run({ journal })
    await journal.close()
    const bytes = readFileSync(file)
    appendFileSync(file, Buffer.from('{"task":"é'))
    truncateSync(file, bytes.length + 10)
    const again = await open(file)
    expect(again.answers).toHaveLength(60)
    await again.close()
    expect(readFileSync(file)).toEqual(bytes)
  })

  test('numbers that JSON has not are kept', async () => {
    const file = newFile()
    const numbers = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, 0.1 + 0.2]
    const first = await open(file)
    for (const [question, score] of numbers.entries()) {
      const bytes = { resident: 1, peak: 1, fp16: 1, ratio: 1, paperRatio: null }
      const words = { task: 'a', policy: 'b', answer: 'c', expected: null }
      await first.append({ ...words, question, score, values: { kl: score }, bytes, tokens: 1 })
    }
    await first.close()
    const second = await open(file)
    await second.close()
    expect(second.answers.map(({ score }) => score)).toEqual(numbers)
    expect(second.answers.map(({ values }) => values.kl)).toEqual(numbers)
  })

  test('revisions are kept', async () => {
    const file = newFile()
    for (const build of ['1.0', '1.1', '1.0']) {
      const journal = await Journal.open(file, identity, build)
      await journal.close()
    }
    const journal = await Journal.open(file, identity, '1.1')
    expect(journal.builds).toEqual(['1.0', '1.1'])
    await journal.close()
  })

  test.each([
    ['another seed', { seed: 4 }, /:1: was begun with seed 3, this run has 4$/],
    ['another model', { model: 'other' }, /:1: was begun with model fake, this run has other$/],
    ['more', { dtype: 'f32' }, /:1: was begun with dtype undefined, this run has f32$/],
  ])('of %s is refused', async (_, more, message) => {
    const file = newFile()
    await (await open(file)).close()
    await expect(open(file, more as Record<string, string>)).rejects.toMatchObject({
      code: 'ERR_ZC_ARGUMENT',
      argument: 'journal',
      message: expect.stringMatching(message),
    })
  })

  test.each([
    ['no JSON', 2, 'x', /:3: is no JSON$/],
    ['no answer', 2, '{"task":"a"}', /:3: is no answer$/],
    ['no journal', 0, '{"a":1}', /:1: is no zipcache-journal-1$/],
  ])('with %s in it is refused by file and line', async (_, at, text, message) => {
    const file = newFile()
    const journal = await open(file)
    await run({ journal })
    await journal.close()
    const lines = readFileSync(file, 'utf8').split('\n')
    lines[at] = text
    writeFileSync(file, lines.join('\n'))
    await expect(open(file)).rejects.toThrow(message)
  })

  test('in no folder is an IO error', async () => {
    await expect(open(join(dir, 'none', 'x'))).rejects.toMatchObject({ code: 'ERR_ZC_IO' })
  })
})

test('the first failure ends the run; every sequence is disposed of', async () => {
  let n = 0
  const model = fakeModel({
    before: () => {
      if (++n === 30) throw new Error('out of luck')
    },
  })
  const asker = await localAsker({ model, tasks, questions: 10, seed: 3 })
  await expect(evaluate({ askers: [asker], policies })).rejects.toThrow('out of luck')
  expect(model.calls.length).toBeLessThan(60)
  expect(model.calls.every(({ disposed }) => disposed === 1)).toBe(true)
})

test.each([
  ['policies', { policies: [] }],
  ['policies', { policies: ['fp16', { name: 'fp16' } as const] }],
  ['policy', { policies: ['zipcash'] }],
  ['batch', { batch: 0 }],
  ['askers', { askers: [] }],
  ['policies', { policies: undefined as unknown as [] }],
  ['askers', { askers: undefined as unknown as [] }],
])('refuses %s: %j', async (argument, options) => {
  await expect(run(options)).rejects.toMatchObject({ code: 'ERR_ZC_ARGUMENT', argument })
})

test('refuses no options at all', async () => {
  const none = undefined as never
  const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'options' } as const
  await expectRejected(evaluate(none), fault)
  await expectRejected(evaluateLineRetrieval(none), fault)
  await expectRejected(inspectSaliency(none), fault)
  expectRefused(() => generateLineRetrieval(none), fault)
  await expectRejected(modelAsker(none), { ...fault, argument: 'setting' })
  const needle = { task: 'needle', depth: 50 } as const
  await expectRejected(makeTask(needle, none), { ...fault, argument: 'setting' })
  await expectRejected(inspectSaliency({} as never), { ...fault, argument: 'model' })
  await expectRejected(evaluateLineRetrieval({ model: fakeModel() } as never), {
    ...fault,
    argument: 'lines',
  })
})

test('refuses the same task twice', async () => {
  const twice: TaskSpec[] = [
    { task: 'line-retrieval', lines: 5 },
    { task: 'line-retrieval', lines: 5 },
  ]
  const asker = await localAsker({ model: fakeModel(), tasks: twice, questions: 1, seed: 1 })
  await expect(evaluate({ askers: [asker], policies })).rejects.toMatchObject({ argument: 'tasks' })
})

test('labels of policies', () => {
  expect(policyLabel('zipcache')).toBe('zipcache')
  expect(policyLabel({ name: 'fp16' })).toBe('fp16')
  const keyBits = { low: 3, high: 4 } as const
  expect(policyLabel({ name: 'zipcache', saliencyRatio: 0.2, keyBits })).toBe(
    'zipcache keyBits={high:4,low:3} saliencyRatio=0.2',
  )
  expect(policyLabel({ keyBits, saliencyRatio: 0.2, name: 'zipcache' })).toBe(
    policyLabel({ name: 'zipcache', saliencyRatio: 0.2, keyBits }),
  )
})
