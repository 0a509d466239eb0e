/** The values of JSON (RFC 8259) as items of an automaton. */
import { Choice, DONE, type Item, Literal, Machine } from './automaton.js'

/** White space between tokens: none, a space, or a line break and an indent. Not without end. */
const MAX_INDENT = 20
/** Digits of each part of a number: more than a double holds say nothing. */
const MAX_DIGITS = 16
const MAX_EXPONENT_DIGITS = 3

const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39

/** White space, or none. State: -1 nothing yet, -2 a space, n a line break and n of an indent. */
export const space: Item = new Machine<number>(
  -1,
  (state, byte) => {
    if (state === -1) return byte === 0x20 ? -2 : byte === 0x0a ? 0 : null
    const goesOn = state >= 0 && state < MAX_INDENT && (byte === 0x20 || byte === 0x09)
    return goesOn ? state + 1 : null
  },
  () => true,
  true,
)

/** The largest double is 1.7976931348623157e308. */
const LARGEST_DIGITS = '17976931348623157'
const LARGEST_EXPONENT = 308

/**
 * A number that a double can hold; a whole one without point and exponent.
 *
 * A state is where we are and what bounds the exponent: how many digits the whole part has, how all
 * digits compare with those of the largest double (-1, 0 or 1), and how many are behind the point.
 */
function numberItem(isWhole: boolean): Item {
  const step = (state: string, byte: number): string | null => {
    const [where, ...counts] = state.split(' ')
    if (where?.startsWith('e')) return exponentStep(where, counts.map(Number), byte)
    const [nWhole = 0, order = 0, nPart = 0] = counts.map(Number)
    const orderAfter = (place: number) =>
      order || Math.sign(byte - LARGEST_DIGITS.charCodeAt(place)) || 0
    if (isDigit(byte)) {
      switch (where) {
        case 'start':
        case 'minus':
          return byte === 0x30 ? 'zero 1 -1' : `whole 1 ${orderAfter(0)}`
        case 'whole':
          return nWhole < MAX_DIGITS ? `whole ${nWhole + 1} ${orderAfter(nWhole)}` : null
        case 'point':
        case 'part':
          if (nPart === MAX_DIGITS) return null
          return `part ${nWhole} ${orderAfter(nWhole + nPart)} ${nPart + 1}`
        default:
          return null
      }
    }
    if (where === 'start') return byte === 0x2d ? 'minus' : null
    if (isWhole || where === 'minus' || where === 'point') return null
    if (byte === 0x2e) return where === 'part' ? null : `point ${nWhole} ${order}`
    const most = LARGEST_EXPONENT - (nWhole - 1) - Math.max(order, 0)
    return byte === 0x65 || byte === 0x45 ? `e ${most}` : null
  }
  return new Machine<string>('start', step, (state) => /^(zero|whole|part|exponent)/.test(state))
}

/** Behind an e: the most that the exponent may be, its value so far and how many digits it has. */
function exponentStep(where: string, counts: readonly number[], byte: number): string | null {
  const [most = 0, value = 0, nDigits = 0] = counts
  if (where === 'e' && byte === 0x2b) return `esign ${most}`
  if (where === 'e' && byte === 0x2d) return `esign ${10 ** MAX_EXPONENT_DIGITS - 1}`
  const next = 10 * value + byte - 0x30
  if (!isDigit(byte) || next > most || nDigits === MAX_EXPONENT_DIGITS) return null
  return `exponent ${most} ${next} ${nDigits + 1}`
}

export const number: Item = numberItem(false)
export const integer: Item = numberItem(true)

/** Bounds of the bytes that may follow the first one of a character: RFC 3629's table. */
function continuation(first: number): [n: number, low: number, high: number] | null {
  if (first >= 0xc2 && first <= 0xdf) return [1, 0x80, 0xbf]
  if (first === 0xe0) return [2, 0xa0, 0xbf]
  if (first === 0xed) return [2, 0x80, 0x9f]
  if (first >= 0xe1 && first <= 0xef) return [2, 0x80, 0xbf]
  if (first === 0xf0) return [3, 0x90, 0xbf]
  if (first >= 0xf1 && first <= 0xf3) return [3, 0x80, 0xbf]
  if (first === 0xf4) return [3, 0x80, 0x8f]
  return null
}

const isHex = (byte: number) =>
  isDigit(byte) || (byte >= 0x41 && byte <= 0x46) || (byte >= 0x61 && byte <= 0x66)

/**
 * A text in quotes, of valid UTF-8, of [min, max] characters; an escape counts as one. \u escapes
 * name no surrogates, which would be halves.
 *
 * A state is how many characters there are (no more than can matter) and where in one we are.
 */
export function text(min = 0, max = Number.POSITIVE_INFINITY): Item {
  const counted = Number.isFinite(max) ? max : min
  const step = (state: string, byte: number): string | typeof DONE | null => {
    const [where, count, ...rest] = state.split(' ')
    const n = Number(count)
    const character = () => `in ${Math.min(n + 1, counted)}`
    switch (where) {
      case 'before':
        return byte === 0x22 ? 'in 0' : null
      case 'in': {
        if (byte === 0x22) return n >= min ? DONE : null
        if (byte < 0x20 || n >= max) return null
        if (byte === 0x5c) return `escape ${n}`
        if (byte < 0x80) return character()
        const more = continuation(byte)
        return more && `bytes ${n} ${more.join(' ')}`
      }
      case 'escape':
        if (byte === 0x75) return `hex ${n} 0`
        return '"\\/bfnrt'.includes(String.fromCharCode(byte)) ? character() : null
      case 'hex': {
        const place = Number(rest[0])
        if (!isHex(byte)) return null
        const isD = byte === 0x44 || byte === 0x64
        if (place === 0) return `hex ${n} ${isD ? 4 : 1}`
        // After a D: only up to D7FF, since the rest are surrogates.
        if (place === 4) return byte <= 0x37 ? `hex ${n} 2` : null
        return place === 3 ? character() : `hex ${n} ${place + 1}`
      }
      default: {
        const [left, low, high] = rest.map(Number) as [number, number, number]
        if (byte < low || byte > high) return null
        return left === 1 ? character() : `bytes ${n} ${left - 1} 128 191`
      }
    }
  }
  return new Machine<string>('before 0', step, () => false)
}

const anyText = text()

/** Any value of JSON. */
export const value: Item = new Choice(() => [
  [anyObject],
  [anyArray],
  [anyText],
  [number],
  [new Literal('true')],
  [new Literal('false')],
  [new Literal('null')],
])

/** `{` and [min, max] pairs of names, any unless `name` says which, with values `of` a kind. */
export function objectOf(
  of: Item,
  { name = anyText, min = 0, max = Number.POSITIVE_INFINITY }: PairRules = {},
): Item {
  const pair: Item[] = [name, space, new Literal(':'), space, of, space]
  const comma = new Literal(',')
  const close = new Literal('}')
  const rests = new Map<number, Item>()
  const counted = Number.isFinite(max) ? max : Math.max(min, 1)
  /** What follows n pairs. */
  const after = (n: number): Item => {
    const place = Math.min(n, counted)
    let rest = rests.get(place)
    if (!rest) {
      const more = place === 0 ? [] : [comma, space]
      rest = new Choice(() => [
        ...(place >= min ? [[close]] : []),
        ...(place < max || counted !== max ? [[...more, ...pair, after(place + 1)]] : []),
      ])
      rests.set(place, rest)
    }
    return rest
  }
  return new Choice(() => [[new Literal('{'), space, after(0)]])
}

/** Which pairs an object may have. */
export interface PairRules {
  readonly name?: Item
  readonly min?: number
  readonly max?: number
}

/** `[` and [min, max] values: `first` those of a kind of their own, the others `of` one kind. */
export function arrayOf(
  of: Item,
  min = 0,
  max = Number.POSITIVE_INFINITY,
  first: readonly Item[] = [],
): Item {
  const comma = new Literal(',')
  const close = new Literal(']')
  const rests = new Map<number, Item>()
  /** Beyond so many items all numbers of them are the same. */
  const counted = Math.max(first.length, Number.isFinite(max) ? max : min)
  const itemAt = (n: number) => [space, first[n] ?? of, space, after(n + 1)]
  /** What follows n items. */
  const after = (n: number): Item => {
    const place = Math.min(n, counted)
    let rest = rests.get(place)
    if (!rest) {
      rest = new Choice(() => [
        ...(place >= min ? [[close]] : []),
        ...(place < max ? [[comma, ...itemAt(place)]] : []),
      ])
      rests.set(place, rest)
    }
    return rest
  }
  return new Choice(() => [
    ...(min === 0 ? [[new Literal('['), space, close]] : []),
    ...(max > 0 ? [[new Literal('['), ...itemAt(0)]] : []),
  ])
}

/** `[` and [min, max] of these values, each once at most. max is no more than they are. */
export function arrayOfEach(values: readonly unknown[], min: number, max: number): Item {
  const items = values.map((one) => new Literal(JSON.stringify(one)))
  const close = new Literal(']')
  const comma = new Literal(',')
  const rests = new Map<number, Item>()
  /** What follows values; `used` has a bit for each. */
  const after = (used: number): Item => {
    let rest = rests.get(used)
    if (!rest) {
      const n = items.filter((_, i) => used & (1 << i)).length
      const left = items.flatMap((item, i) => (used & (1 << i) ? [] : [{ item, bit: 1 << i }]))
      const separator = n === 0 ? [] : [comma, space]
      rest = new Choice(() => [
        ...(n >= min ? [[close]] : []),
        ...(n < max
          ? left.map(({ item, bit }) => [...separator, item, space, after(used | bit)])
          : []),
      ])
      rests.set(used, rest)
    }
    return rest
  }
  return new Choice(() => [[new Literal('['), space, after(0)]])
}

export const anyObject: Item = objectOf(value)
export const anyArray: Item = arrayOf(value)
