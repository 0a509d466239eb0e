import { ZipCacheError } from '../errors.js'

/**
 * Refuses an option that nobody reads, so that a misspelt one is not lost in silence, and a
 * `signal` that is none.
 *
 * Throws `ERR_ZC_ARGUMENT` naming it.
 */
export function checkOptions(options: object, known: readonly string[]): void {
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue
    throw new ZipCacheError(
      'ERR_ZC_ARGUMENT',
      `${key}: is no option here, expected some of ${known.join(', ')}`,
      { argument: key },
    )
  }
  const { signal } = options as { signal?: unknown }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new ZipCacheError('ERR_ZC_ARGUMENT', 'signal: is no AbortSignal', { argument: 'signal' })
  }
}
