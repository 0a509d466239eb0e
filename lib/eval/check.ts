import { argumentError, show } from '../errors.js'

/** Throws `ERR_ZC_ARGUMENT` that names an argument and what is wrong with it. */
export function check(argument: string, isGood: boolean, complaint: string): void {
  if (isGood) return
  throw argumentError(argument, complaint)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no list of at least one `item`. */
export function checkList(argument: string, value: unknown, item: string): void {
  check(argument, Array.isArray(value), `is ${show(value)}, expected a list`)
  check(argument, (value as []).length > 0, `has none, expected at least one ${item}`)
}
