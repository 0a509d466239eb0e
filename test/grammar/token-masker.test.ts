/** Which tokens a grammar allows, in a vocabulary of the size of Llama 3's: right, in short steps, and remembered. */
import {
  type Grammar,
  type JsonSchema,
  jsonGrammar,
  type StateSet,
  type Steps,
  sharedGrammar,
  TokenMasker,
  TokenTrie,
} from '../../lib/grammar/index'

/** Some 128k tokens: bytes, numbers, and what letters, spaces and signs can make, two of them twice. */
function vocabulary(size: number): Uint8Array[] {
  let state = 7
  const below = (n: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * n)
  }
  const letters = ' etaoinshrdlu{}[]":,\n0123456789ü\\'
  const tokens = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte))
  for (let n = 0; n < 1000; n++) tokens.push(Buffer.from(String(n)))
  tokens.push(Buffer.from('{"'), Buffer.from('{"'))
  while (tokens.length < size) {
    const word = Array.from({ length: 1 + below(9) }, () => letters[below(letters.length)])
    tokens.push(Buffer.from(word.join('')))
  }
  return tokens
}

/** Tokens that are bytes, as the first of `vocabulary` are. */
const encode = (text: string) => [...Buffer.from(text)]

/** The bits of a mask, token by token, without a trie. */
function allowedOneByOne(tokens: readonly Uint8Array[], start: StateSet): number[] {
  return tokens.flatMap((token, id) => {
    let state: StateSet | null = start
    for (const byte of token) state = state?.next(byte) ?? null
    return state && token.length > 0 ? [id] : []
  })
}

function idsOf(mask: Uint8Array, size: number): number[] {
  return Array.from({ length: size }, (_, id) => id).filter((id) => mask[id >> 3] & (1 << (id & 7)))
}

function drive<T>(steps: Steps<T>): { value: T; nSteps: number } {
  for (let nSteps = 1; ; nSteps++) {
    const step = steps.next()
    if (step.done) return { value: step.value, nSteps }
  }
}

function after(grammar: Grammar, text: string): StateSet {
  let state = grammar.start
  for (const byte of Buffer.from(text)) state = state.next(byte) as StateSet
  return state
}

const person: JsonSchema = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 300 }, of: { enum: ['a', 'ab', 'tüte'] } },
  required: ['name', 'of'],
}

test.each<[string, true | JsonSchema, string]>([
  ['the beginning', true, ''],
  ['within a text', person, '{"name": "Ada'],
  ['an enumeration', person, '{"name": "", "of": "'],
  ['the end', person, '{"name": "", "of": "a"}'],
])('%s: the tokens of the trie are those that the grammar takes', (_, schema, text) => {
  const tokens = vocabulary(5000)
  const trie = new TokenTrie(tokens.length, (id) => (id === 9 ? null : tokens[id]))
  const state = after(jsonGrammar(schema), text)
  const { value } = drive(trie.mask(state))
  expect(idsOf(value, tokens.length)).toEqual(
    allowedOneByOne(tokens, state).filter((id) => id !== 9),
  )
  expect(Buffer.from(trie.bytesOf(4321))).toEqual(Buffer.from(tokens[4321]))
})

test('no step is long: of the vocabulary, and of what a state allows', () => {
  const tokens = vocabulary(128_000)
  let nBytes = 0
  const trie = new TokenTrie(tokens.length, (id) => {
    nBytes++
    return tokens[id]
  })
  const steps = trie.mask(after(jsonGrammar(person), '{"name": "'))
  // As many at most as are looked at in well below a millisecond; not all at once, above all.
  for (let most = 0; ; ) {
    const before = nBytes
    if (steps.next().done) break
    most = Math.max(most, nBytes - before)
    expect(most).toBeLessThanOrEqual(1024)
  }
  const { nSteps } = drive(trie.mask(after(jsonGrammar(person), '{"name": "b')))
  expect(nSteps).toBeGreaterThan(50)
})

test('an enumeration of thousands is one stack: values that begin alike, end in another, come twice', () => {
  const values = [
    1,
    12,
    120,
    'a',
    'ab',
    'ab',
    null,
    [1],
    ...Array.from({ length: 5000 }, (_, n) => `v${n}`),
  ]
  const { start } = jsonGrammar({ enum: values })
  const isOne = (text: string) => {
    let state: StateSet | null = start
    for (const byte of Buffer.from(text)) state = state?.next(byte) ?? null
    return state?.isAccepting === true
  }
  for (const one of values) expect(isOne(JSON.stringify(one))).toBe(true)
  for (const other of ['', '11', '1200', '"', '"abc"', '"v5000"', 'nul', '[1', '"v12']) {
    expect(isOne(other)).toBe(false)
  }
  expect(start.next(0x31)?.isFinal).toBe(false)
  expect(start.belows.size).toBe(1)
})

test('two that need the vocabulary at once build it together', () => {
  const tokens = vocabulary(3000)
  const trie = new TokenTrie(tokens.length, (id) => tokens[id])
  const { start } = jsonGrammar(true)
  const both = [trie.mask(start), trie.mask(start)]
  const values: Uint8Array[] = []
  while (values.length < 2)
    for (const one of both)
      values.push(...[one.next().value].filter((v) => v instanceof Uint8Array))
  expect(values[0]).toEqual(values[1])
})

test('a schema that comes again has its grammar, and its states their tokens', () => {
  const tokens = vocabulary(3000)
  const trie = new TokenTrie(tokens.length, (id) => tokens[id])
  const once = sharedGrammar({ ...person })
  expect(sharedGrammar({ ...person })).toBe(once)
  drive(trie.mask(once.start))
  expect(drive(trie.mask(sharedGrammar({ ...person }).start)).nSteps).toBe(1)
  // The order of properties is the order of the answer.
  expect(sharedGrammar(true)).not.toBe(once)
  for (let n = 0; n < 16; n++) sharedGrammar({ const: n })
  expect(sharedGrammar({ ...person })).not.toBe(once)
})

test('a schema that contains itself has no text, and a grammar all the same', () => {
  const list: Record<string, unknown> = { type: 'array', maxItems: 1 }
  list.items = list
  expect(after(sharedGrammar(list), '[[[]]]').isAccepting).toBe(true)
})

test('tokens that end the text are allowed where it may end, with or without a preparation', () => {
  const tokens = vocabulary(2000)
  const trie = new TokenTrie(tokens.length, (id) => tokens[id])
  for (const isPrepared of [true, false]) {
    const masker = new TokenMasker(jsonGrammar({ const: 1 }), { trie, encode }, new Set([1999]))
    const allowed = () => {
      if (isPrepared) drive(masker.prepare())
      const logits = new Float32Array(tokens.length)
      masker.apply(logits)
      return [...logits.keys()].filter((id) => logits[id] === 0)
    }
    const isOne = (id: number) => Buffer.from(tokens[id]).toString() === '1'
    expect(allowed().every(isOne)).toBe(true)
    masker.accept(0x31)
    expect(allowed()).toEqual([1999])
    expect(masker.isDone).toBe(true)
  }
})

test('a number by itself is done when it has all its digits', () => {
  const tokens = vocabulary(256)
  const trie = new TokenTrie(tokens.length, (id) => tokens[id])
  const isDoneAfter = (schema: JsonSchema, text: string) => {
    const masker = new TokenMasker(jsonGrammar(schema), { trie, encode }, new Set())
    drive(masker.prepare())
    for (const byte of Buffer.from(text)) masker.accept(byte)
    return masker.isDone
  }
  expect(isDoneAfter({ type: 'integer' }, '1234567890123456')).toBe(true)
  expect(isDoneAfter({ type: 'integer' }, '123456789012345')).toBe(false)
  expect(isDoneAfter({ type: 'number' }, '-1.5e-123')).toBe(true)
  expect(isDoneAfter({ type: 'integer', minimum: 10, maximum: 20 }, '15')).toBe(true)
})

describe('what is likely', () => {
  const words = ['name', '":', ' "', '{"', '",', ' "of', 'of', 'tü', '"}', 'other', '  "']
  const tokens = [
    ...Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte)),
    ...words.map((word) => Buffer.from(word)),
  ]
  const trie = new TokenTrie(tokens.length, (id) => tokens[id] as Uint8Array)
  drive(trie.mask(jsonGrammar(true).start))

  /** The longest word that comes, again and again. */
  const longestFirst = (text: string): number[] => {
    const ids: number[] = []
    for (let rest = Buffer.from(text); rest.length > 0; ) {
      const fits = words.flatMap((word, i) => (rest.toString().startsWith(word) ? [256 + i] : []))
      const id = fits.sort((a, b) => tokens[b].length - tokens[a].length)[0] ?? (rest[0] as number)
      ids.push(id)
      rest = rest.subarray(tokens[id].length)
    }
    return ids
  }

  /** What is likely behind a text that was parted so. */
  function likely(schema: true | JsonSchema, text: string, tokenize = longestFirst): string[] {
    const masker = new TokenMasker(jsonGrammar(schema), { trie, encode: tokenize }, new Set())
    for (const id of longestFirst(text)) masker.accept(id)
    return masker.likely().map((id) => Buffer.from(tokens[id]).toString())
  }

  test.each<[string, true | JsonSchema, string, string[]]>([
    ['names and signs up to a value', person, '{"', ['name', '":', ' "']],
    ['nothing for the end alone', { ...person, required: [] }, '{"name": "a", "of": "a"', []],
    ['what an enumeration leaves', person, '{"name": "", "of": "t', ['\ufffd', '\ufffd', 't', 'e']],
    ['nothing where a text is free', person, '{"name": "a', []],
    ['nothing where values differ', person, '{"name": "a", "of": "', []],
    ['the next line, as the lines before', person, '{\n "name":"",\n', [' "of', '":', '"']],
    ['nothing in any object', true, '{', []],
    ['nothing where a number may go on', { const: 1 }, '1', []],
    ['a text within which there is white space', { const: 'a b' }, '"', ['a', ' ', 'b']],
  ])('%s', (_, schema, text, expected) => {
    expect(likely(schema, text)).toEqual(expected)
  })

  test('a tokenizer that puts a space in front of every text', () => {
    const spaced = (text: string) => [0x20, ...longestFirst(text)]
    expect(likely(person, '{"', spaced)).toEqual(['name', '":', ' "'])
  })

  test('nothing where the tokenizer would have parted the text elsewhere, and nothing else fits', () => {
    const joined = () => [265]
    expect(likely(person, '{"', joined)).toEqual([])
  })

  test('nothing where hundreds of ways are open, which would take seconds to look at', () => {
    const names = Array.from({ length: 500 }, (_, n) => `${'x'.repeat(90)}${n}`)
    const few = { anyOf: names.slice(0, 9).map((name) => ({ const: [name] })) }
    const many = { anyOf: names.map((name) => ({ const: [name] })) }
    expect(likely(few, '["').length).toBeGreaterThan(80)
    expect(likely(many, '["')).toEqual([])
  })

  test('a byte is the only one where no other may come but white space', () => {
    const open = (state: StateSet) =>
      Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => state.next(byte))
    for (const text of [
      '',
      '{',
      '{"na',
      '{"name": ""',
      '{"name": "",',
      '{"name":"","of":"tü',
      '{"name": "", "of": "a',
    ]) {
      const state = after(jsonGrammar(person), text)
      const choices = open(state).filter((byte) => !(byte === 0x20 || byte === 0x0a))
      expect(state.onlyByte).toBe(choices.length === 1 ? choices[0] : null)
    }
  })
})
