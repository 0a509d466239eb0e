import { argumentError, ZipCacheError } from '../errors.js'
import { Choice, Grammar, type Item, Literal, OneOf } from './automaton.js'
import {
  anyArray,
  anyObject,
  arrayOf,
  integer,
  number,
  objectOf,
  space,
  text,
  value,
} from './json-values.js'
import { numberBetween } from './number-range.js'
import { FORMATS, PatternError, patternText } from './pattern.js'

/** A JSON schema: true, false, or an object of keywords. */
export type JsonSchema = boolean | { readonly [keyword: string]: unknown }

/** Keywords that describe and do not restrict. */
const ANNOTATIONS = new Set([
  ...['title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly'],
  ...['$schema', '$id', '$comment', '$defs', 'definitions', 'strict', 'name'],
  // OpenAPI's, and what texts are to be taken for.
  ...['example', 'contentEncoding', 'contentMediaType'],
  // Says which alternative is meant by which value of a property; pydantic writes it.
  'discriminator',
])

/** The types of values, as the keyword `type` has them. */
const TYPES = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const
type Type = (typeof TYPES)[number]

/** What no text is. */
const NOTHING: Item = new Choice(() => [])

const MAX_NODES = 5000
const MAX_LENGTH = 10_000

/**
 * The grammar of JSON objects (`true`), or of what a schema allows. Names of properties come in the
 * schema's order, those required always; a schema with `properties` gets no others. White space is
 * free up to a line break and an indent.
 *
 * Keywords: type, properties, required, additionalProperties, propertyNames that are an enum,
 * items, prefixItems, minItems, maxItems, enum, const,
 * anyOf, oneOf (as anyOf), allOf of one, $ref into the schema itself, minLength and maxLength, or pattern,
 * or one of the formats of `FORMATS`; minimum, maximum, exclusiveMinimum, exclusiveMaximum. A type
 * beside enum, const, alternatives or $ref holds as well.
 *
 * Throws `ERR_ZC_UNSUPPORTED` for another keyword that restricts, `ERR_ZC_ARGUMENT` for what is no
 * schema, and for one that allows no value.
 */
export function jsonGrammar(schema: true | JsonSchema): Grammar {
  const root = schema === true ? anyObject : new SchemaReader(schema).item(schema, '#', null)
  const grammar = new Grammar(root)
  if (grammar.start.isFinal) throw bad('#', 'allows no value')
  return grammar
}

class SchemaReader {
  readonly #root: JsonSchema
  /** Schemas under way or done, by the types that they are held to: for recursion through $ref. */
  readonly #items = new Map<object, Map<string, Item>>()
  /** Texts by their patterns: hundreds of properties may be dates, of 120 items each. */
  readonly #patterns = new Map<string, Item>()
  #nNodes = 0

  constructor(root: JsonSchema) {
    this.#root = root
  }

  /** `within`: the types that stand beside the schema and hold as well; null: any. */
  item(schema: unknown, at: string, within: readonly Type[] | null = null): Item {
    if (schema === false) return NOTHING
    if (schema === true) return within === null ? value : this.item({}, at, within)
    if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) {
      throw bad(at, 'is no schema')
    }
    const items = this.#items.get(schema) ?? new Map<string, Item>()
    this.#items.set(schema, items)
    const key = String(within)
    const known = items.get(key)
    if (known) return known
    if (++this.#nNodes > MAX_NODES) throw bad(at, `is one of more than ${MAX_NODES} schemas`)
    let choices: Item[] = []
    const item = new Choice(() => choices.map((choice) => [choice]))
    // Before its parts are read: they may refer to it.
    items.set(key, item)
    const keywords = new Keywords(schema as Record<string, unknown>, at)
    choices = this.#choices(keywords, at, within).filter((choice) => choice !== NOTHING)
    if (choices.length === 0) items.set(key, NOTHING)
    return choices.length === 0 ? NOTHING : item
  }

  #choices(keywords: Keywords, at: string, within: readonly Type[] | null): Item[] {
    const types = keywords.types()
    const both = types && within ? meet(types, within) : (types ?? within)
    const alternatives = keywords.take('anyOf') ?? keywords.take('oneOf') ?? keywords.take('allOf')
    if (alternatives !== undefined) {
      const list = asList(alternatives, at)
      if (keywords.had('allOf') && list.length > 1) {
        throw unsupported(at, 'allOf of more than one schema')
      }
      keywords.done()
      return list.map((one, i) => this.item(one, `${at}/${i}`, both))
    }
    const ref = keywords.take('$ref')
    if (ref !== undefined) {
      keywords.done()
      return [this.item(this.#resolve(ref, at), String(ref), both)]
    }
    if (keywords.has('const') || keywords.has('enum')) {
      const values = keywords.has('const')
        ? [keywords.take('const')]
        : asList(keywords.take('enum'), at)
      keywords.done()
      const allowed = values.filter((one) => both === null || isOf(typeOf(one), both))
      return allowed.length === 0 ? [] : [OneOf.of(allowed.map((one) => JSON.stringify(one)))]
    }
    const own = types ?? impliedTypes(keywords) ?? within
    const items = own?.flatMap((type) => {
      // One that is not within is read all the same: keywords may be about it.
      const [narrow] = within ? meet([type], within) : [type]
      const item = this.#ofType(narrow ?? type, keywords, at)
      return narrow ? [item] : []
    })
    keywords.done()
    return items ?? [value]
  }

  #ofType(type: Type, keywords: Keywords, at: string): Item {
    switch (type) {
      case 'object':
        return this.#object(keywords, at)
      case 'array':
        return this.#array(keywords, at)
      case 'string':
        return this.#text(keywords, at)
      case 'number':
      case 'integer':
        return this.#number(type, keywords, at)
      case 'boolean':
        return new Choice(() => [[new Literal('true')], [new Literal('false')]])
      case 'null':
        return new Literal('null')
    }
  }

  #array(keywords: Keywords, at: string): Item {
    const [min, max] = keywords.range('minItems', 'maxItems')
    const items = keywords.take('items')
    // Drafts before 2020-12 have the first ones' kinds there.
    const isOld = Array.isArray(items)
    const first = isOld ? items : asList(keywords.take('prefixItems') ?? [], at)
    const others = isOld ? keywords.take('additionalItems') : items
    const of = this.item(others ?? true, `${at}/items`)
    const all = first.map((one, i) => this.item(one, `${at}/prefixItems/${i}`))
    // There is none from the first one on that nothing satisfies.
    const nPossible = [...all, of].indexOf(NOTHING)
    const most = nPossible < 0 ? max : Math.min(nPossible, max)
    if (min > most) return NOTHING
    const isAny = all.length === 0 && of === value && min === 0 && most === Number.POSITIVE_INFINITY
    return isAny ? anyArray : arrayOf(of, min, most, all)
  }

  #text(keywords: Keywords, at: string): Item {
    // A pattern beside a format says more of it: zod writes both.
    const format = keywords.take('format')
    const pattern =
      keywords.take('pattern') ?? (format === undefined ? undefined : FORMATS.get(String(format)))
    if (pattern === undefined) {
      if (format !== undefined) throw unsupported(at, `the format ${JSON.stringify(format)}`)
      return text(...keywords.range('minLength', 'maxLength'))
    }
    if (keywords.has('minLength') || keywords.has('maxLength')) {
      throw unsupported(at, 'a length beside a pattern or a format')
    }
    if (typeof pattern !== 'string') {
      throw bad(at, `has the pattern ${JSON.stringify(pattern)}, expected a regular expression`)
    }
    try {
      const item = this.#patterns.get(pattern) ?? patternText(pattern)
      this.#patterns.set(pattern, item)
      return item
    } catch (error) {
      if (!(error instanceof PatternError)) throw error
      if (!error.isUnsupported) throw bad(at, `has a pattern that is none: ${error.message}`)
      throw unsupported(at, `${error.message} in its pattern ${JSON.stringify(pattern)}`)
    }
  }

  #number(type: 'number' | 'integer', keywords: Keywords, at: string): Item {
    const bounds = {
      min: keywords.number('minimum'),
      max: keywords.number('maximum'),
      above: keywords.number('exclusiveMinimum'),
      below: keywords.number('exclusiveMaximum'),
    }
    const isWhole = type === 'integer'
    if (Object.values(bounds).every((bound) => bound === undefined)) {
      return isWhole ? integer : number
    }
    const item = numberBetween(bounds, isWhole)
    if (item) return item
    throw bad(at, `has bounds that no ${type} of ${isWhole ? 16 : 15} digits is between`)
  }

  #object(keywords: Keywords, at: string): Item {
    const required = asList(keywords.take('required') ?? [], at)
    const additional = keywords.take('additionalProperties')
    const names = namesOf(keywords.take('propertyNames'), at)
    if (names && keywords.has('properties'))
      throw unsupported(at, 'propertyNames beside properties')
    const properties =
      keywords.take('properties') ??
      (names && Object.fromEntries(names.map((name) => [name, additional ?? true])))
    if (properties === undefined) {
      if (required.length > 0) throw unsupported(at, 'required without properties')
      const of = this.item(additional ?? true, `${at}/additionalProperties`)
      if (of === NOTHING) return new Literal('{}')
      return of === value ? anyObject : objectOf(of)
    }
    if (typeof properties !== 'object' || properties === null || Array.isArray(properties)) {
      throw bad(at, 'has properties that are no object')
    }
    const entries = Object.entries(properties)
    const missing = required.find((name) => !entries.some(([key]) => key === name))
    if (missing !== undefined) throw bad(at, `requires ${JSON.stringify(missing)}, no property`)
    const colon = new Literal(':')
    const all = entries.map(([name, schema]) => {
      const item = this.item(schema, `${at}/properties/${name}`)
      // What follows a name is not looked at as long as it may be any of them.
      const after = new Choice(() => [[space, colon, space, item, space]])
      return {
        items: [new Literal(JSON.stringify(name)), after],
        isRequired: required.includes(name),
        canBe: item !== NOTHING,
      }
    })
    if (all.some(({ isRequired, canBe }) => isRequired && !canBe)) return NOTHING
    const pairs = all.filter(({ canBe }) => canBe)
    const close = new Literal('}')
    const comma = new Literal(',')
    /** What follows the first `i` properties, with a pair before or without. */
    const rest = (i: number, hasPair: boolean): Item =>
      new Choice(() => {
        const pair = pairs[i]
        if (!pair) return [[close]]
        const withPair = [...(hasPair ? [comma, space] : []), ...pair.items, memo(i + 1, true)]
        return pair.isRequired ? [withPair] : [withPair, [memo(i + 1, hasPair)]]
      })
    const rests = new Map<string, Item>()
    const memo = (i: number, hasPair: boolean): Item => {
      const key = `${i} ${hasPair}`
      let item = rests.get(key)
      if (!item) {
        item = rest(i, hasPair)
        rests.set(key, item)
      }
      return item
    }
    return new Choice(() => [[new Literal('{'), space, memo(0, false)]])
  }

  #resolve(ref: unknown, at: string): unknown {
    if (ref === '#') return this.#root
    if (typeof ref !== 'string' || !ref.startsWith('#/')) {
      throw unsupported(at, `a $ref to ${JSON.stringify(ref)}`)
    }
    let schema: unknown = this.#root
    for (const part of ref.slice(2).split('/')) {
      const key = unescaped(part, at).replaceAll('~1', '/').replaceAll('~0', '~')
      if (typeof schema !== 'object' || schema === null || !Object.hasOwn(schema, key)) {
        throw bad(at, `has a $ref to ${ref}, which is not there`)
      }
      schema = (schema as Record<string, unknown>)[key]
    }
    return schema
  }
}

/** The names that `propertyNames` lists, as zod writes records; undefined where any may come. */
function namesOf(schema: unknown, at: string): readonly string[] | undefined {
  if (schema === undefined) return undefined
  const isObject = typeof schema === 'object' && schema !== null
  const { type, enum: names, ...others } = (isObject ? schema : {}) as Record<string, unknown>
  const isOfTexts = type === 'string' || (type === undefined && names !== undefined)
  const isList = Array.isArray(names) && names.every((name) => typeof name === 'string')
  if (isOfTexts && Object.keys(others).length === 0 && (names === undefined || isList)) {
    return names as readonly string[] | undefined
  }
  throw unsupported(at, 'propertyNames other than an enum')
}

/** The keywords of one schema; those that nobody takes restrict in a way that we cannot hold to. */
class Keywords {
  readonly #schema: Record<string, unknown>
  readonly #at: string
  readonly #taken = new Set<string>()

  constructor(schema: Record<string, unknown>, at: string) {
    this.#schema = schema
    this.#at = at
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#schema, name)
  }

  /** Whether it was there and has been taken. */
  had(name: string): boolean {
    return this.has(name) && this.#taken.has(name)
  }

  take(name: string): unknown {
    this.#taken.add(name)
    return this.has(name) ? this.#schema[name] : undefined
  }

  /** Those of `type`; null without it. */
  types(): readonly Type[] | null {
    const type = this.take('type')
    if (type === undefined) return null
    return (Array.isArray(type) ? type : [type]).map((one: unknown) => {
      const known = TYPES.find((name) => name === one)
      if (known) return known
      throw bad(this.#at, `has the type ${JSON.stringify(one)}, expected ${TYPES.join(', ')}`)
    })
  }

  number(name: string): number | undefined {
    const value = this.take(name)
    if (value === undefined || (typeof value === 'number' && Number.isFinite(value))) return value
    throw bad(this.#at, `has the ${name} ${JSON.stringify(value)}, expected a number`)
  }

  range(low: string, high: string): [min: number, max: number] {
    const read = (name: string, fallback: number) => {
      const bound = this.take(name) ?? fallback
      if (bound === Number.POSITIVE_INFINITY) return bound
      if (Number.isInteger(bound) && (bound as number) >= 0 && (bound as number) <= MAX_LENGTH) {
        return bound as number
      }
      throw bad(this.#at, `has the ${name} ${JSON.stringify(bound)}, expected 0 to ${MAX_LENGTH}`)
    }
    const [min, max] = [read(low, 0), read(high, Number.POSITIVE_INFINITY)]
    if (min <= max) return [min, max]
    throw bad(this.#at, `has a ${low} above its ${high}`)
  }

  done(): void {
    for (const name of Object.keys(this.#schema)) {
      if (this.#taken.has(name) || ANNOTATIONS.has(name)) continue
      throw unsupported(this.#at, `the keyword ${JSON.stringify(name)}`)
    }
  }
}

function impliedTypes(keywords: Keywords): readonly Type[] | null {
  if (keywords.has('properties') || keywords.has('additionalProperties')) return ['object']
  return keywords.has('items') || keywords.has('prefixItems') ? ['array'] : null
}

function typeOf(value: unknown): Type {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'array'
  return Number.isInteger(value) ? 'integer' : (typeof value as Type)
}

/** Whether a value of a type is of one of these: whole numbers are numbers, too. */
function isOf(type: Type, types: readonly Type[]): boolean {
  return types.includes(type) || (type === 'integer' && types.includes('number'))
}

/** The types that are among both. */
function meet(types: readonly Type[], others: readonly Type[]): Type[] {
  return types.flatMap((type) => {
    if (isOf(type, others)) return [type]
    return type === 'number' && others.includes('integer') ? ['integer'] : []
  })
}

/** A part of a $ref, which is a URI. */
function unescaped(part: string, at: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    throw bad(at, `has a $ref with ${JSON.stringify(part)}, which is no text of a URI`)
  }
}

function asList(list: unknown, at: string): unknown[] {
  if (Array.isArray(list)) return list
  throw bad(at, 'has no list where one is needed')
}

function bad(at: string, what: string): ZipCacheError {
  return argumentError('json', `the schema at ${at} ${what}`)
}

function unsupported(at: string, what: string): ZipCacheError {
  return new ZipCacheError(
    'ERR_ZC_UNSUPPORTED',
    `json: the schema at ${at} has ${what}, which is not supported`,
    { argument: 'json' },
  )
}
