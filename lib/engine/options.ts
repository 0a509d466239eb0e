import { argumentError, show } from '../errors.js'

/**
 * Refuses an option that nobody reads, so that a misspelt one is not lost in silence, a `signal` that
 * is none, and what are no options at all.
 *
 * Throws `ERR_ZC_ARGUMENT` naming it.
 */
export function checkOptions(options: object, known: readonly string[]): void {
  checkObject('options', options)
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue
    throw argumentError(key, `is no option here, expected some of ${known.join(', ')}`)
  }
  checkSignal((options as { signal?: unknown }).signal)
}

/** Throws `ERR_ZC_ARGUMENT` for a `signal` that is there and is none. */
export function checkSignal(signal: unknown): void {
  if (signal === undefined || signal instanceof AbortSignal) return
  throw argumentError('signal', 'is no AbortSignal')
}

/** Throws `ERR_ZC_ARGUMENT` for what is no object: a caller without types may give anything. */
export function checkObject(argument: string, value: unknown): void {
  if (typeof value === 'object' && value !== null) return
  throw argumentError(argument, `is ${show(value)}, expected an object`)
}

/** Throws `ERR_ZC_ARGUMENT` for what is neither true nor false. */
export function checkBoolean(argument: string, value: unknown): void {
  if (typeof value === 'boolean') return
  throw argumentError(argument, `is ${show(value)}, expected true or false`)
}

/** A whole number of [min, max]. Throws `ERR_ZC_ARGUMENT` for anything else. */
export function checkInteger(argument: string, value: unknown, min: number, max: number): number {
  if (Number.isInteger(value) && (value as number) >= min && (value as number) <= max) {
    return value as number
  }
  throw argumentError(argument, `is ${show(value)}, expected a whole number of ${min} to ${max}`)
}
