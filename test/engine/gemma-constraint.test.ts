/** Answers that have to be a call as Gemma 4 writes it, behind what the model thinks or at once. */
import Ajv from 'ajv'
import { readGemmaCall } from '../../lib/chat/gemma-calls'
import type { GenerateOptions, Model } from '../../lib/index'
import { kGemmaMarks } from '../server/gemma-template'
import { expectRejected } from '../support/errors'
import { kFirstMark, loadMarked } from './marked-model'
import { collect, someIds } from './running'

const idOf = (mark: string) => kFirstMark + kGemmaMarks.indexOf(mark)
const [kOpen, kClose, kQuote, kTurn] = ['<|channel>', '<channel|>', '<|"|>', '<turn|>'].map(
  idOf,
) as [number, number, number, number]

let model: Model
beforeAll(async () => {
  model = await loadMarked(kGemmaMarks)
})
afterAll(() => model.dispose())

const schema = {
  type: 'object',
  properties: {
    n: { type: 'integer', maximum: 99, minimum: 0 },
    kind: { enum: ['a', 'b"'] },
    text: { type: 'string', maxLength: 8 },
  },
  required: ['n', 'kind', 'text'],
}
const validate = new Ajv().compile(schema)
const context = { names: new Set<string>(), parametersOf: () => undefined }

async function answer(seed: number, options: GenerateOptions) {
  const sequence = model.createSequence({ policy: 'full' })
  try {
    // What ends a text of this model is a byte of others.
    const ends = { ignoreEos: true, stopTokens: [kTurn] }
    const all = { seed, temperature: 2, maxTokens: 400, ...ends, ...options }
    const ids: number[] = []
    let nDrafted = 0
    for await (const token of sequence.generate(someIds(30, 300), all)) {
      ids.push(token.id)
      if (token.isDrafted) nDrafted++
    }
    return { said: model.tokenizer!.decode(ids), finishReason: sequence.finishReason, nDrafted }
  } finally {
    sequence.dispose()
  }
}

/** The call of an answer that is nothing else. */
function callOf(said: string) {
  const [, between] = /^<\|tool_call>(.*)<tool_call\|>$/s.exec(said) ?? []
  const call = between === undefined ? null : readGemmaCall(between, context)
  return call && { name: call.name, args: JSON.parse(call.args) as unknown }
}

test('a call of one of the functions, each with its own schema', async () => {
  const gemmaCalls = { first: schema, second: { const: { x: ['y'] } } }
  const seen = new Set<string>()
  let nAllDrafted = 0
  for (let seed = 0; seed < 16; seed++) {
    const { said, finishReason, nDrafted } = await answer(seed, { gemmaCalls })
    expect(finishReason).toBe('stop')
    nAllDrafted += nDrafted
    const call = callOf(said)
    seen.add(call?.name ?? said)
    if (call?.name === 'second') expect(said).toContain('call:second{x:[<|"|>y<|"|>]}')
    else expect({ said, valid: validate(call?.args) }).toEqual({ said, valid: true })
  }
  expect([...seen].sort()).toEqual(['first', 'second'])
  // Names and signs that the schema leaves no choice about.
  expect(nAllDrafted).toBeGreaterThan(0)
})

test('behind a thought, or at once', async () => {
  const kinds = new Set<boolean>()
  for (let seed = 0; seed < 12; seed++) {
    const { said, finishReason } = await answer(seed, {
      gemmaCalls: { f: schema },
      thoughts: { open: '<|channel>', close: '<channel|>' },
      logitBias: { [kOpen]: 1, [kClose]: 6 },
    })
    expect(finishReason).toBe('stop')
    const thought = /^<\|channel>.*?<channel\|>\n{0,2}/s.exec(said)?.[0] ?? ''
    kinds.add(thought !== '')
    const call = callOf(said.slice(thought.length))
    expect({ said, valid: validate(call?.args) }).toEqual({ said, valid: true })
  }
  expect(kinds.size).toBe(2)
})

test('no other token is a quote, and no other quote ends a text', async () => {
  const { said } = await answer(0, {
    gemmaCalls: { f: { type: 'object', properties: { a: { type: 'string' } }, required: ['a'] } },
    logitBias: { 255: 100, [kQuote]: 50 },
  })
  expect(said).toBe('<|tool_call>call:f{a:<|"|><|"|>}<tool_call|>')
})

test('what is no such option, and a vocabulary without the marks', async () => {
  const run = (own: Model, options: GenerateOptions) =>
    collect(own.generate([1, 2], { maxTokens: 1, ...options }))
  const cases: [GenerateOptions, string][] = [
    [{ gemmaCalls: {} }, 'gemmaCalls'],
    [{ gemmaCalls: null as never }, 'gemmaCalls'],
    [{ gemmaCalls: [] as never }, 'gemmaCalls'],
    [{ json: true, gemmaCalls: { f: true } }, 'json'],
    [{ harmony: { final: true }, gemmaCalls: { f: true } }, 'harmony'],
  ]
  for (const [options, argument] of cases) {
    await expectRejected(run(model, options), { code: 'ERR_ZC_ARGUMENT', argument })
  }
  const wrong = run(model, { gemmaCalls: { f: { type: 'x' } } })
  await expectRejected(wrong, { code: 'ERR_ZC_ARGUMENT' })
  await using bare = await loadMarked(kGemmaMarks.slice(0, 8))
  await expectRejected(run(bare, { gemmaCalls: { f: true } }), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'gemmaCalls',
  })
})
