import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Answer } from '../../lib/eval/asker'
import { evaluate } from '../../lib/eval/evaluate'
import { answeredNumber } from '../../lib/eval/gsm8k'
import { localAsker } from '../../lib/eval/local-asker'
import { longEvalRecords } from '../../lib/eval/retrieval-prompt'
import type { SubjectModel, SubjectTokenizer } from '../../lib/eval/subject'
import type { TaskSpec } from '../../lib/eval/task-list'
import type { PolicySpec } from '../../lib/policy/index'
import { tokenizerWith } from '../server/scripted-model'
import { fakeModel } from './fake-model'
import { characterTokenizer, textModel } from './text-model'

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'zipcache-tasks-'))
})
afterAll(() => rmSync(dir, { recursive: true }))

function file(name: string, content: string | readonly object[]): string {
  const path = join(dir, name)
  const text =
    typeof content === 'string'
      ? content
      : content.map((line) => `${JSON.stringify(line)}\n`).join('')
  writeFileSync(path, text)
  return path
}

async function ask(
  model: SubjectModel,
  spec: TaskSpec,
  { questions = 4, policies = ['fp16'] as PolicySpec[], seed = 1 } = {},
) {
  const asker = await localAsker({ model, tasks: [spec], questions, seed })
  return (await evaluate({ askers: [asker], policies, batch: 1 })).rows
}

const refused = (spec: object, model: SubjectModel = textModel({})) =>
  expect(localAsker({ model, tasks: [spec as TaskSpec], questions: 2, seed: 1 })).rejects

// ---- line retrieval in sentences ----

/** Reads the number off the prompt, as a model would. */
function readOff(prompt: string): string {
  const [, key] = /in line (\S+)\? [^?]*$/.exec(prompt) ?? []
  return new RegExp(`line ${key}: REGISTER_CONTENT is <(\\d+)>`).exec(prompt)?.[1] ?? 'none'
}

describe('line retrieval in sentences', () => {
  test('a general model is asked in sentences, answered right or wrong', async () => {
    const answer = (prompt: string, policy: PolicySpec) =>
      `${policy === 'fp16' ? readOff(prompt) : 7}>.\n`
    const model = textModel({ answer })
    const spec = { task: 'line-retrieval', lines: 20 } as const
    const rows = await ask(model, spec, { policies: ['fp16', 'uniform2'] })
    expect(rows.map(({ value }) => value)).toEqual([100, 0])
    const [prompt] = model.prompts[0] as string[]
    expect(prompt?.match(/^line \S+: REGISTER_CONTENT is <\d+>$/gm)).toHaveLength(20)
    expect(prompt).toMatch(/\nThe <REGISTER_CONTENT> in line \S+ is <$/)
  })

  test.each(['inside', 'after'] as const)('%s, through the chat template', async (when) => {
    const model = textModel({ answer: (prompt) => `It is ${readOff(prompt)}.` })
    const spec = { task: 'line-retrieval', lines: 9, ask: when, chat: true } as const
    expect((await ask(model, spec))[0]?.value).toBe(100)
    const told = model.prompts[0] as string[]
    expect(told).toHaveLength(when === 'after' ? 2 : 1)
    expect(told[0]).toMatch(/^\[user\]/)
    expect(told.at(-1)).toMatch(/Answer with the number\.\[model\]$/)
  })

  test('an answer without an end counts', async () => {
    const model = textModel({ answer: readOff })
    expect((await ask(model, { task: 'line-retrieval', lines: 9 }))[0]?.value).toBe(100)
  })

  test('records: unique keys, the same for a seed', () => {
    const records = longEvalRecords(400, 5)
    expect(new Set(records.map(({ key }) => key)).size).toBe(400)
    expect(longEvalRecords(400, 5)).toEqual(records)
    expect(longEvalRecords(400, 6)).not.toEqual(records)
    for (const { number } of records) {
      expect(Number(number)).toBeGreaterThanOrEqual(1)
      expect(Number(number)).toBeLessThanOrEqual(50_000)
    }
  })

  test("LongEval's own file", async () => {
    const lines = [0, 1, 2].map((i) => ({
      prompt:
        'Some lines.\n\nline a-b: REGISTER_CONTENT is <12>\nline c-d: REGISTER_CONTENT is <345>\n' +
        `Now the record is over. Tell me what is the <REGISTER_CONTENT> in line ${['a-b', 'c-d', 'a-b'][i]}? I need the number.`,
      expected_number: [12, 345, 13][i],
    }))
    const data = file('longeval.jsonl', lines)
    const model = textModel({ answer: (prompt) => `<${readOff(prompt)}>` })
    const rows = await ask(model, { task: 'line-retrieval', data, ask: 'after' })
    expect(rows[0]?.questions).toBe(3)
    expect(rows[0]?.value).toBeCloseTo(200 / 3)
    expect(model.prompts[0]?.[1]).toMatch(/^Now the record is over/)
  })

  test.each([
    [[{ prompt: 'x', expected_number: '5' }], /lines\.jsonl:1: field 'expected_number' is "5"/],
    [[{ prompt: 'no record', expected_number: 5 }], /lines\.jsonl:1: field 'prompt' has no line/],
  ])('a damaged file: %j', async (content, message) => {
    await refused({ task: 'line-retrieval', data: file('lines.jsonl', content) }).toThrow(message)
  })

  test('words are refused where the vocabulary has none', async () => {
    await refused({ task: 'line-retrieval', lines: 5, form: 'words' }).toMatchObject({
      code: 'ERR_ZC_TOKENIZER',
      argument: 'form',
    })
  })
})

// ---- needle ----

describe('needle', () => {
  test.each([
    [0, 0],
    [50, 10],
    [100, 20],
  ])('at %i%% of the lines', async (depth, line) => {
    const model = fakeModel()
    const rows = await ask(model, { task: 'needle', lines: 21, depth })
    expect(rows[0]).toMatchObject({ value: 100, facts: { lines: 21, depth, ask: 'inside' } })
    const spec = { task: 'needle', lines: 21, depth, form: 'longeval' } as const
    const text = textModel({ answer: (prompt) => `${readOff(prompt)}>` })
    await ask(text, spec)
    const prompt = text.prompts[0]?.[0] as string
    const [, key] = /in line (\S+)\?/.exec(prompt) ?? []
    const keys = [...prompt.matchAll(/^line (\S+):/gm)].map((match) => match[1])
    expect(keys.indexOf(key)).toBe(line)
  })

  test.each([0, 40, 100])('at %i%% of a text, repeated until it is long enough', async (depth) => {
    const data = file('hay.txt', 'One thing. Another thing! Is there more?  There is.\n')
    const answer = (prompt: string) =>
      ` ${/The secret number of the \S+ \S+ is (\d{5})\./.exec(prompt)?.[1]}.`
    const model = textModel({ answer })
    const spec = { task: 'needle', data, tokens: 500, depth, ask: 'after' } as const
    expect((await ask(model, spec))[0]).toMatchObject({ value: 100, facts: { tokens: 500, depth } })
    const [hay = '', question] = model.prompts[0] as string[]
    expect(hay.length).toBeGreaterThanOrEqual(500)
    expect(hay.length).toBeLessThan(600)
    const place = hay.indexOf('The secret number') / (hay.length - 40)
    expect(Math.abs(place - depth / 100)).toBeLessThan(0.06)
    expect(question).toMatch(/^\n\nQuestion: what is the secret number of the \S+ \S+\?\nAnswer: /)
  })

  test.each([
    ['depth', { lines: 9, depth: 101 }],
    ['lines', { depth: 5 }],
    ['tokens', { depth: 5, data: 'x' }],
    ['ask', { lines: 9, depth: 5, ask: 'before' }],
  ])('refuses %s: %j', async (argument, options) => {
    await refused({ task: 'needle', ...options }, fakeModel()).toMatchObject({
      code: 'ERR_ZC_ARGUMENT',
      argument,
    })
  })
})

// ---- multi-turn ----

describe('multi-turn', () => {
  test('the first question comes again, after others', async () => {
    const model = textModel({ answer: (prompt) => `${readOff(prompt)}>\n` })
    const rows = await ask(model, { task: 'multi-turn', lines: 12 })
    expect(rows[0]).toMatchObject({
      value: 100,
      values: { first: { value: 1 }, others: { value: 1 } },
    })
    const questions = (model.prompts[0] as string[]).filter((text) => text.includes('What is the'))
    const keys = questions.map((text) => /in line (\S+)\?/.exec(text)?.[1])
    expect(keys).toHaveLength(5)
    expect(keys[4]).toBe(keys[0])
    expect(new Set(keys).size).toBe(4)
  })

  test('only the repeated question counts', async () => {
    const answer = (prompt: string) =>
      (prompt.match(/What is the/g) ?? []).length === 5 ? '1>\n' : `${readOff(prompt)}>\n`
    const [row] = await ask(textModel({ answer }), { task: 'multi-turn', lines: 12 })
    expect(row).toMatchObject({ value: 0, values: { first: { value: 1 }, others: { value: 1 } } })
  })

  test('in words, too', async () => {
    const model = fakeModel({
      answer: (prompt) => {
        const keys = [...prompt.matchAll(/ in (line \S+ - \S+) \? /g)]
        const record = prompt
          .split('\n')
          .find((line) => line.trim().startsWith(`${keys.at(-1)?.[1]} :`))
        return `${/< [\d ]+ >/.exec(record ?? '')?.[0]} \n`
      },
    })
    expect((await ask(model, { task: 'multi-turn', lines: 8, turns: 2 }))[0]?.value).toBe(100)
  })

  test.each([
    ['lines', { lines: 4 }],
    ['turns', { lines: 9, turns: 0 }],
  ])('refuses %s: %j', async (argument, options) => {
    await refused({ task: 'multi-turn', ...options }, fakeModel()).toMatchObject({ argument })
  })
})

// ---- perplexity ----

describe('perplexity', () => {
  const tokenizer = {
    encode: (text: string, { addSpecialTokens }: { addSpecialTokens: boolean }) => [
      ...(addSpecialTokens ? [3] : []),
      ...Array.from(text, (letter) => 'abc'.indexOf(letter)),
    ],
    decode: (ids: Iterable<number>) => Array.from(ids, (id) => 'abc^'[id]).join(''),
    token: (id: number) => 'abc^'[id],
    tokenId: () => undefined,
    specialIds: new Set<number>(),
    chatTemplateSource: () => undefined,
    applyChatTemplate: () => '',
  }
  /** fp16 takes a, b, c and ^ for equally likely; others give the last of the three half of all. */
  const logits = (_: string, policy: PolicySpec) =>
    Float32Array.from([1, 1, policy === 'fp16' ? 1 : 2, policy === 'fp16' ? 1 : 0], Math.log)
  const data = () => file('abc.txt', 'abcabc'.repeat(5))

  test('perplexity, KL and agreement by hand', async () => {
    const model = textModel({ tokenizer, vocabSize: 4, logits })
    const spec = { task: 'perplexity', data: data(), prefix: 6, tokens: 3 } as const
    const [fp16, other] = await ask(model, spec, { policies: ['fp16', 'uniform2'], questions: 9 })
    expect(fp16).toMatchObject({ questions: 3, measure: 'loss' })
    expect(fp16?.value).toBeCloseTo(4, 6)
    expect(fp16?.values.kl?.value).toBeCloseTo(0, 12)
    expect(fp16?.values.agree?.value).toBe(1)
    // Of the stretches abcabc|abca, bcabca|bcab and cabcab|cabc: tokens bca, cab and abc.
    expect(other?.value).toBeCloseTo((4 * 4 * 2) ** (1 / 3), 6)
    // p16 = 1/4 each; p = 1/4, 1/4, 1/2, 0: infinite.
    expect(other?.values.kl?.value).toBe(Number.POSITIVE_INFINITY)
  })

  test('KL by hand', async () => {
    const shares = (policy: PolicySpec) => (policy === 'fp16' ? [1, 1, 1, 1] : [1, 1, 3, 3])
    const model = textModel({
      tokenizer,
      vocabSize: 4,
      logits: (_, policy) => Float32Array.from(shares(policy), Math.log),
    })
    const spec = { task: 'perplexity', data: data(), prefix: 6, tokens: 3 } as const
    const [, other] = await ask(model, spec, { policies: ['fp16', 'uniform2'], questions: 1 })
    // 1/4 (2 ln(2) + 2 ln(2/3))
    expect(other?.values.kl?.value).toBeCloseTo(0.5 * Math.log(4 / 3), 6)
    expect(other?.values.agree?.value).toBe(0)
  })

  test('the prefix is a prompt, the rest comes token by token; 16 bits are computed once', async () => {
    const model = textModel({ tokenizer, vocabSize: 4, logits })
    const spec = { task: 'perplexity', data: data(), prefix: 6, tokens: 3 } as const
    await ask(model, spec, { policies: ['uniform4', 'uniform2'], questions: 1 })
    expect(model.policies).toEqual(['uniform4', 'fp16', 'uniform2'])
    for (const told of model.prompts) {
      expect(told[0]).toMatch(/^\^[abc]{6}$/)
      expect(told.slice(1).map(({ length }) => length)).toEqual([1, 1, 1])
    }
    const bare = textModel({ tokenizer, vocabSize: 4, logits })
    await ask(bare, { ...spec, addSpecialTokens: false }, { questions: 1 })
    expect(bare.prompts[0]?.[0]).toMatch(/^[abc]{6}$/)
  })

  test('a text that is too short is refused', async () => {
    await refused(
      { task: 'perplexity', data: data(), prefix: 28, tokens: 2 },
      textModel({ tokenizer, vocabSize: 4 }),
    ).toThrow(/abc\.txt has 30 tokens, expected 31 at least/)
  })
})

// ---- GSM8K ----

describe('gsm8k', () => {
  const problems = [2, 3, 4, 5].map((n) => ({
    question: `What is ${n} times 1000?`,
    answer: `It is ${n} * 1000 = <<${n}*1000=${n}000>>${n}000.\n#### ${n},000`,
  }))
  const asked = (prompt: string) => /What is (\d)[^?]*\?\nAnswer:$/.exec(prompt)?.[1]

  test('worked examples, the question, the number after ####', async () => {
    const answer = (prompt: string, policy: PolicySpec) =>
      policy === 'fp16'
        ? ` It is ${asked(prompt)}000.\n#### ${asked(prompt)}000\n\nQuestion: What is 9`
        : ' 7 and 8'
    const model = textModel({ answer })
    const data = file('gsm8k.jsonl', problems)
    const rows = await ask(
      model,
      { task: 'gsm8k', data, shots: 2 },
      { policies: ['fp16', 'uniform2'] },
    )
    expect(rows.map(({ value }) => value)).toEqual([100, 0])
    for (const [prompt = ''] of model.prompts) {
      const questions = prompt.match(/Question: [^\n]*/g) ?? []
      expect(new Set(questions).size).toBe(3)
      expect(prompt.match(/#### /g)).toHaveLength(2)
    }
  })

  test('examples from a file of their own, and as a chat', async () => {
    const data = file('gsm8k.jsonl', problems.slice(0, 1))
    const shotsData = file('train.jsonl', problems.slice(1))
    const model = textModel({ answer: () => 'The result is $2,000.' })
    const spec = { task: 'gsm8k', data, shotsData, shots: 3, chat: true } as const
    expect((await ask(model, spec))[0]).toMatchObject({ value: 100, questions: 1 })
    expect(model.prompts[0]?.[0]).toMatch(/^\[user\]Question: .*\nAnswer:\[model\]$/s)
  })

  test.each([
    ['so 3 + 4 = 7\n#### 1,234 apples', '1,234'],
    ['#### $-5.50', '-5.50'],
    ['first 3, then 12.', '12'],
    ['none', null],
  ])('%j is %j', (text, number) => {
    expect(answeredNumber(text)).toBe(number)
  })

  test.each([
    [
      'no result',
      [...problems, { question: 'a', answer: 'b' }],
      /:5: field 'answer' has no '#### number'$/,
    ],
    ['no question', [{ answer: '#### 4' }], /:1: has no field 'question'/],
  ])('a file with %s is refused', async (_, content, message) => {
    const data = file('bad.jsonl', content)
    await refused({ task: 'gsm8k', data, shots: 0 }).toThrow(message)
  })

  test('more examples than there are is refused', async () => {
    const data = file('gsm8k.jsonl', problems)
    await refused({ task: 'gsm8k', data, shots: 4 }).toMatchObject({ argument: 'shots' })
  })
})

// ---- LongBench ----

describe('longbench', () => {
  const item = (more: object) => ({
    ...{ input: 'who?', context: 'x'.repeat(50), answers: ['Ann Lee', 'Lee'], all_classes: null },
    ...more,
  })

  test('the best of the answers, in our wording and in theirs', async () => {
    const data = file('qasper.jsonl', [item({}), item({})])
    const spec = { task: 'longbench', data } as const
    const own = textModel({ answer: () => 'the lee' })
    expect((await ask(own, spec))[0]).toMatchObject({
      value: 100,
      measure: 'score',
      facts: { set: 'qasper', prompt: 'own' },
    })
    const prompts = file('prompts.json', JSON.stringify({ qasper: '<{context}> {input} =' }))
    const published = textModel({ answer: () => 'Ann' })
    const [row] = await ask(published, { ...spec, prompts })
    expect(row?.value).toBeCloseTo(200 / 3)
    expect(published.prompts[0]?.[0]).toBe(`<${'x'.repeat(50)}> who? =`)
  })

  test('a prompt that does not fit loses its middle', async () => {
    const data = file('qasper.jsonl', [item({ context: `${'a'.repeat(5000)}${'b'.repeat(5000)}` })])
    const model = textModel({ maxPositions: 400 })
    const [row] = await ask(model, { task: 'longbench', data, maxTokens: 100 })
    expect(row?.values.cut?.value).toBeGreaterThan(9000)
    const [prompt = ''] = model.prompts[0] as string[]
    expect(prompt).toHaveLength(300)
    expect(prompt).toMatch(/^Read the text.*a.*b.*Answer:$/s)
  })

  test('classes, and the first line alone', async () => {
    const data = file('trec.jsonl', [item({ answers: ['Food'], all_classes: ['Food', 'Date'] })])
    const model = textModel({ answer: () => '\nFood\nDate' })
    expect((await ask(model, { task: 'longbench', data }))[0]?.value).toBe(100)
  })

  test.each([
    ['a set that is none', 'poems.jsonl', [item({})], /is of the set poems, expected one of/],
    ['no answers', 'qasper.jsonl', [item({ answers: [] })], /:1: field 'answers' is empty/],
    [
      'no classes',
      'trec.jsonl',
      [item({})],
      /:1: field 'all_classes' is null, expected a list of texts/,
    ],
  ])('%s is refused', async (_, name, content, message) => {
    await refused({ task: 'longbench', data: file(name, content) }).toThrow(message)
  })

  test.each([
    ['{"lcc": "x {context}"}', /has no text with \{context\} for qasper/],
    ['{', /is no JSON/],
  ])('prompts that are %s are refused', async (text, message) => {
    const data = file('qasper.jsonl', [item({})])
    await refused({ task: 'longbench', data, prompts: file('p.json', text) }).toThrow(message)
  })
})

// ---- thoughts ----

describe('what a model thinks is not scored', () => {
  const problem = { question: 'What is 2', answer: 'Two thousand.\n#### 2000' }
  const item = { input: 'who?', context: 'x', answers: ['Lee'], all_classes: null }
  const harmonyTemplate = `[user]{{ messages[0].content }}<|start|>assistant
{%- if false %}<|channel|><|message|><|end|><|call|>{% endif %}`
  const kMarks = ['<|channel|>', '<|message|>', '<|call|>']
  const thinking: SubjectTokenizer = {
    ...characterTokenizer,
    chatTemplateSource: () => "{{ content.split('</think>') }}",
  }
  type Style = [string, () => Promise<SubjectTokenizer>, (thought: string, said: string) => string]
  const styles: Style[] = [
    ['between marks', async () => thinking, (thought, said) => `<think>${thought}</think>${said}`],
    [
      "in harmony's messages",
      async () => tokenizerWith(harmonyTemplate, kMarks),
      (thought, said) =>
        `<|channel|>analysis<|message|>${thought}<|end|><|start|>assistant<|channel|>final<|message|>${said}`,
    ],
  ]

  describe.each(styles)('%s', (_, makeTokenizer, write) => {
    let tokenizer: SubjectTokenizer
    beforeAll(async () => {
      tokenizer = await makeTokenizer()
    })
    const gsm8k = () => ({ task: 'gsm8k', data: file('one.jsonl', [problem]), shots: 0 }) as const
    const qasper = () => ({ task: 'longbench', data: file('qasper.jsonl', [item]) }) as const

    test.each<[string, () => TaskSpec, string, (prompt: string) => string]>([
      ['gsm8k', gsm8k, 'Is it\nQuestion: 7?\n#### 7', () => ' 2000\nQuestion: 5'],
      ['longbench', () => ({ ...qasper(), maxTokens: 300 }), 'a b c d e f g', () => 'Lee'],
      ['line-retrieval', () => ({ task: 'line-retrieval', lines: 9 }), '7.', readOff],
      ['needle', () => ({ task: 'needle', depth: 50, lines: 9 }), '7.', readOff],
    ])('%s', async (__, makeSpec, thought, answer) => {
      const spec = { maxTokens: 300, ...makeSpec() } as TaskSpec
      const answers = (prompt: string) => write(thought, answer(prompt))
      const row = async (chat: boolean) => {
        const model = textModel({ tokenizer, answer: answers })
        return (await ask(model, { ...spec, chat } as TaskSpec, { questions: 1 }))[0]
      }
      expect(await row(true)).toMatchObject({ value: 100, values: { unfinished: { value: 0 } } })
      const plain = await row(false)
      expect(plain?.value).toBeLessThan(100)
      expect(plain?.values.unfinished).toBeUndefined()
    })

    test('an answer that ends within its thoughts has said nothing; all of it is kept', async () => {
      const thought = 'It may be 2000, or '
      const model = textModel({
        tokenizer,
        answer: () => write(thought, '').split(/<.think|<.end/)[0]!,
      })
      const asker = await localAsker({
        ...{ model, tasks: [{ ...gsm8k(), chat: true }], questions: 1, seed: 1 },
      })
      const answers: Answer[] = []
      const onAnswer = async (answer: Answer) => void answers.push(answer)
      await asker.ask({ task: 0, question: 0, policies: ['fp16'] }, onAnswer)
      expect(answers).toMatchObject([{ score: 0, values: { unfinished: 1 } }])
      expect(answers[0]?.answer).toContain(thought)
    })

    test('a journal of answers that were scored otherwise is not taken for it', async () => {
      const keyOf = async (own: SubjectTokenizer) => {
        const model = textModel({ tokenizer: own })
        const tasks = [{ ...gsm8k(), chat: true }]
        return (await localAsker({ model, tasks, questions: 1, seed: 1 })).tasks[0]?.key
      }
      expect(await keyOf(tokenizer)).not.toBe(await keyOf(characterTokenizer))
    })
  })

  test('a number of tokens', async () => {
    const model = textModel({ answer: readOff })
    const spec = { task: 'line-retrieval', lines: 9, maxTokens: 1 } as const
    expect((await ask(model, spec))[0]?.value).toBe(0)
    await refused({ ...spec, maxTokens: 0 }).toMatchObject({ argument: 'maxTokens' })
    await refused({ task: 'needle', depth: 1, lines: 9, maxTokens: 0.5 }).toMatchObject({
      argument: 'maxTokens',
    })
  })
})

test.each([
  [{ task: 'gsm8k', data: 5 }, 'data'],
  [{ task: 'needle', depth: 50, lines: 9, chat: 'yes' }, 'chat'],
  [{ task: 'line-retrieval', lines: 9, chat: 1 }, 'chat'],
])('%j is refused', async (spec, argument) => {
  await refused(spec).toMatchObject({ code: 'ERR_ZC_ARGUMENT', argument })
})

test('an unknown task is named', async () => {
  await refused({ task: 'poetry' }).toThrow(/task: is "poetry", expected line-retrieval, /)
})
