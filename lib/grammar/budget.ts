import { argumentError, type ZipCacheError } from '../errors.js'

/**
 * How much of schemas is read at once: parts, of which each takes about a microsecond and some hundred
 * bytes. Everything else waits meanwhile.
 */
export const MAX_PARTS = 1 << 15
/** Characters of JSON that are as quick as one part. */
const CHARACTERS_A_PART = 64
/** Schemas within each other, by references too: Node's stack holds some 1100. */
const MAX_DEPTH = 400

/** What is left of the parts that a schema may have, however few characters say so. */
export class Budget {
  /** Where the schema is that is read. */
  at = '#'
  #nParts = 0
  #depth = 0

  /** How many parts there were so far. */
  get spent(): number {
    return this.#nParts
  }

  /** Throws `ERR_ZC_ARGUMENT` where there are more parts than may be. */
  spend(nParts: number): void {
    this.#nParts += nParts
    if (this.#nParts > MAX_PARTS) {
      throw this.#refusal(
        `makes it too large: it has more than ${MAX_PARTS} parts (schemas, keywords, properties, values, ` +
          'characters of patterns, with all counts and alternatives written out)',
      )
    }
  }

  /** The JSON of a value, which is spent by its length. */
  json(value: unknown): string {
    const text = JSON.stringify(value)
    this.spend(1 + Math.floor(text.length / CHARACTERS_A_PART))
    return text
  }

  /** What `read` returns, which may read schemas within. Throws `ERR_ZC_ARGUMENT` where they nest too deeply. */
  within<T>(read: () => T): T {
    if (++this.#depth > MAX_DEPTH) throw this.#refusal(`is within more than ${MAX_DEPTH} others`)
    const result = read()
    this.#depth--
    return result
  }

  #refusal(what: string): ZipCacheError {
    return argumentError('json', `the schema at ${this.at} ${what}`)
  }
}
