/** What a grammar lets through is JSON, by its schema; what is JSON by its schema, it lets through. */
import { isIPv4, isIPv6 } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import Ajv2020 from 'ajv/dist/2020'
import fc from 'fast-check'
import { Literal } from '../../lib/grammar/automaton'
import { type JsonSchema, jsonGrammar, type StateSet } from '../../lib/grammar/index'
import { expectRefused } from '../support/errors'
import { accepts, after, walk } from './texts'

/** Collects garbage at once, which takes a flag that is not given. */
function garbageCollector(): () => void {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
}

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 8 },
    age: { type: 'integer' },
    tags: { type: 'array', items: { enum: ['a', 'b"', 'ü'] }, minItems: 1, maxItems: 3 },
    home: { anyOf: [{ type: 'null' }, { type: 'object', properties: { x: { type: 'number' } } }] },
    next: { $ref: '#' },
  },
  required: ['name', 'tags'],
  additionalProperties: false,
}

const schemas: readonly (true | JsonSchema)[] = [
  true,
  person,
  { type: 'array', items: { type: ['integer', 'boolean', 'null'] }, maxItems: 4 },
  { type: 'object', additionalProperties: { type: 'number' } },
  { const: { a: [1, 'x', null] } },
  { enum: [1, 10, 'one', false] },
  { $ref: '#/$defs/list', $defs: { list: { type: 'array', items: { $ref: '#/$defs/list' } } } },
  { type: 'integer', minimum: -3, maximum: 12 },
  { type: 'integer', minimum: Number.MIN_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER },
  { type: 'integer', exclusiveMinimum: 1e6, exclusiveMaximum: 1_000_117 },
  { type: 'number', minimum: 0, exclusiveMaximum: 1 },
  { type: 'number', exclusiveMinimum: -0.25, maximum: 1e-7 },
  { type: 'number', minimum: 99.5 },
  { type: 'object', propertyNames: { type: 'string' }, additionalProperties: { const: 1 } },
  {
    type: 'object',
    propertyNames: { enum: ['a', 'b"'] },
    additionalProperties: { type: 'integer' },
    required: ['b"'],
  },
  {
    type: 'array',
    prefixItems: [{ type: 'null' }, { const: 'x' }],
    items: { const: 1 },
    maxItems: 4,
  },
  { type: 'string', pattern: '^[A-Z]{2,3}-(?:\\d+|x{0,2})$' },
  { type: 'string', pattern: '^(?<sign>[+\\-]?)(é|"|\\\\|\\u{1F600}|\\n)*?[^\\W\\d_]$' },
  { type: 'string', format: 'date-time' },
  { type: 'integer', multipleOf: 7, minimum: -30, maximum: 1000 },
  { type: 'integer', multipleOf: 12, exclusiveMinimum: 1e6 },
  { type: 'number', multipleOf: 0.05, minimum: 0, maximum: 1 },
  { type: 'number', multipleOf: 250, maximum: -1 },
  // Of 3, 6, 9 … characters 6 alone.
  { type: 'string', pattern: '^(?:aé"|\\d{3})+$', minLength: 4, maxLength: 8 },
  { type: 'string', format: 'email', minLength: 12, maxLength: 14 },
  { type: 'array', items: { enum: ['a', 'b', 1, null] }, uniqueItems: true, minItems: 2 },
  { type: 'array', items: { type: 'boolean' }, uniqueItems: true },
  {
    type: 'object',
    properties: { a: { type: 'null' }, b: { type: 'null' }, c: { type: 'null' }, d: { const: 1 } },
    required: ['b', 'd'],
    minProperties: 3,
    maxProperties: 3,
  },
  {
    type: 'object',
    propertyNames: { pattern: '^[a-z]+$' },
    additionalProperties: { type: 'null' },
    minProperties: 1,
    maxProperties: 3,
  },
  { type: 'object', patternProperties: { '^x-\\d+$': { type: 'boolean' } } },
  {
    type: 'object',
    properties: { a1: { type: 'integer' }, b: { type: 'null' } },
    patternProperties: { '^a': { minimum: 3, type: 'number' } },
    required: ['a1'],
  },
  { type: 'object', additionalProperties: { type: 'null' }, required: ['a', 'b'] },
  {
    allOf: [{ $ref: '#/$defs/named' }, { properties: { n: { type: 'integer' } }, required: ['n'] }],
    $defs: {
      named: {
        type: 'object',
        properties: { name: { type: 'string' }, n: { minimum: 3, type: 'number' } },
        required: ['name'],
      },
    },
  },
  {
    type: 'object',
    properties: { a: { type: 'null' } },
    anyOf: [
      { properties: { b: { const: 1 } }, required: ['b'] },
      { properties: { c: { const: 2 } }, required: ['c', 'a'] },
    ],
  },
  // A tree, each of whose nodes is two schemas at once.
  {
    $ref: '#/$defs/node',
    $defs: {
      node: {
        allOf: [
          {
            type: 'object',
            properties: { kids: { type: 'array', items: { $ref: '#/$defs/node' } } },
          },
          {
            properties: { kids: { maxItems: 2, type: 'array' }, v: { type: 'null' } },
            required: ['kids'],
          },
        ],
      },
    },
  },
  {
    allOf: [
      { type: 'array', prefixItems: [{ type: 'number' }], items: { type: 'integer' }, minItems: 2 },
      { items: { minimum: 2, type: 'number' }, maxItems: 3, type: 'array' },
    ],
  },
]

test.each(schemas.map((schema) => [JSON.stringify(schema).slice(0, 60), schema] as const))(
  'walks of %s parse and satisfy it',
  (_, schema) => {
    const validate = new Ajv2020({ strict: false, multipleOfPrecision: 9 }).compile(
      schema === true ? { type: 'object' } : schema,
    )
    let whole = 0
    fc.assert(
      fc.property(fc.array(fc.nat(), { minLength: 20, maxLength: 60 }), (choices) => {
        const text = walk(schema, choices)
        if (text === null) return // a walk without end is cut off
        whole++
        const value: unknown = JSON.parse(text)
        expect({ text, errors: validate(value) ? [] : validate.errors }).toEqual({
          text,
          errors: [],
        })
      }),
      { numRuns: 60, seed: 5 },
    )
    expect(whole).toBeGreaterThan(30)
  },
)

test.each([
  ['uri', (text: string) => new URL(text) !== null],
  ['ipv4', isIPv4],
  ['ipv6', isIPv6],
])('walks of the format %s are of it', (format, isOf) => {
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: 20, maxLength: 60 }), (choices) => {
      const text = walk({ type: 'string', format }, choices)
      if (text !== null) expect([text, isOf(JSON.parse(text))]).toEqual([text, true])
    }),
    { numRuns: 200, seed: 5 },
  )
})

test('every object is let through as JSON.stringify writes it, and any beginning of it', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 3 })), (object) => {
      for (const indent of [0, 2]) {
        const text = JSON.stringify(object, null, indent)
        // Halves of surrogate pairs are no text, and numbers of more digits no doubles.
        if (/\\ud[89a-f]|\d{17}/i.test(text)) return
        expect({ text, accepts: accepts(true, text) }).toEqual({ text, accepts: true })
        expect(after(true, text.slice(0, text.length >> 1))).not.toBeNull()
        expect(after(true, text)?.isFinal).toBe(true)
      }
    }),
    { numRuns: 100, seed: 5 },
  )
})

test('a number is let through as far as a double can hold it', () => {
  const digits = fc.stringMatching(
    /^(1|17|179769313486231|[1-9]\d{0,15})(\.(7|79|7976931348623\d{0,3}|\d{1,16}))?$/,
  )
  const exponent = fc.oneof(fc.integer({ min: 285, max: 312 }), fc.integer({ min: -400, max: 400 }))
  fc.assert(
    fc.property(digits, exponent, (text, e) => {
      const number = `-${text}E${e < 0 ? '' : '+'}${e}`
      const isHeld = Number.isFinite(Number(number))
      expect({ number, accepts: accepts({ type: 'number' }, number) }).toEqual({
        number,
        accepts: isHeld,
      })
    }),
    { numRuns: 2000, seed: 5 },
  )
  for (const number of ['1.7976931348623157e308', '1e-07', '0.9e308', '5e-324']) {
    expect(accepts({ type: 'number' }, number)).toBe(true)
  }
  for (const number of ['1e999', '1.8e308', '0.5e309', '-9999999999999999e293']) {
    expect(accepts({ type: 'number' }, number)).toBe(false)
  }
})

// What zod 4 (`toJSONSchema`) makes of int(), uuid(), email() and iso.datetime(), and pydantic of
// a positive float.
test.each([
  [{ type: 'integer', minimum: -9007199254740991, maximum: 9007199254740991 }, 9007199254740991],
  [{ type: 'integer', minimum: -9007199254740991, maximum: 9007199254740991 }, -42],
  [{ type: 'integer', minimum: 1, maximum: 5 }, 5],
  [{ type: 'number', minimum: 0, maximum: 1 }, 0.25],
  [{ type: 'number', minimum: 0, maximum: 1 }, 1],
  [{ type: 'number', exclusiveMinimum: 0 }, 123456.789],
  [{ type: 'number', maximum: -0.5 }, -0.75],
  [
    {
      type: 'string',
      format: 'uuid',
      pattern:
        '^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}|00000000-0000-0000-0000-000000000000)$',
    },
    '0f8fad5b-d9cb-469f-a165-70867728950e',
  ],
  [
    {
      type: 'string',
      format: 'email',
      pattern:
        "^(?:[A-Za-z0-9_'+\\-]+\\.)*[A-Za-z0-9_'+\\-]*[A-Za-z0-9_+-]@(?:[A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$",
    },
    "o'neill.ann+x@mail.example.org",
  ],
  [{ type: 'string', pattern: '^\\(?\\d{3}\\)?[\\-\\ ]\\@\\d+$' }, '(123)-@9'],
  [{ type: 'string', pattern: '^.{3}$' }, 'a"ü'],
  [{ type: 'string', pattern: 'b+' }, 'aabba\n'],
  [{ type: 'string', format: 'date-time' }, '2026-11-27T09:30:00.123Z'],
  [{ type: 'string', format: 'date' }, '2026-11-30'],
  [{ type: 'string', format: 'time' }, '23:59:59+02:00'],
  [{ type: 'string', format: 'duration' }, 'P1Y2M3DT4H5M6S'],
  [{ type: 'string', format: 'duration' }, 'PT20M'],
  [{ type: 'string', format: 'ipv4' }, '192.168.0.255'],
  [{ type: 'string', format: 'ipv6' }, '2001:db8::8a2e:370:7334'],
  [{ type: 'string', format: 'ipv6' }, '::1'],
  [{ type: 'string', format: 'uri' }, 'https://a-1.example.org:8080/a/b%20c?d=e&f#g'],
  [{ type: 'string', format: 'uri' }, 's3://bucket/key'],
  [{ type: 'string', format: 'uuid' }, '0f8fad5b-d9cb-469f-a165-70867728950e'],
  [{ type: 'string', format: 'hostname' }, 'a-1.example.org'],
  [{ type: 'string', format: 'email' }, 'ann.b+c@example.org'],
  [
    {
      oneOf: [{ type: 'object', properties: { kind: { const: 'a' } }, required: ['kind'] }],
      discriminator: { propertyName: 'kind' },
    },
    { kind: 'a' },
  ],
  // Tuples, as zod writes them for either draft.
  [
    { type: 'array', prefixItems: [{ type: 'string' }], items: { type: 'null' } },
    ['a', null, null],
  ],
  [{ prefixItems: [{ type: 'null' }, { const: 1 }], items: false, minItems: 2 }, [null, 1]],
  [{ type: 'array', items: [{ type: 'null' }], additionalItems: { const: 1 } }, [null, 1, 1]],
  [{ type: 'array', prefixItems: [{ type: 'null' }, false] }, [null]],
  // Records of certain names.
  [
    {
      type: 'object',
      propertyNames: { type: 'string', enum: ['b', 'a'] },
      additionalProperties: { type: 'null' },
      required: ['b', 'a'],
    },
    { b: null, a: null },
  ],
  [{ type: 'object', propertyNames: { enum: ['a'] } }, { a: [1] }],
  [{ type: 'string', contentEncoding: 'base64', example: 'YQ==' }, 'YQ=='],
  // A type beside alternatives, and a reference that is no URI as it stands.
  [{ type: 'object', anyOf: [{ properties: { a: { type: 'null' } } }] }, { a: null }],
  [{ type: ['string', 'null'], anyOf: [{ minLength: 2 }, { type: ['null', 'integer'] }] }, null],
  [{ type: 'integer', $ref: '#/$defs/n', $defs: { n: { type: 'number', maximum: 3 } } }, 2],
  [{ type: 'number', enum: ['a', 1.5] }, 1.5],
  [{ $ref: '#/$defs/a%20b%25', $defs: { 'a b%': { type: 'integer' } } }, 1],
  // Several at once.
  [
    {
      allOf: [
        { type: 'number', minimum: 1 },
        { type: 'integer', maximum: 5 },
      ],
    },
    5,
  ],
  [
    {
      allOf: [
        { multipleOf: 4, type: 'integer' },
        { multipleOf: 6, type: 'integer' },
      ],
    },
    24,
  ],
  [{ allOf: [{ enum: [1, 2] }, { enum: [2, 3] }] }, 2],
  [{ allOf: [true, { type: 'null' }, {}] }, null],
  [{ type: 'string', allOf: [{ minLength: 2 }, { minLength: 3, maxLength: 4 }] }, 'abc'],
  [{ $ref: '#/$defs/a', minimum: 2, $defs: { a: { type: 'integer', minimum: 1 } } }, 2],
  // As OpenAPI 3.0 and draft 4 have it.
  [{ type: 'string', nullable: true }, null],
  [{ type: 'string', nullable: false }, 'a'],
  [{ allOf: [{ $ref: '#/$defs/a' }], nullable: true, $defs: { a: { type: 'integer' } } }, null],
  [{ allOf: [{ $ref: '#/$defs/a' }], nullable: true, $defs: { a: { type: 'integer' } } }, 1],
  [{ type: 'number', minimum: 0, exclusiveMinimum: true, maximum: 2, exclusiveMaximum: false }, 2],
  [{ type: 'integer', format: 'int32' }, -2147483648],
  [{ type: 'integer', format: 'int64', 'x-order': 1 }, 1234567890123456],
  [{ type: 'string', format: 'password' }, 'x'],
  [{ type: 'string', format: 'uuid4' }, '0f8fad5b-d9cb-469f-a165-70867728950e'],
  [{ type: 'string', pattern: '^a+$', minLength: 2 }, 'aa'],
  [{ type: 'string', pattern: '^.*$', maxLength: 1 }, '\n'.slice(1)],
  [{ type: 'object', properties: { a: { not: {} }, b: { type: 'null' } } }, { b: null }],
  [
    { type: 'object', propertyNames: { $ref: '#/$defs/k' }, $defs: { k: { enum: ['a'] } } },
    { a: 1 },
  ],
  [{ type: 'object', propertyNames: { anyOf: [{ const: 'a' }, { const: 'b' }] } }, { b: 1 }],
  [{ type: 'object', propertyNames: { minLength: 2 } }, { ab: 1 }],
  [{ type: 'object', propertyNames: false }, {}],
  // What nothing satisfies, beside something.
  [{ type: 'array', items: false }, []],
  [{ type: 'object', additionalProperties: { enum: [] } }, {}],
  [{ type: 'object', properties: { a: false, b: { type: 'null' } } }, { b: null }],
  [{ anyOf: [{ enum: [] }, false, { type: 'array', minItems: 1, items: false }, { const: 1 }] }, 1],
] as const)('%j allows %j', (schema, value) => {
  expect(accepts(schema, JSON.stringify(value))).toBe(true)
})

test('a number between bounds: exactly the texts of values between them are let through', () => {
  const decimal = fc
    .tuple(fc.integer({ min: -99_999, max: 99_999 }), fc.integer({ min: 0, max: 4 }))
    .map(([digits, shift]) => digits / 10 ** shift)
  fc.assert(
    fc.property(
      decimal,
      decimal,
      decimal,
      fc.boolean(),
      fc.boolean(),
      (a, b, value, isFromLow, isWhole) => {
        const [low, high] = [Math.min(a, b), Math.max(a, b)]
        fc.pre(Math.floor(high) > Math.ceil(low)) // something is between, whole or not
        const type = isWhole ? 'integer' : 'number'
        const schema = isFromLow
          ? { type, minimum: low, exclusiveMaximum: high }
          : { type, exclusiveMinimum: low, maximum: high }
        const isValid = (one: number) =>
          (isFromLow ? one >= low && one < high : one > low && one <= high) &&
          (!isWhole || Number.isInteger(one))
        for (const one of [value, low, high, Math.round(value)]) {
          const text = String(one)
          expect({ schema, text, accepts: accepts(schema, text) }).toEqual({
            schema,
            text,
            accepts: isValid(one),
          })
        }
      },
    ),
    { numRuns: 300, seed: 5 },
  )
})

test('a pattern: exactly the texts that the expression finds something in are let through', () => {
  const patterns = [
    '^[a-c]+(?:b|\\d{2})?$',
    'a.c',
    '^a|b$',
    '^(?:ab|a)(?:c|bcd)$',
    '[^ab]c*$',
    '^(a?){3}a{3}$',
    '^(((a{0,2}b?){0,3}c?){1,2}|d*){2}$',
    '^((a*)*(b|)+)*$',
  ]
  const texts = fc.stringMatching(/^[abcd1\n"]{0,7}$/)
  for (const pattern of patterns) {
    fc.assert(
      fc.property(texts, (text) => {
        const isFound = new RegExp(pattern, 'u').test(text)
        const isAccepted = accepts({ type: 'string', pattern }, JSON.stringify(text))
        expect({ pattern, text, isAccepted }).toEqual({ pattern, text, isAccepted: isFound })
      }),
      { numRuns: 200, seed: 5 },
    )
  }
})

test('stacks that differ in little are one: a byte costs little however many there are', () => {
  const array = { type: 'array', items: { $ref: '#/$defs/a' } }
  const ambiguous = {
    $ref: '#/$defs/a',
    $defs: { a: { anyOf: [{ ...array }, { ...array }, { ...array }] } },
  }
  const nested = (count: string, n: number) => ({
    type: 'string',
    pattern: `^${'('.repeat(n)}a${`${count})`.repeat(n)}$`,
  })
  // 3^60 and some 2^12 and 17^3 stacks.
  const cases = [
    [ambiguous, '['.repeat(60) + ']'.repeat(60)],
    [nested('{0,2}', 12), `"${'a'.repeat(200)}"`],
    [nested('{0,17}', 3), `"${'a'.repeat(200)}"`],
  ] as const
  for (const [schema, text] of cases) {
    const grammar = jsonGrammar(schema)
    let state: StateSet | null = grammar.start
    for (const byte of Buffer.from(text)) state = state?.next(byte) ?? null
    expect(state?.isAccepting).toBe(true)
    expect(grammar.size).toBeLessThan(30_000)
  }
})

test('more ways than can be followed are refused, with the byte that opens them', () => {
  // Each `a` begins several counts of its own.
  const pattern = '(?:a|b|c|ab|bc|ca).{0,1900}b.{0,1900}c'
  const { start } = jsonGrammar({ type: 'string', pattern })
  let state = start.next(0x22) as StateSet
  const readOn = () => {
    for (let n = 0; n < 3000; n++) state = state.next(0x61 + (n & 1)) as StateSet
  }
  expectRefused(readOn, { code: 'ERR_ZC_UNSUPPORTED', argument: 'json' })
})

test('a grammar that is gone leaves nothing behind', () => {
  const collect = garbageCollector()
  const names = Array.from({ length: 10 }, (_, i) => `p${i}`)
  const schema = {
    type: 'object',
    properties: Object.fromEntries(names.map((name) => [name, { type: 'string' }])),
    required: names,
  }
  const text = JSON.stringify(Object.fromEntries(names.map((name) => [name, 'some text'])))
  const heldAfter = (nGrammars: number) => {
    for (let i = 0; i < nGrammars; i++) expect(accepts(schema, text)).toBe(true)
    collect()
    return process.memoryUsage().heapUsed
  }
  heldAfter(20)
  const before = heldAfter(1)
  // 40 KB each where the stacks of all grammars are kept.
  expect(heldAfter(200) - before).toBeLessThan(2e6)
})

test.each([
  [true, '[]'],
  [true, '{"a":01}'],
  [true, '{"a":1,}'],
  [true, '{a:1}'],
  [true, '{"a":"\n"}'],
  [true, '{"a":"\\x"}'],
  [true, '{"a":"\\ud800"}'],
  [true, '{"a":1}}'],
  [true, '{"a":+1}'],
  [true, '{"a":1.}'],
  [{ type: 'string', enum: ['a', null] }, 'null'],
  [{ type: ['integer', 'null'], enum: [1, 0.5] }, '0.5'],
  [{ type: 'integer', anyOf: [{ type: 'string' }, { type: 'number' }] }, '"x"'],
  [{ type: 'integer', oneOf: [{ type: 'string' }, { type: 'number' }] }, '1.5'],
  [{ type: 'integer', anyOf: [true] }, '"x"'],
  [{ type: 'integer', $ref: '#/$defs/n', $defs: { n: { maximum: 3 } } }, '4'],
  [{ type: 'array', items: false }, '[1]'],
  [{ type: 'string', maxLength: 2 }, '"abc"'],
  [{ type: 'string', minLength: 2 }, '"a"'],
  [{ type: 'integer' }, '1.5'],
  [{ type: 'array', items: { type: 'integer' }, minItems: 2 }, '[1]'],
  [{ type: 'array', items: { type: 'integer' }, maxItems: 1 }, '[1,2]'],
  [person, '{"name":"a"}'],
  [person, '{"tags":["a"],"name":"a"}'],
  [person, '{"name":"a","tags":["c"]}'],
  [person, '{"name":"a","tags":["a"],"more":1}'],
  [{ enum: ['ab'] }, '"a"'],
  [{ type: 'integer', minimum: 5 }, '4'],
  [{ type: 'integer', minimum: 5, maximum: 12 }, '13'],
  [{ type: 'integer', minimum: 5 }, '-5'],
  [{ type: 'integer', exclusiveMaximum: 5 }, '5'],
  [{ type: 'number', minimum: 0.5 }, '0.49'],
  [{ type: 'number', exclusiveMinimum: 0 }, '0.0'],
  [{ type: 'number', maximum: 10 }, '1e2'],
  [{ type: 'string', pattern: '^a+$' }, '"ab"'],
  [{ type: 'string', pattern: 'b' }, '"aa"'],
  [{ type: 'string', format: 'ipv4' }, '"1.2.3.256"'],
  [{ type: 'string', format: 'ipv6' }, '"1:2:3:4:5:6:7:8::"'],
  [{ type: 'string', format: 'duration' }, '"P1YT"'],
  [{ type: 'string', format: 'uri' }, '"http://1.2.3.999/"'],
  [{ type: 'array', prefixItems: [{ type: 'string' }], items: false }, '["a","b"]'],
  [{ type: 'array', prefixItems: [{ type: 'string' }, { type: 'null' }] }, '["a","b"]'],
  [{ type: 'array', prefixItems: [{ type: 'string' }], minItems: 2 }, '["a"]'],
  [{ type: 'object', propertyNames: { enum: ['a'] }, required: ['a'] }, '{}'],
  [{ type: 'object', propertyNames: { enum: ['a'] } }, '{"b":1}'],
  [{ type: 'string', format: 'date' }, '"2025-02-30"'],
  [{ type: 'integer', multipleOf: 5 }, '12'],
  [{ type: 'number', multipleOf: 0.01 }, '0.125'],
  [{ type: 'string', pattern: '^a+$', minLength: 2 }, '"a"'],
  [{ type: 'string', pattern: 'a', maxLength: 2 }, '"aaa"'],
  [{ type: 'string', pattern: '^.*$', maxLength: 1 }, '"\\n\\n"'],
  [{ type: 'string', pattern: '^é*$', maxLength: 1 }, '"éé"'],
  [{ type: 'string', format: 'uuid4' }, '"0f8fad5b-d9cb-169f-a165-70867728950e"'],
  [{ type: 'integer', format: 'int32' }, '2147483648'],
  [{ type: 'string', enum: ['a'], nullable: true }, 'null'],
  [{ type: 'object', propertyNames: { minLength: 2 } }, '{"a":1}'],
  [{ type: 'object', additionalProperties: true, minProperties: 1 }, '{}'],
  [{ type: 'object', additionalProperties: true, maxProperties: 1 }, '{"a":1,"b":1}'],
  [{ type: 'array', items: { enum: [1, 2] }, uniqueItems: true }, '[1,1]'],
  // Strict ones know no properties of each other.
  [
    {
      allOf: [
        { type: 'object', properties: { a: {} }, additionalProperties: false },
        { type: 'object', properties: { a: {}, b: {} } },
      ],
    },
    '{"b":1}',
  ],
  [
    {
      allOf: [
        { type: 'object', properties: { a: {} }, additionalProperties: { type: 'null' } },
        { type: 'object', properties: { b: { type: ['null', 'integer'] } } },
      ],
    },
    '{"b":1}',
  ],
  [{ type: 'string', format: 'uuid' }, '"0f8fad5b-d9cb-469f-a165-7086"'],
] as const)('%j does not allow %s', (schema, text) => {
  expect(accepts(schema, text)).toBe(false)
})

test('bytes that are no UTF-8 are not allowed in a text', () => {
  for (const bytes of [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0x80], [0xf5]]) {
    let state: StateSet | null = after({ type: 'string' }, '"')
    for (const byte of bytes) state = state?.next(byte) ?? null
    expect(state).toBeNull()
  }
})

test('what cannot be held to is refused', () => {
  const refuse = (schema: JsonSchema, code: 'ERR_ZC_UNSUPPORTED' | 'ERR_ZC_ARGUMENT') =>
    expectRefused(() => jsonGrammar(schema), { code, argument: 'json' })
  for (const pattern of ['^(?=a)', '(a)\\1', '\\bword', 'a^b', '^(a$|b)', '\\p{L}']) {
    refuse({ type: 'string', pattern }, 'ERR_ZC_UNSUPPORTED')
  }
  for (const pattern of ['^((a{0,60}b){0,60}c){0,60}', '(){9999}', '[a-z]{5001}']) {
    refuse({ type: 'string', pattern }, 'ERR_ZC_UNSUPPORTED')
  }
  refuse({ type: 'string', pattern: '(' }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'string', format: 'iri' }, 'ERR_ZC_UNSUPPORTED')
  refuse({ type: 'integer', format: 'int7' }, 'ERR_ZC_UNSUPPORTED')
  refuse(
    { type: 'object', propertyNames: { minLength: 2 }, required: ['ab'] },
    'ERR_ZC_UNSUPPORTED',
  )
  refuse({ type: 'object', patternProperties: { a: {}, b: {} } }, 'ERR_ZC_UNSUPPORTED')
  refuse({ type: 'object', minProperties: 2 }, 'ERR_ZC_UNSUPPORTED')
  refuse({ type: 'object', properties: {}, patternProperties: [] }, 'ERR_ZC_ARGUMENT')
  refuse(
    { type: 'object', properties: { a: {} }, patternProperties: { '(': {} } },
    'ERR_ZC_ARGUMENT',
  )
  for (const items of [{ type: 'string' }, { enum: [[1]] }, { enum: [...Array(11).keys()] }]) {
    refuse({ type: 'array', items, uniqueItems: true }, 'ERR_ZC_UNSUPPORTED')
  }
  refuse({ type: 'string', not: { const: 'a' } }, 'ERR_ZC_UNSUPPORTED')
  refuse({ allOf: [{ type: 'string', pattern: 'a' }, { pattern: 'b' }] }, 'ERR_ZC_UNSUPPORTED')
  refuse({ allOf: [{ type: 'string', pattern: 'a' }, { format: 'uri' }] }, 'ERR_ZC_UNSUPPORTED')
  refuse({ allOf: [{ const: 1 }, { enum: [1] }] }, 'ERR_ZC_UNSUPPORTED')
  refuse({ allOf: [{ if: {} }, { if: true }] }, 'ERR_ZC_UNSUPPORTED')
  for (const allOf of [
    [{ type: 'object' }, 1],
    [{ type: 'object' }, { type: 5 }],
    [{ required: 5 }, { required: ['a'] }],
    [{ properties: [] }, { properties: {} }],
  ]) {
    refuse({ allOf }, 'ERR_ZC_ARGUMENT')
  }
  refuse({ properties: {}, propertyNames: { enum: ['a'] } }, 'ERR_ZC_UNSUPPORTED')
  refuse({ type: 'integer', multipleOf: 0 }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'number', multipleOf: 1e-20 }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'integer', multipleOf: 7, minimum: 1, maximum: 6 }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'number', maximum: -1e21, minimum: -1e300 }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'integer', minimum: '1' }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'integer', minimum: 1.2, maximum: 1.8 }, 'ERR_ZC_ARGUMENT')
  refuse({ $ref: 'https://a.example/schema' }, 'ERR_ZC_UNSUPPORTED')
  refuse({ type: 'date' }, 'ERR_ZC_ARGUMENT')
  for (const nothing of [
    false,
    { $ref: '#' },
    { enum: [] },
    { type: 'string', const: 1 },
    { type: 'null', anyOf: [{ type: 'string' }, false] },
    { type: 'array', items: { enum: [] }, minItems: 1 },
    { type: 'object', properties: { a: false }, required: ['a'] },
    { not: {} },
    { type: 'string', not: true },
    { allOf: [{ type: 'string' }, { type: 'null' }] },
    { allOf: [{ const: 1 }, { const: 2 }] },
    { type: 'string', pattern: '^(?:aaa)+$', minLength: 4, maxLength: 5 },
    { type: 'object', properties: { a: {} }, minProperties: 2 },
    { type: 'object', propertyNames: false, minProperties: 1 },
    { type: 'array', items: { enum: [1] }, uniqueItems: true, minItems: 2 },
  ]) {
    refuse(nothing, 'ERR_ZC_ARGUMENT')
  }
  refuse({ $ref: '#/$defs/%' }, 'ERR_ZC_ARGUMENT')
  refuse({ $ref: '#/$defs/none' }, 'ERR_ZC_ARGUMENT')
  refuse({ type: 'array', items: { type: 'null' }, minItems: 3, maxItems: 2 }, 'ERR_ZC_ARGUMENT')
})

test('properties of one format share its items: hundreds of dates are made at once', () => {
  /** Items made for a schema: they are numbered. */
  const itemsOf = (nDates: number) => {
    const first = new Literal('x').id
    const names = Array.from({ length: nDates }, (_, i) => `date ${i}`)
    const date = () => ({ type: 'string', format: 'date-time' })
    const schema = { properties: Object.fromEntries(names.map((name) => [name, date()])) }
    jsonGrammar({ type: 'object', ...schema, required: names })
    return new Literal('x').id - first
  }
  const itemsOfFormat = itemsOf(1)
  expect(itemsOfFormat).toBeGreaterThan(50)
  // Its name, and what stands around its value.
  expect(itemsOf(301) - itemsOfFormat).toBeLessThan(10 * 300)
})
