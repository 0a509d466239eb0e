/** Texts that a regular expression describes, as items of an automaton. */
import { Choice, DONE, type Item, Literal, Machine } from './automaton.js'
import type { Budget } from './budget.js'

/** Bounds of code points, both included, in order and apart. */
type Ranges = readonly (readonly [low: number, high: number])[]

const LAST = 0x10ffff
/** Halves of pairs are no characters. */
const SURROGATES: Ranges = [[0xd800, 0xdfff]]
const DIGITS: Ranges = [[0x30, 0x39]]
const WORD: Ranges = [...DIGITS, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]]
// What ECMA-262 calls white space and line ends.
const SPACE: Ranges = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
]
const LINE_ENDS: Ranges = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
]

function union(...all: readonly Ranges[]): Ranges {
  const sorted = all.flat().sort((a, b) => a[0] - b[0])
  const merged: [number, number][] = []
  for (const [low, high] of sorted) {
    const last = merged.at(-1)
    if (last && low <= last[1] + 1) last[1] = Math.max(last[1], high)
    else merged.push([low, high])
  }
  return merged
}

function complement(ranges: Ranges): Ranges {
  const others: [number, number][] = []
  let from = 0
  for (const [low, high] of union(ranges)) {
    if (low > from) others.push([from, low - 1])
    from = high + 1
  }
  if (from <= LAST) others.push([from, LAST])
  return others
}

const without = (ranges: Ranges, others: Ranges) => complement(union(complement(ranges), others))

/** How JSON writes characters that may not stand for themselves in a text. */
const ESCAPES: readonly (readonly [code: number, letter: string])[] = [
  [0x22, '"'],
  [0x5c, '\\'],
  [0x08, 'b'],
  [0x0c, 'f'],
  [0x0a, 'n'],
  [0x0d, 'r'],
  [0x09, 't'],
]

/**
 * One character of a JSON text, of some code points: in UTF-8, or by a letter behind a backslash
 * where it must not stand for itself. null where none of them can be written so.
 */
function oneOf(ranges: Ranges): Item | null {
  const plain = without(
    ranges,
    union(SURROGATES, [
      [0, 0x1f],
      [0x22, 0x22],
      [0x5c, 0x5c],
    ]),
  )
  /** The first range that does not end below a code point. */
  const rangeAt = (point: number): readonly [low: number, high: number] | undefined => {
    let first = 0
    let end = plain.length
    while (first < end) {
      const middle = (first + end) >> 1
      if ((plain[middle] as Ranges[0])[1] < point) first = middle + 1
      else end = middle
    }
    return plain[first]
  }
  const letters = ESCAPES.filter(([code]) => ranges.some(([a, b]) => code >= a && code <= b)).map(
    ([, letter]) => letter,
  )
  if (plain.length === 0 && letters.length === 0) return null
  /**
   * The bytes so far, as the code point's leading bits, if any character goes on so; only how many bytes are
   * left where all may come: a state of its own for each would be thousands.
   */
  const goOn = (bits: number, nLeft: number, lowest: number) => {
    const from = bits << (6 * nLeft)
    const low = Math.max(from, lowest)
    const high = ((bits + 1) << (6 * nLeft)) - 1
    const range = rangeAt(low)
    if (!range || range[0] > high) return null
    if (nLeft === 0) return DONE
    const isAny = from >= lowest && range[0] <= low && range[1] >= high
    return isAny ? `any ${nLeft}` : `${bits} ${nLeft} ${lowest}`
  }
  const step = (state: string, byte: number): string | typeof DONE | null => {
    if (state === 'escape') return letters.includes(String.fromCharCode(byte)) ? DONE : null
    if (state.startsWith('any')) {
      const nLeft = Number(state.slice(4)) - 1
      if (byte >> 6 !== 0b10) return null
      return nLeft === 0 ? DONE : `any ${nLeft}`
    }
    if (state !== '') {
      const [bits, nLeft, lowest] = state.split(' ').map(Number) as [number, number, number]
      return byte >> 6 === 0b10 ? goOn((bits << 6) | (byte & 0x3f), nLeft - 1, lowest) : null
    }
    if (byte === 0x5c) return letters.length > 0 ? 'escape' : null
    // The least code point that needs so many bytes: RFC 3629 takes the shortest.
    if (byte < 0x80) return goOn(byte, 0, 0)
    if (byte >> 5 === 0b110) return goOn(byte & 0x1f, 1, 0x80)
    if (byte >> 4 === 0b1110) return goOn(byte & 0x0f, 2, 0x800)
    return byte >> 3 === 0b11110 ? goOn(byte & 0x07, 3, 0x10000) : null
  }
  return new Machine<string>('', step, () => false)
}

/** Why a pattern is not taken. */
export class PatternError extends Error {
  /** Whether the pattern means something, which we do not take. */
  readonly isUnsupported: boolean

  constructor(what: string, isUnsupported: boolean) {
    super(what)
    this.isUnsupported = isUnsupported
  }
}

/** Characters that an expression may have once all counts are written out. */
const MAX_PARTS = 5000
/** Groups within each other. */
const MAX_GROUPS = 200
/** Parts of a schema that take as long as what each pattern has to have. */
const PARTS_A_PATTERN = 16

const EMPTY: Item = new Choice(() => [[]], true)

function either(items: readonly Item[]): Item {
  if (items.length === 1) return items[0] as Item
  return new Choice(
    () => items.map((item) => [item]),
    items.some(({ mayEnd }) => mayEnd),
  )
}

/** One after the other. Nested, so that a stack holds few of them at a time. */
function chain(items: readonly Item[]): Item {
  return items.reduceRight<Item>(
    (rest, item) =>
      rest === EMPTY ? item : new Choice(() => [[item, rest]], item.mayEnd && rest.mayEnd),
    EMPTY,
  )
}

function star(item: Item): Item {
  const more: Item = new Choice(() => [[item, more], []], true)
  return more
}

/**
 * A JSON text that a regular expression of ECMA-262 finds something in: `^` and `$` at its ends bind
 * it, as nearly all of them do.
 *
 * Takes characters, classes, groups, alternatives, counts. Throws a `PatternError` for what looks
 * around or back (`\b`, `(?=`, `\1`), and for what is no expression; what the budget throws.
 */
export function patternText(given: string, context: PatternContext): Item {
  context.budget.spend(PARTS_A_PATTERN + given.length)
  const source = EQUIVALENTS.get(given) ?? given
  // Behind a backslash other dialects take signs that mean nothing, for themselves.
  const strict = source.replace(/\\([^\w^$\\.*+?()[\]{}|/])/gu, '$1')
  try {
    new RegExp(strict, 'u')
  } catch (error) {
    throw new PatternError((error as Error).message, false)
  }
  const quote = new Literal('"')
  return chain([quote, new PatternReader(source, context).search(), quote])
}

/** What patterns of one schema share. */
export interface PatternContext {
  readonly budget: Budget
  /** Items of single characters, by what these may be. */
  readonly characters: Map<string, Item | null>
}

class PatternReader {
  readonly #characters: readonly string[]
  readonly #context: PatternContext
  #at = 0
  #nParts = 0
  #nGroups = 0

  constructor(source: string, context: PatternContext) {
    this.#characters = [...source]
    this.#context = context
  }

  search(): Item {
    const anything = star(this.#oneOf([[0, LAST]]) as Item)
    const alternatives: Item[] = []
    do {
      const isFromStart = this.#take('^')
      const terms = this.#terms()
      const isToEnd = this.#take('$')
      if (!isFromStart) terms.unshift(anything)
      if (!isToEnd) terms.push(anything)
      alternatives.push(chain(terms))
    } while (this.#take('|'))
    if (this.#next !== undefined) this.#refuse('an anchor inside')
    return either(alternatives)
  }

  get #next(): string | undefined {
    return this.#characters[this.#at]
  }

  #take(character: string): boolean {
    const isThere = this.#next === character
    if (isThere) this.#at++
    return isThere
  }

  #read(): string {
    const character = this.#characters[this.#at++]
    return character ?? this.#refuse('an end too early')
  }

  #refuse(what: string): never {
    throw new PatternError(what, true)
  }

  /** Terms up to the end of an alternative. */
  #terms(): Item[] {
    const terms: Item[] = []
    while (this.#next !== undefined && !'|)$^'.includes(this.#next)) {
      const nBefore = this.#nParts
      const term = this.#term()
      const [min, max] = this.#count()
      if (min === 1 && max === 1) {
        terms.push(term)
        continue
      }
      const nCopies = Math.max(Number.isFinite(max) ? max : min, 1)
      this.#nParts = nBefore + Math.max(this.#nParts - nBefore, 1) * nCopies
      if (this.#nParts > MAX_PARTS) this.#refuse('counts that are too large')
      this.#context.budget.spend(nCopies)
      const copies = new Array<Item>(min).fill(term)
      if (max === Number.POSITIVE_INFINITY) copies.push(star(term))
      else {
        let optional: Item = EMPTY
        for (let i = min; i < max; i++) {
          const rest = optional
          optional = new Choice(() => [[term, rest], []], true)
        }
        copies.push(optional)
      }
      terms.push(chain(copies))
    }
    return terms
  }

  #count(): [min: number, max: number] {
    let count: [number, number] = [1, 1]
    if (this.#take('*')) count = [0, Number.POSITIVE_INFINITY]
    else if (this.#take('+')) count = [1, Number.POSITIVE_INFINITY]
    else if (this.#take('?')) count = [0, 1]
    else if (this.#take('{')) {
      let text = ''
      while (!this.#take('}')) text += this.#read()
      const [min, max] = text.split(',')
      const least = Number(min)
      count = [
        least,
        max === undefined ? least : max === '' ? Number.POSITIVE_INFINITY : Number(max),
      ]
    } else return count
    this.#take('?') // as few as may be: the same texts
    return count
  }

  #term(): Item {
    if (this.#take('(')) return this.#group()
    this.#nParts++
    const item = this.#oneOf(this.#next === '[' ? this.#class() : this.#single())
    return item ?? this.#refuse('a character that a text cannot hold')
  }

  #oneOf(ranges: Ranges): Item | null {
    const { characters } = this.#context
    const key = ranges.join()
    let item = characters.get(key)
    if (item === undefined) {
      item = oneOf(ranges)
      characters.set(key, item)
    }
    return item
  }

  #group(): Item {
    if (++this.#nGroups > MAX_GROUPS) this.#refuse('groups that nest too deeply')
    if (this.#take('?') && !this.#take(':')) {
      if (!this.#take('<') || this.#next === '=' || this.#next === '!')
        this.#refuse('a look around')
      while (!this.#take('>')) this.#read()
    }
    const alternatives: Item[] = []
    do alternatives.push(chain(this.#terms()))
    while (this.#take('|'))
    if (!this.#take(')')) this.#refuse('an anchor inside')
    this.#nGroups--
    return either(alternatives)
  }

  /** The code points of a character outside of a class. */
  #single(): Ranges {
    const character = this.#read()
    if (character === '.') return complement(LINE_ENDS)
    return character === '\\' ? this.#escape(false) : only(character)
  }

  #class(): Ranges {
    this.#read()
    const isNot = this.#take('^')
    const members: Ranges[] = []
    while (!this.#take(']')) {
      const from = this.#member()
      const isRange = this.#next === '-' && this.#characters[this.#at + 1] !== ']'
      if (!isRange) members.push(from)
      else {
        this.#read()
        const to = this.#member()
        members.push([
          [(from[0] as readonly number[])[0] as number, (to[0] as readonly number[])[1] as number],
        ])
      }
    }
    const ranges = union(...members)
    return isNot ? complement(ranges) : ranges
  }

  #member(): Ranges {
    const character = this.#read()
    return character === '\\' ? this.#escape(true) : only(character)
  }

  /** What stands behind a backslash. */
  #escape(isInClass: boolean): Ranges {
    const character = this.#read()
    switch (character) {
      case 'd':
        return DIGITS
      case 'D':
        return complement(DIGITS)
      case 'w':
        return WORD
      case 'W':
        return complement(WORD)
      case 's':
        return SPACE
      case 'S':
        return complement(SPACE)
      case 't':
        return only('\t')
      case 'n':
        return only('\n')
      case 'r':
        return only('\r')
      case 'f':
        return only('\f')
      case 'v':
        return only('\v')
      case '0':
        return only('\0')
      case 'x':
        return code(Number.parseInt(this.#read() + this.#read(), 16))
      case 'u': {
        let digits = ''
        if (this.#take('{')) while (!this.#take('}')) digits += this.#read()
        else digits = this.#read() + this.#read() + this.#read() + this.#read()
        return code(Number.parseInt(digits, 16))
      }
      case 'b':
        if (isInClass) return only('\b')
        break
      default:
        // Letters and digits mean something.
        if (!/\w/.test(character)) return only(character)
    }
    return this.#refuse(`\\${character}`)
  }
}

function code(point: number): Ranges {
  return [[point, point]]
}

function only(character: string): Ranges {
  return code(character.codePointAt(0) as number)
}

const IPV4_PART = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const MONTH_AND_DAY =
  '(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))'
const DATE = `\\d{4}-${MONTH_AND_DAY}`
const TIME =
  '(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)'
const LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?'
const IPV4 = `(?:${IPV4_PART}\\.){3}${IPV4_PART}`
const IPV6_PART = '[0-9A-Fa-f]{1,4}'
/** All eight parts, or so many before the `::` that stands for one at least, and the others behind it. */
const IPV6 = [
  `(?:${IPV6_PART}:){7}${IPV6_PART}`,
  `:(?::${IPV6_PART}){1,7}`,
  ...[1, 2, 3, 4, 5, 6].map((n) => `(?:${IPV6_PART}:){${n}}(?::${IPV6_PART}){1,${7 - n}}`),
  `(?:${IPV6_PART}:){1,7}:`,
  '::',
].join('|')
/** No `xn--`, whose rest has to be Punycode; the last name begins with a letter: it is no number. */
const URI_NAME = '(?:-?[A-Za-z0-9])*'
const URI_HOST = `(?:[A-Za-z0-9]${URI_NAME}\\.){0,4}[A-Za-z]${URI_NAME}`
const uriText = (signs: string) => `(?:[\\w.~!$&'()*+,;=:@${signs}-]|%[0-9A-Fa-f]{2})*`
const URI =
  `[A-Za-z][A-Za-z0-9+.-]*://(?:${URI_HOST}|${IPV4})(?::[1-9]\\d{0,3})?` +
  `(?:/${uriText('/')})?(?:\\?${uriText('/?')})?(?:#${uriText('/?')})?`
const SECONDS = '\\d{1,9}S'
const MINUTES = `\\d{1,9}M(?:${SECONDS})?`
const CLOCK = `T(?:${SECONDS}|${MINUTES}|\\d{1,9}H(?:${MINUTES})?)`
const DAYS = '\\d{1,9}D'
const MONTHS = `\\d{1,9}M(?:${DAYS})?`
const ANY_SECONDS = '\\d+(?:[.,]\\d+)?S'
const ANY_CLOCK = `T(?:\\d+H(?:\\d+M)?(?:${ANY_SECONDS})?|\\d+M(?:${ANY_SECONDS})?|${ANY_SECONDS})`
const DURATION = `P(?:(?:${DAYS}|${MONTHS}|\\d{1,9}Y(?:${MONTHS})?)(?:${CLOCK})?|${CLOCK}|\\d{1,9}W)`

const BASE64 = '^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
const uuidOf = (version: number) =>
  `^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-${version}[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$`

/** Patterns that libraries write, with others for the same texts that do not look around. */
const EQUIVALENTS: ReadonlyMap<string, string> = new Map([
  // pydantic's Decimal.
  ['^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$', '^[+-]?(?:\\d+\\.?\\d*|\\.\\d+)$'],
  // zod's durations.
  [
    '^P(?:(\\d+W)|(?!.*W)(?=\\d|T\\d)(\\d+Y)?(\\d+M)?(\\d+D)?(T(?=\\d)(\\d+H)?(\\d+M)?(\\d+([.,]\\d+)?S)?)?)$',
    `^P(?:\\d+W|(?:\\d+Y(?:\\d+M)?(?:\\d+D)?|\\d+M(?:\\d+D)?|\\d+D)(?:${ANY_CLOCK})?|${ANY_CLOCK})$`,
  ],
])

/**
 * Patterns for JSON schema's `format`, each narrower than its definition: what matches is of the
 * format. Days are those of every year, hosts have at most four names, URIs begin `scheme://host`.
 */
export const FORMATS: ReadonlyMap<string, string> = new Map([
  ['date', `^${DATE}$`],
  ['time', `^${TIME}$`],
  ['date-time', `^${DATE}T${TIME}$`],
  ['duration', `^${DURATION}$`],
  ['ipv4', `^${IPV4}$`],
  ['ipv6', `^(?:${IPV6})$`],
  ['uri', `^${URI}$`],
  ['uuid', '^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$'],
  ...[1, 3, 4, 5, 6, 7, 8].map((version): [string, string] => [`uuid${version}`, uuidOf(version)]),
  ['ipvanyaddress', `^(?:${IPV4}|${IPV6})$`],
  ['base64', BASE64],
  ['byte', BASE64],
  ['base64url', '^(?:[\\w-]{4})*(?:[\\w-]{2}==|[\\w-]{3}=)?$'],
  ['hostname', `^${LABEL}(?:\\.${LABEL}){0,3}$`],
  ['email', `^[\\w+-]+(?:\\.[\\w+-]+)*@${LABEL}(?:\\.${LABEL}){1,3}$`],
])
