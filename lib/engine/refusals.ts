/** Why a call is refused. */
import { ZipCacheError } from '../errors.js'

/** Why a disposed thing refuses to work. */
export function disposedError(what: string): ZipCacheError {
  return new ZipCacheError('ERR_ZC_HANDLE', `${what}: it was disposed`, { argument: what })
}

/** Why a request is refused where so many wait. */
export function busyError(nWaiting: number): ZipCacheError {
  return new ZipCacheError('ERR_ZC_BUSY', `engine: ${nWaiting} requests are waiting already`)
}

/** Why a sequence whose content is unknown refuses to go on. */
export function failedError(cause: unknown): ZipCacheError {
  return new ZipCacheError('ERR_ZC_HANDLE', 'sequence: an earlier step failed on the device', {
    cause,
  })
}
