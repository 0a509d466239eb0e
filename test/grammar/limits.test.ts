/** No schema takes the event loop, or memory, for itself: what it may have is counted. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Literal } from '../../lib/grammar/automaton'
import {
  type JsonSchema,
  jsonGrammar,
  MAX_PARTS,
  type StateSet,
  sharedGrammar,
  TokenTrie,
} from '../../lib/grammar/index'
import { checkSchema } from '../../lib/server/json-schema'
import { CHAT_TOOLS, forcedSchema } from '../../lib/server/tools'
import { expectRefused } from '../support/errors'
import { accepts } from './texts'

const list = <T>(count: number, make: (i: number) => T) =>
  Array.from({ length: count }, (_, i) => make(i))

/** An object of so many properties. */
const objectOf = (count: number, make: (i: number) => unknown, isRequired = false) => {
  const names = list(count, (i) => `prop_${i}`)
  const properties = Object.fromEntries(names.map((name, i) => [name, make(i)]))
  return { type: 'object', properties, required: isRequired ? names : [] }
}

/** Definitions, each made with a reference to the next one. */
const chain = (count: number, make: (next: JsonSchema) => JsonSchema): JsonSchema => ({
  $ref: '#/$defs/d0',
  $defs: Object.fromEntries(
    list(count, (i) => [
      `d${i}`,
      i < count - 1 ? make({ $ref: `#/$defs/d${i + 1}` }) : { enum: ['a'] },
    ]),
  ),
})

const tooLarge: readonly (readonly [string, JsonSchema])[] = [
  ['patterns', objectOf(4000, (i) => ({ type: 'string', pattern: `^a${i}$` }))],
  [
    'patterns of large counts',
    objectOf(9, (i) => ({ type: 'string', pattern: `^.{${4990 - i}}$` })),
  ],
  ['a long pattern', { type: 'string', pattern: `^(?:${'|'.repeat(40_000)})$` }],
  [
    'patterns that have a length',
    objectOf(400, (i) => ({ type: 'string', format: 'email', maxLength: 9000 + i })),
  ],
  ['values', { enum: list(50_000, (i) => i) }],
  ['properties', objectOf(50_000, () => true)],
  ['names that are required', { required: list(50_000, (i) => `p${i}`), type: 'object' }],
  ['alternatives', { anyOf: list(50_000, () => true) }],
  [
    'alternatives of several at once',
    {
      allOf: list(2, (j) => ({
        anyOf: list(99, (i) => ({ type: 'object', properties: { [`p${i} ${j}`]: true } })),
      })),
    },
  ],
  [
    'a long name, many times',
    {
      allOf: [
        { type: 'object', properties: { ['x'.repeat(100_000)]: true } },
        { anyOf: list(100, (i) => ({ properties: { [`p${i}`]: true } })) },
      ],
    },
  ],
  [
    'alternatives of a list of values',
    {
      type: 'array',
      uniqueItems: true,
      items: { $ref: '#/$defs/d0' },
      $defs: (chain(40, (next) => ({ anyOf: [next, next] })) as { $defs: object }).$defs,
    },
  ],
  [
    'names by many patterns',
    {
      ...objectOf(300, () => true),
      patternProperties: Object.fromEntries(list(300, (i) => [`^x${i}`, true])),
    },
  ],
]

test.each(tooLarge)('too many %s are refused, after little was made of them', (_, schema) => {
  const first = new Literal('x').id
  expectRefused(() => jsonGrammar(schema), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'json',
    message: /^json: the schema at #.* makes it too large/,
  })
  expect(new Literal('x').id - first).toBeLessThan(2 * MAX_PARTS)
})

test.each<[string, JsonSchema]>([
  ['references', chain(5000, (next) => ({ type: 'array', items: next }))],
  ['references beside others', chain(5000, (next) => ({ allOf: [next, { type: 'string' }] }))],
  ['lists of values', { type: 'array', uniqueItems: true, items: { $ref: '#/items' } }],
])('%s that nest without end are refused', (_, schema) => {
  expectRefused(() => jsonGrammar(schema), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'json',
    message: /is within more than 400 others/,
  })
})

test('groups that nest without end are refused', () => {
  const pattern = `^${'('.repeat(3000)}a${')'.repeat(3000)}$`
  expectRefused(() => jsonGrammar({ type: 'string', pattern }), {
    code: 'ERR_ZC_UNSUPPORTED',
    message: /groups that nest too deeply/,
  })
})

test.each<[string, JsonSchema, unknown]>([
  [
    'hundreds of properties that are described',
    objectOf(500, () => ({ type: 'string', description: 'what it is '.repeat(30) }), true),
    Object.fromEntries(list(500, (i) => [`prop_${i}`, 'a'])),
  ],
  [
    'hundreds that may be there',
    objectOf(1000, () => ({ type: 'null' })),
    { prop_7: null, prop_999: null },
  ],
  ['thousands of properties', objectOf(4000, () => ({ type: 'null' })), { prop_3999: null }],
  ['thousands of values', { enum: list(10_000, (i) => `value ${i}`) }, 'value 9999'],
  ['a long value', { const: 'x'.repeat(50_000) }, 'x'.repeat(50_000)],
  [
    'hundreds of patterns',
    objectOf(300, (i) => ({ type: 'string', pattern: `^[A-Z]{2}-\\d{4}-${i}$` })),
    { prop_9: 'AB-1234-9' },
  ],
  [
    'hundreds at once',
    { allOf: list(500, (i) => ({ type: 'object', properties: { [`p${i}`]: { type: 'null' } } })) },
    { p0: null, p499: null },
  ],
])('%s are taken', (_, schema, value) => {
  expect(accepts(schema, JSON.stringify(value))).toBe(true)
})

test('a pattern of names looks at each character once, whatever an expression would do', () => {
  const name = `${'a'.repeat(40)}!`
  const schema = {
    type: 'object',
    properties: { [name]: {}, aa: {} },
    patternProperties: { '^(?:a|a|aa)*$': { type: 'null' } },
  }
  expect(accepts(schema, JSON.stringify({ [name]: 1, aa: null }))).toBe(true)
  expect(accepts(schema, JSON.stringify({ aa: 1 }))).toBe(false)
  expectRefused(() => jsonGrammar({ ...schema, properties: { '\u0001': {} } }), {
    code: 'ERR_ZC_UNSUPPORTED',
  })
})

test('characters of a class are told apart in one state for all that may follow', () => {
  const members = list(5000, (i) => String.fromCodePoint(0x4e00 + 2 * i)).join('')
  const schema = { type: 'string', pattern: `^[${members}]$` }
  expect(accepts(schema, '"\u4e02"')).toBe(true)
  expect(accepts(schema, '"\u4e03"')).toBe(false)
  // All that `.` takes, of a few states for each of its places.
  const grammar = jsonGrammar({ type: 'string', pattern: '^.{0,50}$' })
  let states = new Set<StateSet>([grammar.start.next(0x22) as StateSet])
  for (let depth = 0; depth < 4; depth++) {
    const next = new Set<StateSet>()
    for (const state of states) {
      for (let byte = 0; byte < 256; byte++) {
        const after = state.next(byte)
        if (after) next.add(after)
      }
    }
    states = next
  }
  expect(states.size).toBeLessThan(500)
})

test('properties that may be there are one way, however many there are', () => {
  const names = list(300, (i) => `prop_${i}`)
  const grammar = jsonGrammar(objectOf(300, () => ({ type: 'null' })))
  let state: StateSet | null = grammar.start
  for (const byte of Buffer.from(
    JSON.stringify(Object.fromEntries(names.map((name) => [name, null]))),
  )) {
    state = state?.next(byte) ?? null
    expect(state?.belows.size ?? 0).toBeLessThan(4)
  }
  expect(state?.isAccepting).toBe(true)
})

test('which properties may follow is what they are: their order, those required, how many there may be', () => {
  const schema = (more: object) => ({ ...objectOf(6, () => ({ const: 1 })), ...more })
  const isTaken = (more: object, ...places: number[]) =>
    accepts(schema(more), JSON.stringify(Object.fromEntries(places.map((i) => [`prop_${i}`, 1]))))
  for (let set = 0; set < 64; set++) {
    const places = list(6, (i) => i).filter((i) => set & (1 << i))
    expect(isTaken({}, ...places)).toBe(true)
    expect(isTaken({ required: ['prop_2', 'prop_4'] }, ...places)).toBe(
      places.includes(2) && places.includes(4),
    )
    const bounds = { required: ['prop_3'], minProperties: 2, maxProperties: 3 }
    const isWithin = places.includes(3) && places.length >= 2 && places.length <= 3
    expect(isTaken(bounds, ...places)).toBe(isWithin)
  }
  expect(accepts(schema({}), '{"prop_1":1,"prop_0":1}')).toBe(false)
})

test('a long answer has its grammar forget, and go on', () => {
  const grammar = jsonGrammar({ type: 'string', maxLength: 9999 })
  let state = grammar.start.next(0x22) as StateSet
  let most = 0
  for (let n = 0; n < 9999; n++) {
    state.next(0x5c)?.next(0x75)
    state = state.next(0x61) as StateSet
    most = Math.max(most, grammar.size)
  }
  expect(most).toBeLessThan(33_000)
  expect(state.next(0x61)).toBeNull()
  expect(state.next(0x22)?.isAccepting).toBe(true)
  expect(grammar.start.next(0x62)).toBeNull()
})

test('grammars that are kept are few when they are large', () => {
  const schema = (i: number) => ({ type: 'string', maxLength: 9000 + i })
  const grown = (i: number) => {
    const grammar = sharedGrammar(schema(i))
    let state = grammar.start.next(0x22) as StateSet
    for (let n = 0; n < 8000; n++) state = state.next(0x61) as StateSet
    return grammar
  }
  const grammars = list(10, grown)
  const isKept = [...grammars.keys()]
    .reverse()
    .filter((i) => sharedGrammar(schema(i)) === grammars[i])
  expect(isKept.length).toBeGreaterThan(1)
  expect(isKept.length).toBeLessThan(6)
})

test('what a state allows does not hold its grammar', () => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const trie = new TokenTrie(256, (id) => Uint8Array.of(id))
  const held: WeakRef<object>[] = []
  for (let n = 0; n < 20; n++) {
    const { start } = jsonGrammar({ const: n })
    for (const steps = trie.mask(start); !steps.next().done; );
    held.push(new WeakRef(start))
  }
  return new Promise<void>((resolve) => setImmediate(resolve)).then(() => {
    collect()
    expect(held.filter((one) => one.deref()).length).toBeLessThan(3)
  })
})

test('schemas of tools are counted together', () => {
  const parameters = { type: 'object', properties: { a: { enum: list(9000, (i) => i) } } }
  const tools = list(5, (i) => ({
    type: 'function',
    function: { name: `f${i}`, parameters: { ...parameters, title: `of ${i}` } },
  }))
  expect(checkSchema(parameters, 'a')).toBeGreaterThan(9000)
  const request = { tools, names: new Set<string>(), isParallel: true, style: CHAT_TOOLS }
  expect(forcedSchema({ ...request, forced: 'f1' })).not.toBeNull()
  expect(() => forcedSchema({ ...request, forced: null })).toThrow(
    /tools\[3\]\.function\.parameters: makes the schemas too large/,
  )
})
