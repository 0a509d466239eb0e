import { type Grammar, type GrammarState, nextStateId, type StateSet } from './automaton.js'
import { sharedGrammar } from './grammar-cache.js'
import { type JsonSchema, unsupported } from './json-schema.js'

/**
 * The notation of Gemma 4's calls over grammars of JSON: `call:NAME{KEY:VALUE,…}` without white space, texts
 * without escapes between quotes that are a token of their own, keys without quotes. A state is one of the
 * grammar, which reads the same values as JSON, and where in the text we are: a schema means what it means
 * there. Source of the notation: https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4.
 */

/** The byte that stands for the token of a quote: UTF-8 has it nowhere, so that no other token has it. */
export const QUOTE_BYTE = 0xff
/** The token's letters. No text may have them: who reads it would take them for the token. */
const QUOTE = '<|"|>'
const QUOTE_TEXT = Buffer.from(QUOTE)

/** The text of bytes, quotes as they are written. */
export function gemmaText(bytes: Uint8Array): string {
  const parts: string[] = []
  let from = 0
  for (let at = bytes.indexOf(QUOTE_BYTE); at >= 0; at = bytes.indexOf(QUOTE_BYTE, from)) {
    parts.push(Buffer.from(bytes.subarray(from, at)).toString())
    from = at + 1
  }
  return [...parts, Buffer.from(bytes.subarray(from)).toString()].join(QUOTE)
}

/**
 * A call of one of these functions, up to its last `}`; by name, what the arguments have to be, as `jsonGrammar`
 * has it.
 *
 * Throws as `jsonGrammar`, and `ERR_ZC_UNSUPPORTED` for arguments that are no object, and for names and values
 * that have the quote in them.
 */
export function gemmaCalls(calls: Readonly<Record<string, true | JsonSchema>>): GrammarState {
  const heads = Object.entries(calls).map(([name, schema]) => {
    const grammar = sharedGrammar(schema)
    const args = known.get(grammar) ?? argumentsOf(schema, grammar)
    known.set(grammar, args)
    return { bytes: Buffer.from(`call:${name}{`), args }
  })
  return new HeadState(heads, 0)
}

/** Behind the first `{` of arguments, by their grammars, which are shared. */
const known = new WeakMap<Grammar, GrammarState>()

function argumentsOf(schema: true | JsonSchema, { start }: Grammar): GrammarState {
  const args = new Notation(hasBareKeys(schema)).state(start, 'value', '', 0).next(OPEN)
  if (args) return args
  throw unsupported('#', 'arguments that are no object')
}

/** Names that stand for themselves: nothing in them ends one, or begins anything else. */
const BARE = /^[^\s\p{Cc}:,{}[\]"\\<]+$/u

/** Whether a byte may be in such a name. */
function isBare(byte: number): boolean {
  return byte > 0x20 && byte !== QUOTE_BYTE && !':,{}[]"\\<'.includes(String.fromCharCode(byte))
}

/**
 * Whether all keys of what a schema allows may stand without quotes: those of properties and of values. Names that
 * a pattern describes may not.
 */
function hasBareKeys(schema: unknown): boolean {
  const seen = new Set<object>()
  const areBare = (names: readonly unknown[]) => {
    for (const name of names) checkText(name)
    return names.every((name) => BARE.test(String(name)))
  }
  const isRight = (one: unknown, isValue: boolean): boolean => {
    if (isValue) checkText(one)
    if (typeof one !== 'object' || one === null || seen.has(one)) return true
    seen.add(one)
    if (Array.isArray(one)) return all(one.map((each) => isRight(each, isValue)))
    const entries = Object.entries(one)
    const { properties, required } = one as Record<string, unknown>
    const named = typeof properties === 'object' && properties !== null ? properties : {}
    const names = [...Object.keys(named), ...(Array.isArray(required) ? required : [])]
    return all([
      areBare(isValue ? Object.keys(one) : names),
      ...entries.map(([key, each]) => {
        const isRule = key === 'patternProperties' || key === 'propertyNames'
        return isRight(each, isValue || key === 'enum' || key === 'const') && (isValue || !isRule)
      }),
    ])
  }
  return isRight(schema, false)
}

const all = (each: readonly boolean[]) => each.every((one) => one)

function checkText(text: unknown): void {
  if (typeof text !== 'string' || !text.includes(QUOTE)) return
  throw unsupported('#', `a text with ${QUOTE}`)
}

/** What stands before the arguments: all end with the same sign, so that none is the beginning of another. */
interface Head {
  readonly bytes: Uint8Array
  readonly args: GrammarState
}

class HeadState implements GrammarState {
  readonly id = nextStateId()
  readonly isAccepting = false
  readonly isFinal = false
  readonly #heads: readonly Head[]
  readonly #at: number
  readonly #next = new Map<number, GrammarState | null>()

  constructor(heads: readonly Head[], at: number) {
    this.#heads = heads
    this.#at = at
  }

  get onlyByte(): number | null {
    const [byte, ...others] = new Set(this.#heads.map(({ bytes }) => bytes[this.#at]))
    return others.length > 0 ? null : (byte ?? null)
  }

  knows(): boolean {
    return true
  }

  next(byte: number): GrammarState | null {
    const known = this.#next.get(byte)
    if (known !== undefined) return known
    const heads = this.#heads.filter(({ bytes }) => bytes[this.#at] === byte)
    const [first] = heads
    const at = this.#at + 1
    const isWhole = first?.bytes.length === at
    const next = first ? (isWhole ? first.args : new HeadState(heads, at)) : null
    this.#next.set(byte, next)
    return next
  }
}

/**
 * Where we are: `value`, outside of names and texts; `key`, where a name may begin; `name`, in one without
 * quotes; `text`, and `quoted`, in a text that is a value or a name; `colon`, behind the latter.
 */
type Place = 'value' | 'key' | 'name' | 'text' | 'quoted' | 'colon'

/** States that are remembered at a time. */
const MAX_STATES = 1 << 12

/** All states over one grammar. */
class Notation {
  readonly hasBareKeys: boolean
  readonly #states = new Map<StateSet, Map<string, NotedState>>()
  #count = 0

  constructor(hasBareKeys: boolean) {
    this.hasBareKeys = hasBareKeys
  }

  /** The same object for the same state, so that one remembers where each byte leads. */
  state(json: StateSet, place: Place, open: string, nQuote: number): NotedState {
    const key = `${place} ${nQuote} ${open}`
    const known = this.#states.get(json)?.get(key)
    if (known) return known
    if (this.#count === MAX_STATES) this.#forget()
    const own = this.#states.get(json) ?? new Map<string, NotedState>()
    this.#states.set(json, own)
    const state = new NotedState(this, json, place, open, nQuote)
    own.set(key, state)
    this.#count++
    return state
  }

  #forget(): void {
    for (const states of this.#states.values()) for (const state of states.values()) state.forget()
    this.#states.clear()
    this.#count = 0
  }
}

const [OPEN, CLOSE, LIST, LIST_END, COLON, COMMA, TEXT] = [...Buffer.from('{}[]:,"')] as [
  number,
  number,
  number,
  number,
  number,
  number,
  number,
]
const BACKSLASH = 0x5c
const BLANKS: ReadonlySet<number> = new Set([0x09, 0x0a, 0x0d, 0x20])

class NotedState implements GrammarState {
  readonly id = nextStateId()
  readonly #notation: Notation
  readonly #json: StateSet
  readonly #place: Place
  /** The objects and lists that are open, the innermost last: `{` or `[`. */
  readonly #open: string
  /** How much of the quote's letters a text ends with. */
  readonly #nQuote: number
  #next: (NotedState | null | undefined)[] = []

  constructor(notation: Notation, json: StateSet, place: Place, open: string, nQuote: number) {
    this.#notation = notation
    this.#json = json
    this.#place = place
    this.#open = open
    this.#nQuote = nQuote
  }

  get isAccepting(): boolean {
    return this.#place === 'value' && this.#open === '' && this.#json.isAccepting
  }

  get isFinal(): boolean {
    return this.isAccepting
  }

  get onlyByte(): number | null {
    const json = this.#json
    switch (this.#place) {
      case 'value': {
        const byte = json.onlyByte
        return byte === TEXT ? QUOTE_BYTE : byte
      }
      case 'key': {
        if (json.onlyByte !== TEXT) return json.onlyByte
        return this.#notation.hasBareKeys ? (json.next(TEXT)?.onlyByte ?? null) : QUOTE_BYTE
      }
      case 'name':
        return json.onlyByte === TEXT ? COLON : json.onlyByte
      case 'colon':
        return COLON
      default: {
        const byte = json.onlyByte
        if (byte === BACKSLASH) return null
        return byte === TEXT ? QUOTE_BYTE : byte
      }
    }
  }

  forget(): void {
    this.#next = []
  }

  knows(byte: number): boolean {
    return this.#next[byte] !== undefined
  }

  /** As `StateSet.next`, which it throws as. */
  next(byte: number): NotedState | null {
    let next = this.#next[byte]
    if (next === undefined) {
      next = this.#follow(byte)
      this.#next[byte] = next
    }
    return next
  }

  #follow(byte: number): NotedState | null {
    switch (this.#place) {
      case 'value':
        return this.#value(byte)
      case 'key':
        if (byte === CLOSE) return this.#value(byte)
        if (this.#notation.hasBareKeys) {
          return isBare(byte) ? this.#to('name', [TEXT, byte]) : null
        }
        return byte === QUOTE_BYTE ? this.#to('quoted', [TEXT]) : null
      case 'name':
        if (byte === COLON) return this.#to('value', [TEXT, COLON])
        return isBare(byte) ? this.#to('name', [byte]) : null
      case 'colon':
        return byte === COLON ? this.#to('value', [COLON]) : null
      case 'quoted':
        if (byte === QUOTE_BYTE) return this.#to('colon', [TEXT])
        return this.#text('quoted', byte)
      case 'text':
        if (byte === QUOTE_BYTE) return this.#to('value', [TEXT])
        return this.#text('text', byte)
    }
  }

  #value(byte: number): NotedState | null {
    const open = this.#open
    switch (byte) {
      case QUOTE_BYTE:
        return this.#to('text', [TEXT])
      case OPEN:
        return this.#to('key', [byte], `${open}{`)
      case LIST:
        return this.#to('value', [byte], `${open}[`)
      case CLOSE:
      case LIST_END:
        return this.#to('value', [byte], open.slice(0, -1))
      case COMMA:
        return this.#to(open.endsWith('{') ? 'key' : 'value', [byte])
      default:
        return byte === TEXT || BLANKS.has(byte) ? null : this.#to('value', [byte])
    }
  }

  /** A byte of a text, which stands for itself. */
  #text(place: Place, byte: number): NotedState | null {
    const goesOn = byte === QUOTE_TEXT[this.#nQuote]
    const nQuote = goesOn ? this.#nQuote + 1 : Number(byte === QUOTE_TEXT[0])
    if (nQuote === QUOTE_TEXT.length) return null
    return this.#to(place, escaped(byte), this.#open, nQuote)
  }

  /** The state behind these bytes of JSON. */
  #to(place: Place, bytes: Iterable<number>, open = this.#open, nQuote = 0): NotedState | null {
    let json: StateSet | null = this.#json
    for (const byte of bytes) json = json?.next(byte) ?? null
    return json && this.#notation.state(json, place, open, nQuote)
  }
}

/** A byte of a text as JSON has it, as `JSON.stringify` does. */
function escaped(byte: number): Iterable<number> {
  if (byte >= 0x20 && byte !== TEXT && byte !== BACKSLASH) return [byte]
  return Buffer.from(JSON.stringify(String.fromCharCode(byte)).slice(1, -1))
}
