/** Calls as Gemma 4 writes them: what a schema allows, and nothing else. */
import Ajv2020 from 'ajv/dist/2020'
import fc from 'fast-check'
import { readGemmaCall } from '../../lib/chat/gemma-calls'
import type { GrammarState } from '../../lib/grammar/automaton'
import { gemmaText } from '../../lib/grammar/gemma-notation'
import {
  gemmaCalls,
  type JsonSchema,
  QUOTE_BYTE,
  TokenMasker,
  TokenTrie,
} from '../../lib/grammar/index'
import { expectRefused } from '../support/errors'
import { propertyRuns } from '../support/properties'

/** The bytes of a call, `'` for the token of a quote. */
const bytesOf = (call: string) =>
  [...Buffer.from(call)].map((byte) => (byte === 0x27 ? QUOTE_BYTE : byte))

function after(schema: true | JsonSchema, args: string): GrammarState | null {
  let state: GrammarState | null = gemmaCalls({ f: schema })
  for (const byte of bytesOf(`call:f${args}`)) state = state?.next(byte) ?? null
  return state
}

const accepts = (schema: true | JsonSchema, args: string) =>
  after(schema, args)?.isAccepting === true

const object = (properties: object, required = Object.keys(properties)) => ({
  type: 'object',
  properties,
  required,
})

test.each<[string, true | JsonSchema, readonly string[], readonly string[]]>([
  [
    'texts',
    object({ a: { type: 'string' } }),
    ["{a:''}", "{a:'x\"y\\z\n\t\u0001{,:é€😀'}", "{a:'<|\"|'}", "{a:'<|\"|\\>'}", "{a:'<<|\"|'}"],
    [
      "{a:'<|\"|>'}",
      "{a:'x<<|\"|>y'}",
      '{a:"x"}',
      '{a:x}',
      "{'a':''}",
      "{a:'}",
      "{a: ''}",
      '{}',
      "{a:'',}",
    ],
  ],
  [
    'other values',
    object({
      a: { type: 'integer' },
      b: { type: 'number' },
      c: { type: 'boolean' },
      d: { type: 'null' },
    }),
    ['{a:1,b:-1.5e3,c:true,d:null}', '{a:-7,b:0,c:false,d:null}'],
    [
      '{a:1.5,b:1,c:true,d:null}',
      '{b:1,a:1,c:true,d:null}',
      "{a:'1',b:1,c:true,d:null}",
      '{a:1, b:1,c:true,d:null}',
    ],
  ],
  [
    'values within each other',
    object({ a: { type: 'array', items: object({ b: { enum: ['x', 2, { c: ['y'] }] } }) } }),
    ['{a:[]}', "{a:[{b:'x'},{b:2},{b:{c:['y']}}]}"],
    ["{a:[{b:'z'}]}", "{a:[{b:{c:['y',]}}]}", '{a:[}', '{a:[{b:2}}', '{a:{}}', '{a:[1]}'],
  ],
  [
    'lengths',
    object({ a: { type: 'string', minLength: 2, maxLength: 3 } }),
    ["{a:'\"\\'}", "{a:'\n\n\n'}", "{a:'😀é€'}"],
    ["{a:'x'}", "{a:'xxxx'}"],
  ],
  [
    'patterns',
    object({
      a: { type: 'string', pattern: '^["\\\\\\n]+$', maxLength: 3 },
      b: { format: 'date', type: 'string' },
    }),
    ["{a:'\"\\\n',b:'2024-02-28'}"],
    ["{a:'x',b:'2024-02-28'}", '{a:\'""""\',b:\'2024-02-28\'}', "{a:'\"',b:'2024-02-30'}"],
  ],
  [
    'some of the properties',
    object({ a: {}, b: {} }, []),
    ['{}', '{b:1}', "{a:['x',{k:null}],b:{}}"],
    ['{b:1,a:1}', '{c:1}'],
  ],
  [
    'any names',
    { type: 'object', additionalProperties: { type: 'integer' } },
    ['{}', '{a:1,$b-é.c:2}'],
    ['{:1}', '{a b:1}', "{'a':1}", '{a"b:1}', '{a:1,}'],
  ],
  ['nothing said', true, ['{}', "{a:[],b:{c:''}}"], ['[]', '{a}']],
  [
    'names that need quotes',
    object({ 'a b': { type: 'integer' }, c: {} }),
    ["{'a b':1,'c':2}"],
    ['{a b:1,c:2}', "{'a b':1,c:2}", "{'a b' :1,'c':2}"],
  ],
  [
    'such names in values',
    object({ a: { const: { 'b:c': 1 } } }),
    ["{'a':{'b:c':1}}"],
    ['{a:{b:c:1}}'],
  ],
  [
    'such names that are required',
    { type: 'object', required: ['a:b'] },
    ["{'a:b':1}"],
    ['{a:b:1}'],
  ],
  [
    'names of a pattern',
    { type: 'object', patternProperties: { '^x:': {} } },
    ["{'x:y':1}", '{}'],
    ['{x:y:1}', "{'y':1}"],
  ],
  [
    'references',
    {
      $ref: '#/$defs/t',
      $defs: {
        t: object({ v: { type: 'string' }, kids: { type: 'array', items: { $ref: '#/$defs/t' } } }),
      },
    },
    ["{v:'a',kids:[{v:'b',kids:[]}]}"],
    ["{v:'a',kids:[{v:'b'}]}"],
  ],
])('%s', (_, schema, right, wrong) => {
  for (const args of right) expect({ args, ok: accepts(schema, args) }).toEqual({ args, ok: true })
  for (const args of wrong) expect({ args, ok: accepts(schema, args) }).toEqual({ args, ok: false })
})

test('one of several functions', () => {
  const start = gemmaCalls({ get: true, get_all: object({ a: { type: 'integer' } }), other: true })
  const read = (text: string) => {
    let state: GrammarState | null = start
    for (const byte of bytesOf(text)) state = state?.next(byte) ?? null
    return state?.isAccepting === true
  }
  const right = ['call:get{}', 'call:get_all{a:1}', "call:other{x:'y'}"]
  const wrong = ['call:get_all{}', 'call:ge{}', 'get{}', 'call:none{}', 'call:get', 'call:get{}}']
  for (const text of right) expect([text, read(text)]).toEqual([text, true])
  for (const text of wrong) expect([text, read(text)]).toEqual([text, false])
})

test.each([
  ['no object', { type: 'string' }, /arguments that are no object/],
  ['a value with the quote', object({ a: { const: 'x<|"|>' } }), /a text with <\|"\|>/],
  ['a name with it', object({ '<|"|>': {} }), /a text with <\|"\|>/],
])('what cannot be written: %s', (_, schema, message) => {
  expectRefused(() => gemmaCalls({ f: schema }), { code: 'ERR_ZC_UNSUPPORTED', message })
  // A description may say anything.
  gemmaCalls({ f: { ...object({ a: {} }), description: 'x<|"|>' } })
})

test('all that is let through is of the schema, and comes to an end', () => {
  const schema = {
    type: 'object',
    properties: {
      text: { type: 'string', maxLength: 6 },
      date: { type: 'string', pattern: '^[a-z"<|>\\\\]*$', maxLength: 5 },
      n: { type: 'number', minimum: -5, maximum: 5 },
      kinds: { type: 'array', items: { enum: ['a', 'b"', 3, null] }, maxItems: 3 },
      nested: { anyOf: [{ type: 'null' }, object({ ok: { type: 'boolean' }, any: {} }, ['ok'])] },
      'x-tra': { type: 'object', additionalProperties: { type: 'integer' } },
    },
    required: ['text', 'n'],
    additionalProperties: false,
  }
  const validate = new Ajv2020().compile(schema)
  const start = gemmaCalls({ f: schema, g: schema })
  fc.assert(
    fc.property(fc.array(fc.nat(255), { minLength: 1, maxLength: 60 }), (choices) => {
      const bytes: number[] = []
      let state: GrammarState = start
      for (let i = 0; !state.isAccepting && bytes.length < 2000; i++) {
        const open = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) =>
          state.next(byte),
        )
        expect(open).not.toEqual([])
        // The only one that may come is known to be, if any is.
        if (state.onlyByte !== null) expect(open).toEqual([state.onlyByte])
        const closing = open.filter(
          (byte) => byte === QUOTE_BYTE || ']},:'.includes(String.fromCharCode(byte)),
        )
        const from = i > choices.length && closing.length > 0 ? closing : open
        const byte = from[(choices[i % choices.length] as number) % from.length] as number
        bytes.push(byte)
        state = state.next(byte) as GrammarState
      }
      if (!state.isAccepting) return
      const text = gemmaText(Uint8Array.from(bytes))
      const call = readGemmaCall(text, { names: new Set(), parametersOf: () => undefined })
      expect(call?.name).toMatch(/^[fg]$/)
      expect({ text, ok: validate(JSON.parse(call?.args ?? '')) }).toEqual({ text, ok: true })
    }),
    propertyRuns(200),
  )
})

test('the tokens that a state allows are found once, and those that must come are told', () => {
  const kQuote = 256
  const words = ['call:', '{city:', 'city', '{', '}', 'Oslo']
  const tokens = [
    ...Array.from({ length: 256 }, (_, byte) => (byte === QUOTE_BYTE ? null : Uint8Array.of(byte))),
    Uint8Array.of(QUOTE_BYTE),
    ...words.map((word) => Buffer.from(word)),
  ]
  const trie = new TokenTrie(tokens.length, (id) => tokens[id] ?? null)
  const encode = (text: string) =>
    text.split(/(<\|"\|>|call:|\{city:)/).flatMap((part) => {
      if (part === '<|"|>') return [kQuote]
      const word = words.indexOf(part)
      return word >= 0 ? [257 + word] : [...Buffer.from(part)]
    })
  const start = gemmaCalls({ weather: object({ city: { enum: ['Oslo', 'Bern'] } }) })
  const masker = new TokenMasker({ start }, { trie, encode }, new Set([kQuote + 1000]), null)
  masker.apply(new Float32Array(tokens.length))
  const likely = masker.likely()
  expect(likely).toEqual([257, ...Buffer.from('weather'), 258, kQuote])
  for (const id of likely) masker.accept(id)
  const logits = new Float32Array(tokens.length)
  masker.apply(logits)
  const allowed = [...logits.keys()].filter((id) => logits[id] === 0)
  expect(allowed).toEqual([0x42, 0x4f, 262])
  masker.accept(262)
  expect(masker.likely()).toEqual([kQuote])
  for (const id of [kQuote, 0x7d]) masker.accept(id)
  expect(masker.isDone).toBe(true)
})
