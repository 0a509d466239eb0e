import { show, ZipCacheError } from '../errors.js'

/**
 * The options of one policy as its caller gave them: read them one by one, then `done()` refuses
 * what is left over.
 */
export class PolicyOptions {
  readonly #name: string
  /** Where these options stand in a policy: '' or the option that holds them, with a dot. */
  readonly #prefix: string
  readonly #left: Map<string, unknown>

  constructor(name: string, options: object, prefix = '') {
    this.#name = name
    this.#prefix = prefix
    this.#left = new Map(Object.entries(options).filter(([key]) => key !== 'name'))
  }

  /** A number of [min, max], whole if `integer`. */
  number(key: string, fallback: number, min: number, max: number, integer = false): number {
    const value = this.raw(key) ?? fallback
    const kind = integer ? 'a whole number' : 'a number'
    const good = typeof value === 'number' && value >= min && value <= max
    if (!good || (integer && !Number.isInteger(value))) {
      throw this.error(key, value, `${kind} of ${min} to ${max}`)
    }
    return value
  }

  /** A whole number of [min, max], or null for none. */
  optional(key: string, min: number, max: number): number | null {
    if (this.#left.get(key) === undefined || this.#left.get(key) === null) {
      this.#left.delete(key)
      return null
    }
    return this.number(key, min, min, max, true)
  }

  /** One of a few values, or what stands for none. */
  choice<T>(key: string, fallback: T, choices: readonly T[]): T {
    const value = this.raw(key)
    if (value === undefined) return fallback
    if (!choices.includes(value as T)) throw this.error(key, value, `one of ${choices.join(', ')}`)
    return value as T
  }

  /** The options of a nested object, or none. */
  nested(key: string): PolicyOptions | null {
    const value = this.raw(key)
    if (value === undefined) return null
    if (typeof value !== 'object' || value === null) throw this.error(key, value, 'an object')
    return this.inside(key, value)
  }

  /** The options of an object that `raw` gave. */
  inside(key: string, value: object): PolicyOptions {
    return new PolicyOptions(this.#name, value, `${this.#prefix}${key}.`)
  }

  /** A value that the caller reads by itself; null is as good as absent, as in JSON. */
  raw(key: string): unknown {
    const value = this.#left.get(key)
    this.#left.delete(key)
    return value ?? undefined
  }

  /** `ERR_ZC_ARGUMENT` for the value of an option, for the caller to throw. */
  error(key: string, value: unknown, expected: string): ZipCacheError {
    const option = `${this.#prefix}${key}`
    return new ZipCacheError(
      'ERR_ZC_ARGUMENT',
      `policy: ${this.#name}'s ${option} is ${show(value)}, expected ${expected}`,
      { argument: `policy.${option}` },
    )
  }

  /** Throws `ERR_ZC_ARGUMENT` when an option was given that nothing has read. */
  done(): void {
    const [unknown] = this.#left.keys()
    if (unknown === undefined) return
    const option = `${this.#prefix}${unknown}`
    throw new ZipCacheError('ERR_ZC_ARGUMENT', `policy: ${this.#name} has no option '${option}'`, {
      argument: `policy.${option}`,
    })
  }
}
