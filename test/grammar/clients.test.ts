/** Schemas as clients of OpenAI's API write them: zod by itself, for OpenAI's client and for Vercel's, pydantic. */

import { zodSchema } from 'ai'
import Ajv2020 from 'ajv/dist/2020'
import fc from 'fast-check'
import { zodResponseFormat } from 'openai/helpers/zod'
import * as z from 'zod'
import * as z3 from 'zod/v3'
import { type JsonSchema, jsonGrammar } from '../../lib/grammar/index'
import { accepts, acceptsGemma, walk } from './texts'

type Case = [name: string, schema: z.ZodType, right: readonly unknown[], wrong: readonly unknown[]]

const base = z.object({ name: z.string() })
const cat = z.object({ kind: z.literal('cat'), n: z.int() })
const dog = z.object({ kind: z.literal('dog'), s: z.string() })
const tree = z.object({
  v: z.string(),
  get kids() {
    return z.array(tree).max(2)
  },
})

const cases: readonly Case[] = [
  ['multiples', z.int().multipleOf(5).min(0).max(100), [0, 35, 100], [7, -5, 105]],
  ['steps', z.number().multipleOf(0.25), [0.5, -1.75, 3], [0.3]],
  [
    'a pattern with a length',
    z
      .string()
      .regex(/^[a-z]+$/)
      .min(2)
      .max(4),
    ['ab', 'abcd'],
    ['a', 'abcde', 'A'],
  ],
  ['an address with a length', z.email().max(12), ['a@b.example'], ['ann@b.example']],
  ['a URL with a length', z.url().min(1).max(30), ['https://a.example/b'], ['']],
  ['a beginning with a length', z.string().startsWith('a').min(3), ['abc'], ['ab', 'bcd']],
  ['a duration', z.iso.duration(), ['P1W', 'P1Y2DT3,5S', 'PT1M'], ['P', 'P1YT', 'PT', 'P1W1D']],
  [
    'nothing',
    z.object({ a: z.never().optional(), b: z.null() }),
    [{ b: null }],
    [{ a: 1, b: null }],
  ],
  ['objects at once', base.and(z.object({ n: z.int() })), [{ name: 'a', n: 1 }], [{ name: 'a' }]],
  [
    'a property twice',
    z.intersection(base, z.object({ name: z.string().min(2) })),
    [{ name: 'ab' }],
    [{ name: 'a' }],
  ],
  [
    'an object and one of others',
    base.and(z.discriminatedUnion('kind', [cat, dog])),
    [{ name: 'a', kind: 'cat', n: 1 }],
    [{ name: 'a', kind: 'dog', n: 1 }],
  ],
  ['numbers at once', z.intersection(z.number().min(1), z.number().max(5)), [1, 5], [0, 6]],
  [
    'a record of a pattern',
    z.record(z.string().regex(/^[a-z]+$/), z.int()),
    [{}, { ab: 1 }],
    [{ A: 1 }],
  ],
  ['a record of long names', z.record(z.string().min(2), z.null()), [{ ab: null }], [{ a: null }]],
  ['a record of numbers', z.record(z.number(), z.null()), [{ 12: null }], [{ a: null }]],
  ['a record of dates', z.record(z.iso.date(), z.null()), [{ '2026-11-28': null }], [{ a: null }]],
  [
    'a record of names',
    z.record(z.enum(['a', 'b']), z.null()),
    [{ a: null, b: null }],
    [{ a: null }],
  ],
  [
    'a record of literals',
    z.record(z.union([z.literal('a'), z.literal('b')]), z.null()),
    [{ a: null, b: null }],
    [{ c: null }],
  ],
  ['a tree', tree, [{ v: 'a', kids: [{ v: 'b', kids: [] }] }], [{ v: 'a' }]],
]

/** What each library makes of a schema. */
function* written(schema: z.ZodType): Generator<[by: string, schema: object]> {
  for (const target of ['draft-2020-12', 'draft-7', 'draft-4', 'openapi-3.0'] as const) {
    for (const io of ['input', 'output'] as const) {
      yield [`zod, ${target}, ${io}`, z.toJSONSchema(schema, { target, io })]
    }
  }
  const field = (whole: object) => (whole as { properties: { v: object } }).properties.v
  const vercel = zodSchema(z.object({ v: schema })).jsonSchema as { $defs?: object }
  if (!JSON.stringify(vercel).includes('$ref')) yield ["Vercel's", field(vercel)]
}

test.each(cases)('%s, as zod writes it', (name, schema, right, wrong) => {
  for (const [by, json] of written(schema)) {
    const own = json as JsonSchema
    for (const value of right) {
      expect({ by, json, value, is: accepts(own, JSON.stringify(value)) }).toMatchObject({
        is: true,
      })
    }
    // These have no words for what names may be.
    const isOld = /draft-4|openapi/.test(by) && /^a record/.test(name)
    for (const value of isOld ? [] : wrong) {
      expect({ by, json, value, is: accepts(own, JSON.stringify(value)) }).toMatchObject({
        is: false,
      })
    }
  }
  const own = z.toJSONSchema(schema) as JsonSchema
  let whole = 0
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: 20, maxLength: 60 }), (choices) => {
      const text = walk(own, choices)
      if (text === null) return
      whole++
      const read = schema.safeParse(JSON.parse(text))
      expect({ text, error: read.error?.message }).toEqual({ text, error: undefined })
    }),
    { numRuns: 60, seed: 5 },
  )
  expect(whole).toBeGreaterThan(20)
})

test.each(cases)("%s, in a call of Gemma's", (_, schema, right, wrong) => {
  const own = z.toJSONSchema(z.object({ v: schema })) as JsonSchema
  for (const [values, is] of [
    [right, true],
    [wrong, false],
  ] as const) {
    for (const v of values) expect({ v, is: acceptsGemma(own, { v }) }).toEqual({ v, is })
  }
})

test("what OpenAI's client writes of zod's schemas, of either version, is taken", () => {
  const shape = {
    n: z.int().multipleOf(5),
    code: z.string().regex(/^a+$/).max(9),
    at: z.url().max(99),
  }
  const { schema } = zodResponseFormat(z.object(shape), 'own').json_schema
  const good = { n: 10, code: 'aa', at: 'https://a.example' }
  expect(accepts(schema as JsonSchema, JSON.stringify(good))).toBe(true)
  expect(accepts(schema as JsonSchema, JSON.stringify({ ...good, n: 11 }))).toBe(false)
  const old = z3.object({
    a: z3.string().email().min(1).nullable(),
    b: z3.object({ x: z3.number().multipleOf(3) }).and(z3.object({ y: z3.bigint() })),
    c: z3.record(z3.string().min(2), z3.null()),
  })
  const { schema: other } = zodResponseFormat(old, 'own').json_schema
  const right = { a: null, b: { x: 9, y: 1 }, c: { ab: null } }
  expect(accepts(other as JsonSchema, JSON.stringify(right))).toBe(true)
  expect(accepts(other as JsonSchema, JSON.stringify({ ...right, b: { x: 9 } }))).toBe(false)
})

/** What pydantic 2.13 makes of `v: TYPE`. */
const ofPydantic: readonly [type: string, schema: object, right: unknown, wrong: unknown][] = [
  [
    'HttpUrl',
    { format: 'uri', maxLength: 2083, minLength: 1, type: 'string' },
    'https://a.example/',
    '',
  ],
  [
    'Decimal',
    {
      anyOf: [{ type: 'number' }, { pattern: '^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$', type: 'string' }],
    },
    '-1.50',
    '-.',
  ],
  ['conint(multiple_of=5)', { multipleOf: 5, type: 'integer' }, 25, 26],
  [
    'constr(pattern, max_length)',
    { maxLength: 4, pattern: '^a+$', type: 'string' },
    'aaaa',
    'aaaaa',
  ],
  [
    'set[Color]',
    { items: { $ref: '#/$defs/Color' }, type: 'array', uniqueItems: true },
    ['b', 'r'],
    ['r', 'r'],
  ],
  [
    'dict[Color, int]',
    {
      additionalProperties: { type: 'integer' },
      propertyNames: { $ref: '#/$defs/Color' },
      type: 'object',
    },
    { r: 1 },
    { a: 1 },
  ],
  [
    'dict[constr(pattern), int]',
    { patternProperties: { '^[a-z]+$': { type: 'integer' } }, type: 'object' },
    { ab: 1 },
    { A: 1 },
  ],
  [
    'Annotated[dict[str, int], Len(1, 2)]',
    {
      additionalProperties: { type: 'integer' },
      maxProperties: 2,
      minProperties: 1,
      type: 'object',
    },
    { a: 1, b: 2 },
    {},
  ],
  [
    'dict[UUID, int]',
    {
      additionalProperties: { type: 'integer' },
      propertyNames: { format: 'uuid' },
      type: 'object',
    },
    { '0f8fad5b-d9cb-469f-a165-70867728950e': 1 },
    { a: 1 },
  ],
  ['UUID4', { format: 'uuid4', type: 'string' }, '0f8fad5b-d9cb-469f-a165-70867728950e', 'a'],
  ['Path', { format: 'path', type: 'string' }, '/a', 1],
  ['SecretStr', { format: 'password', type: 'string', writeOnly: true }, 'a', 1],
  [
    'Json[int]',
    { contentMediaType: 'application/json', contentSchema: { type: 'integer' }, type: 'string' },
    '1',
    1,
  ],
  ['Base64Str', { format: 'base64', type: 'string' }, 'YWI=', 'YWI'],
  [
    'Addr, of pydantic 1',
    { title: 'V', allOf: [{ $ref: '#/$defs/Addr' }], default: {} },
    { street: 'a' },
    {},
  ],
]

test.each(ofPydantic)('%s, as pydantic writes it', (_, own, right, wrong) => {
  const schema = {
    $defs: {
      Color: { enum: ['r', 'b'], type: 'string' },
      Addr: { type: 'object', properties: { street: { type: 'string' } }, required: ['street'] },
    },
    ...own,
  } as JsonSchema
  expect(accepts(schema, JSON.stringify(right))).toBe(true)
  expect(accepts(schema, JSON.stringify(wrong))).toBe(false)
  const formats = Object.fromEntries(
    ['uri', 'uuid', 'uuid4', 'path', 'password', 'base64'].map((name) => [name, true]),
  )
  const validate = new Ajv2020({ strict: false, formats } as object).compile(schema as object)
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: 20, maxLength: 60 }), (choices) => {
      const text = walk(schema, choices)
      if (text !== null) expect([text, validate(JSON.parse(text))]).toEqual([text, true])
    }),
    { numRuns: 40, seed: 5 },
  )
})

test('schemas that merge without end are not followed', () => {
  const twice = { allOf: [{ $ref: '#' }, { anyOf: [{ $ref: '#' }, { type: 'null' }] }] }
  expect(accepts(twice, 'null')).toBe(true)
  const b = { $ref: '#/$defs/a' }
  const loop = { $ref: '#/$defs/a', $defs: { a: { $ref: '#/$defs/b', type: 'null' }, b } }
  expect(() => jsonGrammar(loop)).toThrow(/allows no value/)
})
