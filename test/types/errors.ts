/** Errors are told apart by their code, of which the compiler knows all. */
import { type ERROR_CODES, type ErrorCode, ZipCacheError } from '../../lib/index.js'
import { type ApiError, toApiError } from '../../lib/server/index.js'
import { type Equal, expectType } from './equal.js'

expectType<Equal<ErrorCode, (typeof ERROR_CODES)[number]>>()

export function describe(error: unknown): string {
  if (!(error instanceof ZipCacheError)) throw error
  expectType<Equal<typeof error.code, ErrorCode>>()
  expectType<Equal<typeof error.argument, string | undefined>>()
  // @ts-expect-error: no such code
  if (error.code === 'ERR_ZC_ARGUMENTS') return 'misspelled'
  switch (error.code) {
    case 'ERR_ZC_BUSY':
      return 'later'
    case 'ERR_ZC_ARGUMENT':
      return `wrong: ${error.argument ?? error.message}`
    default:
      // @ts-expect-error: codes are read
      error.code = 'ERR_ZC_IO'
      return error.message
  }
}

export function answer(error: unknown) {
  const seen = toApiError(error)
  expectType<Equal<typeof seen, ApiError>>()
  expectType<Equal<typeof seen.body.error.param, string | null>>()
}

// @ts-expect-error: no such code
export const unknown = new ZipCacheError('ERR_OTHER', 'text')
