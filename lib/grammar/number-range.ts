/** Numbers of JSON between bounds, as items of an automaton. */
import { DONE, type Item, Machine } from './automaton.js'

/** The keywords `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum` and `multipleOf` of a schema. */
export interface NumberBounds {
  readonly min?: number | undefined
  readonly max?: number | undefined
  readonly above?: number | undefined
  readonly below?: number | undefined
  /** Above 0. */
  readonly multipleOf?: number | undefined
}

/** As many as doubles tell apart: what is within the bounds as a text is so as a number. */
const NUMBER_DIGITS = 15
/** Those of 2^53. */
const INTEGER_DIGITS = 16

/**
 * A number within bounds, written without an exponent, of at most 15 digits; a whole one of at most
 * 16. null where there is none, or its multiples cannot be told with so many digits.
 *
 * A state is the text so far, or how many digits it has once all that can follow is within the
 * bounds. Values are counted in units of the last digit, so that all comparisons are exact.
 */
export function numberBetween(bounds: NumberBounds, isWhole: boolean): Item | null {
  const maxDigits = isWhole ? INTEGER_DIGITS : NUMBER_DIGITS
  const unitDigits = isWhole ? 0 : NUMBER_DIGITS - 1
  const range = unitsOf(bounds, unitDigits)
  const multiple =
    bounds.multipleOf === undefined ? null : exactUnits(bounds.multipleOf, unitDigits)
  if (multiple === 0n) return null

  /** Digits behind the point of a number with so many before it. */
  const maxPart = (nWhole: number) => (isWhole ? 0 : maxDigits - nWhole)

  /** The values of a text's completions with `more` digits before the point, sign aside. */
  const completions = ({ whole, part }: Written, more: number) => {
    const unit = 10n ** BigInt(unitDigits - maxPart(whole.length + more))
    const digits = BigInt(whole + (part ?? ''))
    const width = 10n ** BigInt(more + unitDigits - (part?.length ?? 0))
    const step = multiple === null ? unit : commonMultiple(unit, multiple)
    return { low: digits * width, high: (digits + 1n) * width - unit, step }
  }
  /** How many more digits may stand before the point, each number of them. */
  const mores = ({ whole, part }: Written) => {
    const most = part !== undefined || whole === '0' ? 0 : maxDigits - whole.length
    return Array.from({ length: most + 1 }, (_, more) => more)
  }
  const canReach = (text: string): boolean => {
    const written = read(text)
    if (written.whole === '') return [...'0123456789'].some((digit) => canReach(text + digit))
    const { low: a, high: b } = magnitudes(range, written.isNegative)
    return mores(written).some((more) => {
      const { low, high, step } = completions(written, more)
      const from = low > a ? low : a
      const first = ((from + step - 1n) / step) * step
      return first <= high && first <= b
    })
  }
  const isWithin = (text: string): boolean => {
    const written = read(text)
    if (multiple !== null || written.whole === '' || written.whole === '0') return false
    const { low: a, high: b } = magnitudes(range, written.isNegative)
    return mores(written).every((more) => {
      const { low, high } = completions(written, more)
      return low >= a && high <= b
    })
  }

  const follow = (state: string, character: string): string | null => {
    const isFree = state.startsWith('free')
    const { whole, part } = isFree ? readFree(state) : read(state)
    const isDigit = character >= '0' && character <= '9'
    if (character === '-' ? state !== '' : !isDigit && character !== '.') return null
    if (character === '.' && (whole === '' || part !== undefined || maxPart(whole.length) < 1)) {
      return null
    }
    if (isDigit && part === undefined && (whole === '0' || whole.length === maxDigits)) return null
    if (isDigit && part !== undefined && part.length === maxPart(whole.length)) return null
    if (isFree) return state + (isDigit ? '#' : '.')
    const next = state + character
    if (!canReach(next)) return null
    return isWithin(next) ? `free${next.replace('-', '').replace(/\d/g, '#')}` : next
  }
  const ends = (state: string): boolean => {
    if (state.startsWith('free')) return !state.endsWith('.')
    const { isNegative, whole, part } = read(state)
    if (whole === '' || part === '') return false
    const value = BigInt(whole + (part ?? '')) * 10n ** BigInt(unitDigits - (part?.length ?? 0))
    const { low, high } = magnitudes(range, isNegative)
    return value >= low && value <= high && value % (multiple ?? 1n) === 0n
  }
  const step = (state: string, byte: number): string | typeof DONE | null => {
    const next = follow(state, String.fromCharCode(byte))
    const isLast = next !== null && [...'.0123456789'].every((more) => follow(next, more) === null)
    return isLast ? DONE : next
  }
  return canReach('') || canReach('-') ? new Machine<string>('', step, ends) : null
}

/** A number as far as it is written. */
interface Written {
  readonly isNegative: boolean
  readonly whole: string
  /** undefined before the point. */
  readonly part: string | undefined
}

function read(text: string): Written {
  const isNegative = text.startsWith('-')
  const [whole = '', part] = text.slice(isNegative ? 1 : 0).split('.')
  return { isNegative, whole, part }
}

/** `free##.#`: a `#` for each digit. */
function readFree(state: string): Written {
  return read(state.slice('free'.length))
}

/** Whole numbers of units. */
interface Units {
  readonly low: bigint
  readonly high: bigint
}

/** Beyond what can be written. */
const FAR = 10n ** 40n

function unitsOf({ min, max, above, below }: NumberBounds, unitDigits: number): Units {
  let low = -FAR
  let high = FAR
  const raise = (bound: bigint) => {
    if (bound > low) low = bound
  }
  const lower = (bound: bigint) => {
    if (bound < high) high = bound
  }
  if (min !== undefined) raise(-floorUnits(-min, unitDigits))
  if (above !== undefined) raise(floorUnits(above, unitDigits) + 1n)
  if (max !== undefined) lower(floorUnits(max, unitDigits))
  if (below !== undefined) lower(-floorUnits(-below, unitDigits) - 1n)
  return { low, high }
}

/** The values of one sign within a range, sign aside. */
function magnitudes({ low, high }: Units, isNegative: boolean): Units {
  const [from, to] = isNegative ? [-high, -low] : [low, high]
  return { low: from > 0n ? from : 0n, high: to }
}

/** value 10^unitDigits; 0: it is no whole number, or value is not above 0. */
function exactUnits(value: number, unitDigits: number): bigint {
  const units = floorUnits(value, unitDigits)
  return units > 0n && -floorUnits(-value, unitDigits) === units ? units : 0n
}

function commonMultiple(a: bigint, b: bigint): bigint {
  let [divisor, rest] = [a, b]
  while (rest > 0n) [divisor, rest] = [rest, divisor % rest]
  return (a / divisor) * b
}

/** floor(value 10^unitDigits), of the value as JSON writes it. */
function floorUnits(value: number, unitDigits: number): bigint {
  const [, sign, whole, part = '', exponent = '0'] = /^(-?)(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(
    String(value),
  ) as unknown as [string, string, string, string?, string?]
  const digits = BigInt(`${sign}${whole}${part}`)
  const shift = unitDigits + Number(exponent) - part.length
  if (shift >= 0) return digits * 10n ** BigInt(shift)
  const unit = 10n ** BigInt(-shift)
  const quotient = digits / unit
  return digits < 0n && quotient * unit !== digits ? quotient - 1n : quotient
}
