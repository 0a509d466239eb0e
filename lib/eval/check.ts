import { argumentError, show } from '../errors.js'

/** Throws `ERR_ZC_ARGUMENT` that names an argument and what is wrong with it. */
export function check(argument: string, isGood: boolean, complaint: string): void {
  if (isGood) return
  throw argumentError(argument, complaint)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no object. */
export function checkObject(argument: string, value: unknown): void {
  const isGood = typeof value === 'object' && value !== null
  check(argument, isGood, `is ${show(value)}, expected an object`)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no list of at least one `item`. */
export function checkList(argument: string, value: unknown, item: string): void {
  check(argument, Array.isArray(value), `is ${show(value)}, expected a list`)
  check(argument, (value as []).length > 0, `has none, expected at least one ${item}`)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no whole number of [min, max]. */
export function checkInteger(argument: string, value: unknown, min: number, max: number): number {
  const isGood = Number.isInteger(value) && (value as number) >= min && (value as number) <= max
  check(argument, isGood, `is ${show(value)}, expected a whole number of ${min} to ${max}`)
  return value as number
}
