import type { PolicyOptions } from './options.js'
import type { CodeBits, PrecisionClass, QuantRange } from './policy.js'

/** Bits that codes can have. */
export const CODE_BITS = [2, 3, 4, 8] as const

const CLASSES = ['high', 'low'] as const
type ClassName = (typeof CLASSES)[number]

/** What a policy's classes are where its options do not say otherwise. */
export interface PrecisionDefaults {
  readonly keyBits: Record<ClassName, CodeBits>
  readonly valueBits: Record<ClassName, CodeBits>
  readonly keyRange: QuantRange
}

/**
 * Reads `highBits`, `lowBits`, `keyBits: { high, low }`, `valueBits: { high, low }`, `keyRange` and
 * `valueRange` (one range, or `{ high, low }`) into the two classes; what is given for K or V alone
 * wins over what is given for both. No class of regular tokens has more bits than the salient one.
 */
export function readPrecision(
  options: PolicyOptions,
  defaults: PrecisionDefaults,
): Record<ClassName, PrecisionClass> {
  const both = {
    high: options.choice<CodeBits | null>('highBits', null, CODE_BITS),
    low: options.choice<CodeBits | null>('lowBits', null, CODE_BITS),
  }
  const over = (bits: Record<ClassName, CodeBits>) => ({
    high: both.high ?? bits.high,
    low: both.low ?? bits.low,
  })
  const keyBits = readBits(options, 'keyBits', over(defaults.keyBits))
  const valueBits = readBits(options, 'valueBits', over(defaults.valueBits))
  const keyRange = readRanges(options, 'keyRange', defaults.keyRange)
  const valueRange = readRanges(options, 'valueRange', 'minmax')
  const precision = (name: ClassName): PrecisionClass => ({
    keyBits: keyBits[name],
    valueBits: valueBits[name],
    keyRange: keyRange[name],
    valueRange: valueRange[name],
  })
  return { high: precision('high'), low: precision('low') }
}

function readBits(
  options: PolicyOptions,
  key: string,
  fallback: Record<ClassName, CodeBits>,
): Record<ClassName, CodeBits> {
  const own = options.nested(key)
  if (!own) {
    if (fallback.low <= fallback.high) return fallback
    throw options.error('lowBits', fallback.low, `highBits at most, ${fallback.high}`)
  }
  const bits = {
    high: own.choice('high', fallback.high, CODE_BITS),
    low: own.choice('low', fallback.low, CODE_BITS),
  }
  own.done()
  if (bits.low > bits.high) throw own.error('low', bits.low, `high at most, ${bits.high}`)
  return bits
}

/** Reads `'minmax'` or `{ norm }`. */
export function readRange(options: PolicyOptions, key: string): QuantRange {
  const value = options.raw(key)
  const range = parseRange(value)
  if (range === null) throw options.error(key, value, RANGE_FORMS)
  return range
}

/** Reads `'minmax'`, `{ norm }`, or `{ high, low }` of those. */
function readRanges(
  options: PolicyOptions,
  key: string,
  fallback: QuantRange,
): Record<ClassName, QuantRange> {
  const value = options.raw(key)
  const isPair = typeof value === 'object' && value !== null && !('norm' in value)
  const pair = isPair ? (value as Partial<Record<ClassName, unknown>>) : { high: value, low: value }
  const isKnown = Object.keys(pair).every((name) => CLASSES.includes(name as ClassName))
  const high = parseRange(pair.high, fallback)
  const low = parseRange(pair.low, fallback)
  if (Array.isArray(value) || !isKnown || high === null || low === null) {
    throw options.error(key, value, `${RANGE_FORMS}, or { high, low } of those`)
  }
  return { high, low }
}

const RANGE_FORMS = "'minmax' or { norm: 2 to 6 }"

/** null: no range. */
function parseRange(range: unknown, fallback: QuantRange = 'minmax'): QuantRange | null {
  if (range === undefined || range === null) return fallback
  if (range === 'minmax') return 'minmax'
  if (typeof range !== 'object' || Object.keys(range).length !== 1) return null
  const norm = 'norm' in range ? range.norm : null
  return norm === 2 || norm === 3 || norm === 4 || norm === 5 || norm === 6 ? { norm } : null
}
