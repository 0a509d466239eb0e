import { argumentError, ZipCacheError } from '../errors.js'
import {
  Choice,
  Grammar,
  type Item,
  inByteOrder,
  Literal,
  OneOf,
  type StateSet,
} from './automaton.js'
import { Budget } from './budget.js'
import {
  anyArray,
  anyObject,
  arrayOf,
  arrayOfEach,
  integer,
  number,
  objectOf,
  space,
  text,
  value,
} from './json-values.js'
import { measuredText } from './measured.js'
import {
  inTodaysWords,
  isAnnotation,
  isOf,
  isSchemaObject,
  type JsonSchema,
  MergeError,
  meet,
  SchemaMerger,
  type SchemaObject,
  TYPES,
  type Type,
} from './merge-schemas.js'
import { type NumberBounds, numberBetween } from './number-range.js'
import { FORMATS, PatternError, patternText } from './pattern.js'

export type { JsonSchema } from './merge-schemas.js'

/** What no text is. */
const NOTHING: Item = new Choice(() => [])

const MAX_LENGTH = 10_000
/** Of a list whose items are each once: any of their sets may be there already. */
const MAX_UNIQUE = 10

/** Formats that say what a text is for, or that any text is of; pydantic's and OpenAPI's. */
const FREE_FORMATS = new Set(['password', 'binary', 'path'])

/** Bounds that OpenAPI's formats of numbers have; of whole ones that we write none needs 64 bits. */
const NUMBER_FORMATS: ReadonlyMap<string, NumberBounds> = new Map([
  ['int32', { min: -(2 ** 31), max: 2 ** 31 - 1 }],
  ['uint32', { min: 0, max: 2 ** 32 - 1 }],
  ['int64', {}],
  ['uint64', { min: 0 }],
  ['float', {}],
  ['double', {}],
])

/**
 * The grammar of JSON objects (`true`), or of what a schema allows. Names of properties come in the
 * schema's order, those required always; a schema with `properties` gets no others. White space is
 * free up to a line break and an indent.
 *
 * Keywords: type, properties, required, additionalProperties, patternProperties (one, or beside properties),
 * propertyNames (an enum, or what texts may be without properties), minProperties (1, or with properties),
 * maxProperties, items, prefixItems, minItems, maxItems, uniqueItems (of an enum), enum, const, anyOf, oneOf
 * (as anyOf), allOf, $ref into the schema itself, `not` of what any value is, minLength, maxLength, pattern,
 * one of the formats of `FORMATS`; minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf; and
 * nullable, as OpenAPI 3.0 has it. What stands beside alternatives or $ref holds as well.
 *
 * Throws `ERR_ZC_UNSUPPORTED` for another keyword that restricts, `ERR_ZC_ARGUMENT` for what is no
 * schema, for one that allows no value, and for one that is too large to be read at once (`MAX_PARTS`).
 */
export function jsonGrammar(schema: true | JsonSchema): Grammar {
  if (schema === true) return new Grammar(anyObject)
  const budget = new Budget()
  const root = new SchemaReader(schema, budget).item(schema, '#')
  const grammar = new Grammar(root, budget.spent)
  if (grammar.start.isFinal) throw bad('#', 'allows no value')
  return grammar
}

class SchemaReader {
  readonly #root: JsonSchema
  /** Schemas under way or done, by the types that they are held to: for recursion through $ref. */
  readonly #items = new Map<object, Map<string, Item>>()
  readonly #budget: Budget
  /** Texts by their patterns: hundreds of properties may be dates, of 120 items each. */
  readonly #patterns = new Map<string, Item | null>()
  readonly #characters = new Map<string, Item | null>()
  readonly #merger: SchemaMerger

  constructor(root: JsonSchema, budget: Budget) {
    this.#root = root
    this.#budget = budget
    this.#merger = new SchemaMerger({ budget, resolve: (ref) => this.#resolve(ref, budget.at) })
  }

  /** `within`: the types that stand beside the schema and hold as well; null: any. */
  item(schema: unknown, at: string, within: readonly Type[] | null = null): Item {
    this.#budget.at = at
    this.#budget.spend(1)
    if (schema === false) return NOTHING
    if (schema === true) return within === null ? value : this.item({}, at, within)
    if (!isSchemaObject(schema)) throw bad(at, 'is no schema')
    const items = this.#items.get(schema) ?? new Map<string, Item>()
    this.#items.set(schema, items)
    const key = String(within)
    const known = items.get(key)
    if (known) return known
    this.#budget.spend(Object.keys(schema).length)
    let choices: Item[] = []
    const item = new Choice(() => choices.map((choice) => [choice]))
    // Before its parts are read: they may refer to it.
    items.set(key, item)
    const all = this.#budget.within(() => this.#choices(schema, at, within))
    choices = all.filter((choice) => choice !== NOTHING)
    if (choices.length === 0) items.set(key, NOTHING)
    return choices.length === 0 ? NOTHING : item
  }

  #choices(schema: SchemaObject, at: string, within: readonly Type[] | null): Item[] {
    const merged = this.#merged(schema, at)
    if (merged !== null) return [this.item(merged, at, within)]
    const keywords = new Keywords(inTodaysWords(schema), at)
    const types = keywords.types()
    const both = types && within ? meet(types, within) : (types ?? within)
    if (isAnything(keywords.take('not'), at)) return []
    const alternatives = keywords.take('anyOf') ?? keywords.take('oneOf') ?? keywords.take('allOf')
    if (alternatives !== undefined) {
      const list = asList(alternatives, at)
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
      return allowed.length === 0 ? [] : [this.#oneOf(allowed)]
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

  #oneOf(values: readonly unknown[]): Item {
    return new OneOf(inByteOrder(values.map((one) => this.#budget.json(one))))
  }

  /** A schema of those that hold at once here; null: one does. */
  #merged(schema: SchemaObject, at: string): JsonSchema | null {
    try {
      return this.#merger.merge(schema)
    } catch (error) {
      if (!(error instanceof MergeError)) throw error
      throw error.isUnsupported ? unsupported(at, error.message) : bad(at, error.message)
    }
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
    if (keywords.take('uniqueItems') === true && most > 1) {
      const values = first.length === 0 ? this.#valuesOf(others) : null
      const isPlain = values?.every((one) => typeof one !== 'object' || one === null)
      const each = [...new Set(values)]
      if (!isPlain || each.length > MAX_UNIQUE) {
        throw unsupported(at, `uniqueItems other than of an enum of at most ${MAX_UNIQUE} values`)
      }
      return min > each.length ? NOTHING : arrayOfEach(each, min, Math.min(most, each.length))
    }
    const isAny = all.length === 0 && of === value && min === 0 && most === Number.POSITIVE_INFINITY
    return isAny ? anyArray : arrayOf(of, min, most, all)
  }

  #text(keywords: Keywords, at: string): Item {
    const [min, max] = keywords.range('minLength', 'maxLength')
    // A pattern beside a format says more of it: zod writes both.
    const format = keywords.take('format')
    const isFree = FREE_FORMATS.has(String(format))
    const pattern =
      keywords.take('pattern') ?? (format === undefined ? undefined : FORMATS.get(String(format)))
    if (pattern === undefined) {
      if (format === undefined || isFree) return text(min, max)
      throw unsupported(at, `the format ${JSON.stringify(format)}`)
    }
    if (typeof pattern !== 'string') {
      throw bad(at, `has the pattern ${JSON.stringify(pattern)}, expected a regular expression`)
    }
    return this.#patternText(pattern, min, max, at)
  }

  #patternText(pattern: string, min: number, max: number, at: string): Item {
    const key = `${min} ${max} ${pattern}`
    try {
      let item = this.#patterns.get(key)
      if (item === undefined) {
        const budget = this.#budget
        item = patternText(pattern, { budget, characters: this.#characters })
        if (min > 0 || Number.isFinite(max)) item = measuredText(item, min, max, budget)
        this.#patterns.set(key, item)
      }
      return item ?? NOTHING
    } catch (error) {
      if (!(error instanceof PatternError)) throw error
      if (!error.isUnsupported) throw bad(at, `has a pattern that is none: ${error.message}`)
      throw unsupported(at, `${error.message} in its pattern ${JSON.stringify(pattern)}`)
    }
  }

  #number(type: 'number' | 'integer', keywords: Keywords, at: string): Item {
    const format = keywords.take('format')
    const ofFormat = format === undefined ? {} : NUMBER_FORMATS.get(String(format))
    if (!ofFormat) throw unsupported(at, `the format ${JSON.stringify(format)}`)
    const [min, max] = [keywords.number('minimum'), keywords.number('maximum')]
    const bounds = {
      min: largest(min, ofFormat.min),
      max: largest(max, ofFormat.max, -1),
      above: keywords.number('exclusiveMinimum'),
      below: keywords.number('exclusiveMaximum'),
      multipleOf: keywords.number('multipleOf'),
    }
    const isWhole = type === 'integer'
    if (Object.values(bounds).every((bound) => bound === undefined)) {
      return isWhole ? integer : number
    }
    if (bounds.multipleOf !== undefined && bounds.multipleOf <= 0) {
      throw bad(at, `has the multipleOf ${bounds.multipleOf}, expected a number above 0`)
    }
    const item = numberBetween(bounds, isWhole)
    if (item) return item
    const rule = bounds.multipleOf === undefined ? 'bounds that' : 'bounds and a multipleOf that'
    throw bad(at, `has ${rule} no ${type} of ${isWhole ? 16 : 15} digits is between`)
  }

  #object(keywords: Keywords, at: string): Item {
    const required = asList(keywords.take('required') ?? [], at)
    const additional = keywords.take('additionalProperties')
    const count = keywords.range('minProperties', 'maxProperties')
    const propertyNames = keywords.take('propertyNames')
    const patterns = keywords.take('patternProperties') ?? {}
    if (!isSchemaObject(patterns)) throw bad(at, 'has patternProperties that are no object')
    if (isRestricting(propertyNames) && keywords.has('properties'))
      throw unsupported(at, 'propertyNames beside properties')
    const names = this.#valuesOf(propertyNames)?.filter((name) => typeof name === 'string')
    // No other names, where there are no properties: that is within what the schema allows.
    const given = names ?? (required.length > 0 ? required.map(String) : undefined)
    const properties =
      keywords.take('properties') ??
      (given && Object.fromEntries(given.map((name) => [name, additional ?? true])))
    if (properties === undefined) {
      return this.#record(propertyNames, patterns, additional ?? true, count, at)
    }
    if (!names && isRestricting(propertyNames)) {
      throw unsupported(at, 'propertyNames other than an enum beside required')
    }
    if (!isSchemaObject(properties)) throw bad(at, 'has properties that are no object')
    this.#budget.spend(Object.keys(properties).length + required.length)
    const allRules = Object.entries(patterns).map(([pattern, rule]) => ({
      rule,
      isOf: this.#matcher(pattern, at),
    }))
    const entries = Object.entries(properties).map(([name, schema]): [string, unknown] => {
      const rules = allRules.filter(({ isOf }) => isOf(name))
      return [
        name,
        rules.length === 0 ? schema : { allOf: [schema, ...rules.map(({ rule }) => rule)] },
      ]
    })
    return this.#withProperties(entries, required, count, at)
  }

  /** Whether a pattern finds something in a name: followed as texts are, since expressions may look back without end. */
  #matcher(pattern: string, at: string): (name: string) => boolean {
    const grammar = new Grammar(this.#patternText(pattern, 0, Number.POSITIVE_INFINITY, at))
    this.#budget.spend(grammar.work)
    return (name) => {
      const text = this.#budget.json(name)
      // Texts of patterns have no such escapes.
      if (text.replaceAll('\\\\', '').includes('\\u')) {
        throw unsupported(at, `patternProperties beside the property ${text}`)
      }
      let state: StateSet | null = grammar.start
      const before = grammar.work
      for (const byte of Buffer.from(text)) {
        state = state?.next(byte) ?? null
        this.#budget.spend(1)
      }
      this.#budget.spend(grammar.work - before)
      return state?.isAccepting === true
    }
  }

  /** An object of names that are not listed. */
  #record(
    propertyNames: unknown,
    patterns: SchemaObject,
    additional: unknown,
    [min, max]: readonly [number, number],
    at: string,
  ): Item {
    const [rule, ...others] = Object.entries(patterns)
    if (others.length > 0) throw unsupported(at, 'more than one of patternProperties')
    if (rule && isRestricting(propertyNames)) {
      throw unsupported(at, 'patternProperties beside propertyNames')
    }
    // Of two pairs of one name only one counts.
    if (min > 1) throw unsupported(at, 'minProperties above 1 without properties')
    const name = rule
      ? this.#patternText(rule[0], 0, Number.POSITIVE_INFINITY, at)
      : this.item(propertyNames ?? true, `${at}/propertyNames`, ['string'])
    const of = this.item(rule ? rule[1] : additional, `${at}/additionalProperties`)
    if (of === NOTHING || name === NOTHING) return min > 0 ? NOTHING : new Literal('{}')
    const isAny = of === value && !rule && !isRestricting(propertyNames) && min === 0
    if (isAny && max === Number.POSITIVE_INFINITY) return anyObject
    const isNamed = rule !== undefined || isRestricting(propertyNames)
    return objectOf(of, { min, max, ...(isNamed ? { name } : {}) })
  }

  /** An object of these properties, in their order. */
  #withProperties(
    entries: readonly (readonly [string, unknown])[],
    required: readonly unknown[],
    [min, max]: readonly [number, number],
    at: string,
  ): Item {
    const known = new Set(entries.map(([name]) => name))
    const needed = new Set(required)
    const missing = required.find((name) => !known.has(name as string))
    if (missing !== undefined) throw bad(at, `requires ${JSON.stringify(missing)}, no property`)
    const colon = new Literal(':')
    const all = entries.map(([name, schema]) => {
      const item = this.item(schema, `${at}/properties/${name}`)
      const [text] = inByteOrder([this.#budget.json(name)])
      return { item, text: text as Uint8Array, isRequired: needed.has(name) }
    })
    if (all.some(({ isRequired, item }) => isRequired && item === NOTHING)) return NOTHING
    const pairs = all.filter(({ item }) => item !== NOTHING)
    /** How many have to come from each on, and behind the last. */
    const fewest = new Array<number>(pairs.length + 1).fill(0)
    for (const [i, { isRequired }] of [...pairs.entries()].reverse()) {
      fewest[i] = (fewest[i + 1] as number) + Number(isRequired)
    }
    if (pairs.length < min || (fewest[0] as number) > max) return NOTHING
    const places = new Map(pairs.map(({ text }, i) => [text, i]))
    const inOrder = [...places.keys()].sort(Buffer.compare)
    const close = new Literal('}')
    const comma = new Literal(',')
    /** More pairs than that make no difference. */
    const counted = Number.isFinite(max) ? max : Math.max(min, 1)
    /** What follows the first `i` properties, with `n` pairs before: names that may come next, as one item. */
    const rest = (i: number, n: number): Item =>
      new Choice(() => {
        const canMiss = (place: number) =>
          !pairs[place]?.isRequired && n + pairs.length - place - 1 >= min
        let last = i
        while (last < pairs.length && canMiss(last)) last++
        const canCome = (place: number) => n < max && n + 1 + (fewest[place + 1] as number) <= max
        const next = inOrder.filter((text) => {
          const place = places.get(text) as number
          return place >= i && place <= last && canCome(place)
        })
        const after = (text: Uint8Array) =>
          afterName(places.get(text) as number, Math.min(n + 1, counted))
        const separator = n > 0 ? [comma, space] : []
        return [
          ...(next.length > 0 ? [[...separator, new OneOf(next, after)]] : []),
          ...(last === pairs.length ? [[close]] : []),
        ]
      })
    const rests = memoized(rest)
    const afterName = memoized((i, n) => {
      const item = pairs[i]?.item as Item
      return new Choice(() => [[space, colon, space, item, space, rests(i + 1, n)]])
    })
    return new Choice(() => [[new Literal('{'), space, rests(0, 0)]])
  }

  /** The values of an enum, a const, or alternatives of these, where a schema is nothing else; null: it is. */
  #valuesOf(schema: unknown): readonly unknown[] | null {
    const values = this.#budget.within(() => this.#listedIn(schema))
    this.#budget.spend(1 + (values?.length ?? 0))
    return values
  }

  #listedIn(schema: unknown): readonly unknown[] | null {
    if (!isSchemaObject(schema)) return null
    const { enum: list, const: one, anyOf, $ref, type, ...others } = schema
    if (!Object.keys(others).every(isAnnotation)) return null
    const [rule, ...more] = [list, one, anyOf, $ref].filter((keyword) => keyword !== undefined)
    if (more.length > 0) return null
    if (rule === undefined) return type === 'boolean' ? [true, false] : null
    const isTyped = (value: unknown) =>
      type === undefined || isOf(typeOf(value), [type].flat() as Type[])
    const values =
      list !== undefined
        ? asList(list, '#')
        : $ref !== undefined
          ? this.#valuesOf(this.#resolve($ref, '#'))
          : anyOf === undefined
            ? [one]
            : asList(anyOf, '#').map((each) => this.#valuesOf(each))
    if (!values || (anyOf !== undefined && values.includes(null))) return null
    return (anyOf === undefined ? values : values.flat()).filter(isTyped)
  }

  #resolve(ref: unknown, at: string): unknown {
    if (ref === '#') return this.#root
    if (typeof ref !== 'string' || !ref.startsWith('#/')) {
      throw unsupported(at, `a $ref to ${JSON.stringify(ref)}`)
    }
    this.#budget.spend(1 + (ref.length >> 3))
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

/** Whether names of properties are not just any texts. */
function isRestricting(propertyNames: unknown): boolean {
  if (propertyNames === undefined || propertyNames === true) return false
  if (!isSchemaObject(propertyNames)) return true
  return Object.entries(propertyNames).some(
    ([name, one]) => !isAnnotation(name) && !(name === 'type' && one === 'string'),
  )
}

/** Items by two numbers, each made once. */
function memoized(make: (i: number, n: number) => Item): (i: number, n: number) => Item {
  const items = new Map<string, Item>()
  return (i, n) => {
    const key = `${i} ${n}`
    const item = items.get(key) ?? make(i, n)
    items.set(key, item)
    return item
  }
}

/** What `not` says: that no value is right, or nothing (it is not there). */
function isAnything(not: unknown, at: string): boolean {
  if (not === undefined || not === false) return false
  const isAny = isSchemaObject(not) && Object.keys(not).every(isAnnotation)
  if (not === true || isAny) return true
  throw unsupported(at, 'a not other than of any value')
}

/** The larger of two bounds, or the lesser with the sign -1. */
function largest(a: number | undefined, b: number | undefined, sign = 1): number | undefined {
  if (a === undefined || b === undefined) return a ?? b
  return sign * Math.max(sign * a, sign * b)
}

/** The keywords of one schema; those that nobody takes restrict in a way that we cannot hold to. */
class Keywords {
  readonly #schema: SchemaObject
  readonly #at: string
  readonly #taken = new Set<string>()

  constructor(schema: SchemaObject, at: string) {
    this.#schema = schema
    this.#at = at
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#schema, name)
  }

  take(name: string): unknown {
    this.#taken.add(name)
    return this.has(name) ? this.#schema[name] : undefined
  }

  /** Those of `type`; null without it. */
  types(): readonly Type[] | null {
    const type = this.take('type')
    if (type === undefined) return null
    return [...new Set([type].flat() as unknown[])].map((one) => {
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
      if (this.#taken.has(name) || isAnnotation(name)) continue
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

/** What is thrown for a schema that no answer can be held to. */
export function unsupported(at: string, what: string): ZipCacheError {
  return new ZipCacheError(
    'ERR_ZC_UNSUPPORTED',
    `json: the schema at ${at} has ${what}, which is not supported`,
    { argument: 'json' },
  )
}
