import { ZipCacheError } from '../errors.js'
import { gemmaCalls, type JsonSchema, sharedGrammar } from '../grammar/index.js'
import { ApiError } from './api-error.js'

/**
 * How many parts a schema has, of `MAX_PARTS`. Throws an `ApiError` 400 that names the field of a schema which
 * answers cannot be held to.
 */
export function checkSchema(schema: JsonSchema, param: string): number {
  return checked(param, () => sharedGrammar(schema).nParts)
}

/** Throws an `ApiError` 400 that names the field for functions whose calls Gemma 4 has no way to write. */
export function checkGemmaCalls(
  calls: Readonly<Record<string, true | JsonSchema>>,
  param: string,
): void {
  checked(param, () => gemmaCalls(calls))
}

function checked<T>(param: string, read: () => T): T {
  try {
    return read()
  } catch (cause) {
    if (!(cause instanceof ZipCacheError)) throw cause
    const message = `${param}: ${cause.message.replace(/^json: /, '')}`
    throw new ApiError(400, message, { param, code: 'invalid_value', cause })
  }
}
