import { ZipCacheError } from '../errors.js'
import { type JsonSchema, sharedGrammar } from '../grammar/index.js'
import { ApiError } from './api-error.js'

/**
 * How many parts a schema has, of `MAX_PARTS`. Throws an `ApiError` 400 that names the field of a schema which
 * answers cannot be held to.
 */
export function checkSchema(schema: JsonSchema, param: string): number {
  try {
    return sharedGrammar(schema).nParts
  } catch (cause) {
    if (!(cause instanceof ZipCacheError)) throw cause
    const message = `${param}: ${cause.message.replace(/^json: /, '')}`
    throw new ApiError(400, message, { param, code: 'invalid_value', cause })
  }
}
