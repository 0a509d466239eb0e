import { createHash, timingSafeEqual } from 'node:crypto'
import { ApiError } from './api-error.js'

/** Keys that requests must show one of. Compared by their hashes, all of them, in constant time. */
export class ApiKeys {
  readonly #hashes: readonly Buffer[]

  constructor(keys: readonly string[]) {
    this.#hashes = [...new Set(keys)].map(hashOf)
  }

  /**
   * Who an `Authorization` header belongs to: a word that is the same for the same key, '' where no
   * keys are asked for.
   *
   * Throws an `ApiError` 401 without a right one.
   */
  check(header: string | undefined): string {
    if (this.#hashes.length === 0) return ''
    const [, key] = /^Bearer +(\S+) *$/i.exec(header ?? '') ?? []
    if (key === undefined) {
      throw new ApiError(401, 'expected the header Authorization: Bearer KEY', {
        code: 'missing_api_key',
      })
    }
    const given = hashOf(key)
    let owner = ''
    for (const hash of this.#hashes) {
      if (timingSafeEqual(hash, given)) owner = hash.toString('hex', 0, 8)
    }
    if (owner !== '') return owner
    throw new ApiError(401, 'the API key is not one of this server', { code: 'invalid_api_key' })
  }
}

function hashOf(key: string): Buffer {
  return createHash('sha256').update(key).digest()
}

/** The keys in a text: one a line, `#` begins a comment. */
export function parseKeys(text: string): string[] {
  return text
    .split('\n')
    .map((line) => line.replace(/#.*/, '').trim())
    .filter((line) => line !== '')
}
