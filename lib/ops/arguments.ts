/** What the addon cannot check: it is given the arguments of an op one by one. */
import { argumentError, show } from '../errors.js'

/** Throws `ERR_ZC_ARGUMENT` for arguments that are no object: a caller without types may leave them out. */
export function checkArguments(args: object, argument = 'args'): void {
  if (typeof args === 'object' && args !== null) return
  throw argumentError(argument, `is ${show(args)}, expected an object`)
}

/**
 * A list of arguments that come several times; what is absent is empty.
 *
 * Throws `ERR_ZC_ARGUMENT` for what is no list, and for a member that is no object.
 */
export function listOfArguments<T extends object>(
  argument: string,
  list: readonly T[] | undefined = [],
): readonly T[] {
  if (!Array.isArray(list)) throw argumentError(argument, `is ${show(list)}, expected a list`)
  for (const [i, one] of list.entries()) checkArguments(one, `${argument}[${i}]`)
  return list
}

/** Throws `ERR_ZC_ARGUMENT` for what is no number; NaN is one, for whoever takes it to say more. */
export function checkNumber(argument: string, value: number): void {
  if (typeof value === 'number') return
  throw argumentError(argument, `is ${show(value)}, expected a number`)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no whole number of 0 or more. */
export function checkSize(argument: string, value: number): void {
  if (Number.isSafeInteger(value) && value >= 0) return
  throw argumentError(argument, `is ${show(value)}, expected a whole number of 0 or more`)
}
