import { checkObject } from '../engine/options.js'
import { argumentError, show } from '../errors.js'

/** Throws `ERR_ZC_ARGUMENT` that names an argument and what is wrong with it. */
export function check(argument: string, isGood: boolean, complaint: string): void {
  if (isGood) return
  throw argumentError(argument, complaint)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no number. */
export function checkNumber(argument: string, value: unknown): void {
  check(argument, typeof value === 'number', `is ${show(value)}, expected a number`)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no list of at least one number. */
export function checkNumbers(argument: string, values: unknown): void {
  checkList(argument, values, 'number')
  for (const [i, value] of (values as unknown[]).entries()) checkNumber(`${argument}[${i}]`, value)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no object that has these functions. */
export function checkMethods(argument: string, value: unknown, ...names: string[]): void {
  checkObject(argument, value)
  for (const name of names) {
    const isThere = typeof (value as Record<string, unknown>)[name] === 'function'
    check(argument, isThere, `has no function ${name}`)
  }
}

/** Throws `ERR_ZC_ARGUMENT` for what is no list of at least one `item`. */
export function checkList(argument: string, value: unknown, item: string): void {
  check(argument, Array.isArray(value), `is ${show(value)}, expected a list`)
  check(argument, (value as []).length > 0, `has none, expected at least one ${item}`)
}
