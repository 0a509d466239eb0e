import { ZipCacheError } from '../errors.js'
import { type JsonObject, quote } from './model-files.js'

/** pow(theta, 1) must stay a finite float32 with room for the yarn factor. */
const kMaxPositive = 1e30

const isPositive = (value: unknown): value is number =>
  typeof value === 'number' && value > 0 && value <= kMaxPositive

/**
 * Typed access to the keys of one JSON object; every complaint names file, key, value and what was
 * expected.
 */
export class ConfigReader {
  constructor(
    readonly raw: JsonObject,
    readonly path: string,
    /** `rope_scaling.` for the keys within, nothing at the top. */
    readonly prefix = '',
  ) {}

  refuse(key: string, complaint: string): never {
    const message = `${this.path}: ${this.prefix}${key} ${complaint}`
    throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: `${this.prefix}${key}` })
  }

  /**
   * The value, or undefined where the key is absent or null: Python's None means the same as absent
   * nearly everywhere.
   */
  value(key: string): unknown {
    return this.raw[key] ?? undefined
  }

  integer(key: string, min: number, max: number, fallback?: number): number {
    const value = this.value(key)
    if (value === undefined && fallback !== undefined) return fallback
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) {
      return value
    }
    this.refuse(key, `is ${quote(value)}, expected an integer from ${min} to ${max}`)
  }

  number(
    key: string,
    expected: string,
    fallback: number | undefined,
    accept: (value: number) => boolean,
  ): number {
    const value = this.value(key)
    if (value === undefined && fallback !== undefined) return fallback
    if (typeof value === 'number' && Number.isFinite(value) && accept(value)) return value
    this.refuse(key, `is ${quote(value)}, expected ${expected}`)
  }

  positive(key: string, fallback?: number): number {
    return this.number(key, 'a number > 0', fallback, isPositive)
  }

  optionalPositive(key: string): number | null {
    return this.value(key) === undefined ? null : this.positive(key)
  }

  /** An array of `length` numbers above 0. */
  positives(key: string, length: number): number[] {
    const value = this.value(key)
    if (Array.isArray(value) && value.length === length && value.every(isPositive)) return value
    this.refuse(key, `is ${quote(value)}, expected ${length} numbers > 0`)
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.value(key)
    if (value === undefined) return fallback
    if (typeof value === 'boolean') return value
    this.refuse(key, `is ${quote(value)}, expected true or false`)
  }
}
