import { type ApiError, invalid } from './api-error.js'

/** A JSON object, its fields unknown. */
export type JsonObject = Readonly<Record<string, unknown>>

/** Whether a value is an object of JSON, neither a list nor null. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * Reads the fields of a request one by one; `done` refuses those that nobody has read, so that a
 * misspelt or unsupported one is not lost in silence. A field that is null is one left out, as in
 * OpenAI's API. Every method throws an `ApiError` that names the field.
 */
export class Fields {
  readonly #object: JsonObject
  /** Where these fields stand: '' or the field that holds them, with a dot. */
  readonly #prefix: string
  readonly #read = new Set<string>()

  constructor(object: JsonObject, prefix = '') {
    this.#object = object
    this.#prefix = prefix
  }

  /** The full name of a field. */
  path(name: string): string {
    return `${this.#prefix}${name}`
  }

  /** A field that the caller reads by itself; undefined where it is not there. */
  raw(name: string): unknown {
    this.#read.add(name)
    if (!Object.hasOwn(this.#object, name)) return undefined
    return this.#object[name] ?? undefined
  }

  /** A number of [min, max]. */
  number(name: string, min: number, max: number): number | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (typeof value === 'number' && value >= min && value <= max) return value
    throw this.#bad(name, value, `a number of ${min} to ${max}`)
  }

  /** A whole number of [min, max]. */
  integer(name: string, min: number, max: number): number | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) {
      return value as number
    }
    throw this.#bad(name, value, `a whole number of ${min} to ${max}`)
  }

  boolean(name: string): boolean | undefined {
    const value = this.raw(name)
    if (value === undefined || typeof value === 'boolean') return value
    throw this.#bad(name, value, 'true or false')
  }

  text(name: string, maxLength: number): string | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (typeof value === 'string' && value.length <= maxLength) return value
    throw this.#bad(name, value, `a text of at most ${maxLength} characters`)
  }

  /** One of a few words. */
  choice<T extends string>(name: string, choices: readonly T[]): T | undefined {
    const value = this.raw(name)
    if (value === undefined || choices.includes(value as T)) return value as T | undefined
    throw this.#bad(name, value, `one of ${choices.join(', ')}`)
  }

  object(name: string): JsonObject | undefined {
    const value = this.raw(name)
    if (value === undefined || isObject(value)) return value
    throw this.#bad(name, value, 'an object')
  }

  list(name: string, maxLength: number): readonly unknown[] | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (Array.isArray(value) && value.length <= maxLength) return value
    throw this.#bad(name, value, `a list of at most ${maxLength}`)
  }

  /** The fields of an object in a field; undefined where it is not there. */
  nested(name: string): Fields | undefined {
    const object = this.object(name)
    return object && new Fields(object, `${this.path(name)}.`)
  }

  /** Takes fields for read that change nothing here. */
  ignore(names: readonly string[]): void {
    for (const name of names) this.#read.add(name)
  }

  /** Throws when there is a field that nobody has read. */
  done(): void {
    for (const name of Object.keys(this.#object)) {
      if (this.#read.has(name) || this.#object[name] === null) continue
      throw invalid(this.path(short(name)), 'is no field that this server knows')
    }
  }

  #bad(name: string, value: unknown, expected: string): ApiError {
    return invalid(this.path(name), `is ${describe(value)}, expected ${expected}`)
  }
}

/** A value as an error names it: short, whatever the client sent. */
export function describe(value: unknown): string {
  if (Array.isArray(value)) return `a list of ${value.length}`
  if (typeof value === 'string') {
    return value.length > 40 ? `a text of ${value.length} characters` : JSON.stringify(value)
  }
  return typeof value === 'object' && value !== null ? 'an object' : String(value)
}

function short(name: string): string {
  return name.length > 60 ? `${name.slice(0, 60)}...` : name
}
