/** Answers in OpenAI's harmony format that have to be JSON, behind whatever the model thinks. */
import Ajv from 'ajv'
import type { GenerateOptions, Model } from '../../lib/index'
import { expectRejected } from '../support/errors'
import { kFirstMark, loadMarked } from './marked-model'
import { collect, someIds } from './running'

const kMarks = ['<|channel|>', '<|message|>', '<|call|>', '<|constrain|>', '<|return|>']
/** Ids of the special tokens; <|end|> and <|start|> are the tokenizer's own. */
const kEnd = 300
const [kChannel, kMessage, kCall, kConstrain, kReturn] = kMarks.map((_, i) => kFirstMark + i) as [
  number,
  number,
  number,
  number,
  number,
]

let model: Model
beforeAll(async () => {
  model = await loadMarked(kMarks)
})
afterAll(() => model.dispose())

const schema = {
  type: 'object',
  properties: { n: { type: 'integer', maximum: 99, minimum: 0 }, kind: { enum: ['a', 'b'] } },
  required: ['n', 'kind'],
}
const validate = new Ajv().compile(schema)

/** An answer with its marks; thoughts end soon, since <|end|> is made likely. */
async function answer(seed: number, harmony: GenerateOptions['harmony']) {
  const sequence = model.createSequence({ policy: 'full' })
  try {
    const options = {
      harmony,
      seed,
      temperature: 2,
      maxTokens: 400,
      stopTokens: [kCall, kReturn],
      logitBias: { [kEnd]: 4, [kMessage]: 4, [kChannel]: 4, [kReturn]: 4 },
    }
    const { ids } = await collect(sequence.generate(someIds(30, 300), options))
    return { said: model.tokenizer!.decode(ids), finishReason: sequence.finishReason }
  } finally {
    sequence.dispose()
  }
}

const thought =
  /^<\|channel\|>analysis<\|message\|>(?:(?!<\|(?!end)).)*?<\|end\|><\|start\|>assistant/s

test('a final message that the schema allows, with thoughts before it or none', async () => {
  const withThoughts = new Set<boolean>()
  for (let seed = 0; seed < 12; seed++) {
    const { said, finishReason } = await answer(seed, { final: schema })
    expect(finishReason).toBe('stop')
    withThoughts.add(thought.test(said))
    const rest = said.replace(thought, '')
    expect(rest).toMatch(/^<\|channel\|>final<\|message\|>\{/)
    const text = rest.replace(/^.*?<\|message\|>/, '')
    expect({ text, valid: validate(JSON.parse(text)) }).toEqual({ text, valid: true })
  }
  expect(withThoughts.size).toBe(2)
})

test('a call of one of the functions, each with its own schema', async () => {
  const calls = { first: schema, second: { const: { x: 1 } } }
  const headers =
    /^(?:<\|channel\|>commentary to=functions\.(\w+) <\|constrain\|>json| to=functions\.(\w+)<\|channel\|>commentary json)<\|message\|>/
  const seen = new Set<string>()
  for (let seed = 0; seed < 24; seed++) {
    const { said, finishReason } = await answer(seed, { calls })
    expect(finishReason).toBe('stop')
    const rest = said.replace(thought, '')
    const [all, inChannel, inRole] = headers.exec(rest) ?? []
    expect(all).toBeDefined()
    const name = (inChannel ?? inRole) as string
    seen.add(name).add(inChannel ? 'in channel' : 'in role')
    const value: unknown = JSON.parse(rest.slice(all?.length))
    if (name === 'first') expect(validate(value)).toBe(true)
    else expect(value).toEqual({ x: 1 })
  }
  expect([...seen].sort()).toEqual(['first', 'in channel', 'in role', 'second'])
})

test('a call, or a final message: what is said is one of the two', async () => {
  const kinds = new Set<string>()
  for (let seed = 0; seed < 24; seed++) {
    const { said } = await answer(seed, { final: schema, calls: { f: { const: {} } } })
    const [, header = '', text = ''] = /(.*)<\|message\|>(.*)$/s.exec(said) ?? []
    const kind = header.includes('functions.f') ? 'call' : 'final'
    kinds.add(kind)
    if (kind === 'call') expect(JSON.parse(text)).toEqual({})
    else expect(validate(JSON.parse(text))).toBe(true)
  }
  expect([...kinds].sort()).toEqual(['call', 'final'])
})

test('thoughts have no other mark, and do not end the answer', async () => {
  const bias = Object.fromEntries([kCall, kReturn, kConstrain, 301].map((id) => [id, 50]))
  const options = {
    harmony: { final: true as const },
    logitBias: { ...bias, [kChannel]: 100, [kEnd]: -100 },
    temperature: 1,
    stopTokens: [kCall, kReturn],
    maxTokens: 60,
    policy: 'full' as const,
  }
  // The first letter tells thoughts from what is said.
  const isThinking = { ...options, logitBias: { ...options.logitBias, 97: 100 } }
  const { ids } = await collect(model.generate(someIds(30, 300), isThinking))
  expect(ids).toHaveLength(60)
  const said = model.tokenizer!.decode(ids)
  expect(said).toMatch(/^<\|channel\|>analysis<\|message\|>/)
  expect(said.slice('<|channel|>analysis<|message|>'.length)).not.toContain('<|')
})

test('what is no such option, and a vocabulary without the marks', async () => {
  const run = (own: Model, options: GenerateOptions) =>
    collect(own.generate([1, 2], { maxTokens: 1, ...options }))
  const cases: [GenerateOptions, string][] = [
    [{ harmony: {} }, 'harmony'],
    [{ harmony: { calls: {} } }, 'harmony'],
    [{ harmony: null as never }, 'harmony'],
    [{ harmony: { final: true, calls: [] as never } }, 'harmony'],
    [{ json: true, harmony: { final: true } }, 'json'],
  ]
  for (const [options, argument] of cases) {
    await expectRejected(run(model, options), { code: 'ERR_ZC_ARGUMENT', argument })
  }
  const wrong = run(model, { harmony: { final: { type: 'x' } } })
  await expectRejected(wrong, { code: 'ERR_ZC_ARGUMENT' })
  await using bare = await loadMarked([])
  await expectRejected(run(bare, { harmony: { final: true } }), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'harmony',
  })
})

test('without a mark for it, the type stands as a word', async () => {
  await using own = await loadMarked(kMarks.slice(0, 3))
  const options = {
    harmony: { calls: { f: { const: {} } } },
    temperature: 2,
    logitBias: { [kChannel]: 100, [kEnd]: 10, 99: 100 },
    maxTokens: 200,
    policy: 'full' as const,
  }
  const { ids } = await collect(own.generate(someIds(30, 300), options))
  expect(own.tokenizer!.decode(ids)).toBe('<|channel|>commentary to=functions.f json<|message|>{}')
})
