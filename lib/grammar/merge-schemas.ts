/** JSON schemas that hold at once, as one. */
import type { Budget } from './budget.js'

/** A JSON schema: true, false, or an object of keywords. */
export type JsonSchema = boolean | { readonly [keyword: string]: unknown }

/** Keywords by their names. */
export type SchemaObject = Exclude<JsonSchema, boolean>

/** Keywords that describe and do not restrict. */
const ANNOTATIONS = new Set([
  ...['title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly'],
  ...['$schema', '$id', '$comment', '$defs', 'definitions', 'strict', 'name'],
  // OpenAPI's, and what texts are to be taken for.
  ...['example', 'contentEncoding', 'contentMediaType', 'contentSchema'],
  // Says which alternative is meant by which value of a property; pydantic writes it.
  'discriminator',
])

/** Whether a keyword describes and does not restrict; `x-…` are extensions, as OpenAPI has them. */
export function isAnnotation(keyword: string): boolean {
  return ANNOTATIONS.has(keyword) || keyword.startsWith('x-')
}

/** The types of values, as the keyword `type` has them. */
export const TYPES = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const
export type Type = (typeof TYPES)[number]

/** Whether a value of a type is of one of these: whole numbers are numbers, too. */
export function isOf(type: Type, types: readonly Type[]): boolean {
  return types.includes(type) || (type === 'integer' && types.includes('number'))
}

/** The types that are among both. */
export function meet(types: readonly Type[], others: readonly Type[]): Type[] {
  return types.flatMap((type) => {
    if (isOf(type, others)) return [type]
    return type === 'number' && others.includes('integer') ? ['integer'] : []
  })
}

export function isSchemaObject(schema: unknown): schema is SchemaObject {
  return typeof schema === 'object' && schema !== null && !Array.isArray(schema)
}

/** Keywords of older drafts and of OpenAPI 3.0 in today's words; the same object where there are none. */
export function inTodaysWords(schema: SchemaObject): SchemaObject {
  const { nullable, exclusiveMinimum, exclusiveMaximum, minimum, maximum, ...others } = schema
  const isOld = typeof exclusiveMinimum === 'boolean' || typeof exclusiveMaximum === 'boolean'
  if (typeof nullable !== 'boolean' && !isOld) return schema
  const bounds = {
    minimum: exclusiveMinimum === true ? undefined : minimum,
    maximum: exclusiveMaximum === true ? undefined : maximum,
    exclusiveMinimum: typeof exclusiveMinimum === 'boolean' ? undefined : exclusiveMinimum,
    exclusiveMaximum: typeof exclusiveMaximum === 'boolean' ? undefined : exclusiveMaximum,
    ...(exclusiveMinimum === true ? { exclusiveMinimum: minimum } : {}),
    ...(exclusiveMaximum === true ? { exclusiveMaximum: maximum } : {}),
  }
  const own = Object.entries(bounds).filter(([, bound]) => bound !== undefined)
  const plain: SchemaObject = { ...others, ...Object.fromEntries(own) }
  if (nullable !== true) return plain
  const { type } = plain
  if (type !== undefined) return { ...plain, type: [...[type].flat(), 'null'] }
  return { anyOf: [plain, { type: 'null' }] }
}

/** Why schemas that hold at once are not taken. */
export class MergeError extends Error {
  /** Whether they mean something, which we do not take. */
  readonly isUnsupported: boolean

  constructor(what: string, isUnsupported = true) {
    super(what)
    this.isUnsupported = isUnsupported
  }
}

/** What a merger needs to know. */
export interface MergeContext {
  /** The schema that a $ref names; throws where there is none. */
  resolve(ref: unknown): unknown
  /** What the schemas may take. */
  readonly budget: Budget
}

/** Alternatives, one of which holds. */
interface Either {
  readonly anyOf: readonly unknown[]
}

const COMBINERS: ReadonlySet<string> = new Set(['allOf', 'anyOf', 'oneOf', '$ref'])

/** Makes one schema of several that hold at once. */
export class SchemaMerger {
  readonly #context: MergeContext
  readonly #ids = new WeakMap<object, number>()
  #nIds = 0
  /** By the schemas that they are made of: they may refer to themselves. */
  readonly #merged = new Map<string, JsonSchema>()
  readonly #plain = new WeakMap<object, SchemaObject>()
  /** Schemas without what they combine. */
  readonly #own = new WeakMap<object, SchemaObject>()
  readonly #eithers = new WeakMap<object, Either>()

  constructor(context: MergeContext) {
    this.#context = context
  }

  /**
   * A schema in which one keyword alone combines others, if any does, and none beside it restricts but
   * `type`; null: it is so already. Throws a `MergeError` where keywords of several cannot be made one.
   */
  merge(schema: SchemaObject): JsonSchema | null {
    const combiners = [...COMBINERS].filter((name) => Object.hasOwn(schema, name))
    const { allOf } = schema
    const isOne = combiners.length === 1 && !(Array.isArray(allOf) && allOf.length > 1)
    const isAlone = Object.keys(schema).every(
      (name) => COMBINERS.has(name) || isAnnotation(name) || name === 'type',
    )
    if (combiners.length === 0 || (isOne && isAlone)) return null
    const parts = this.#partsOf([schema])
    const key = parts.map((part) => this.#idOf(part)).join()
    let merged = this.#merged.get(key)
    if (merged === undefined) {
      merged = this.#join(parts)
      this.#merged.set(key, merged)
    }
    return merged
  }

  #idOf(part: SchemaObject | Either | false): number {
    if (part === false) return -1
    const id = this.#ids.get(part) ?? this.#nIds++
    this.#ids.set(part, id)
    return id
  }

  /** What has to hold, each without a keyword that combines, or alternatives; each once. */
  #partsOf(schemas: readonly unknown[]): (SchemaObject | Either | false)[] {
    const parts = new Set<SchemaObject | Either | false>()
    const seen = new Set<unknown>()
    const { budget, resolve } = this.#context
    const add = (given: unknown): void => {
      if (given === true || seen.has(given)) return
      seen.add(given)
      if (given === false) parts.add(false)
      else if (!isSchemaObject(given)) throw new MergeError('has what is no schema', false)
      else {
        const schema = this.#plainOf(given)
        const { allOf = [], anyOf, oneOf, $ref, ...own } = schema
        budget.spend(1 + Object.keys(schema).length)
        if (Object.keys(own).some((name) => !isAnnotation(name)))
          parts.add(this.#ownOf(schema, own))
        budget.within(() => {
          if ($ref !== undefined) add(resolve($ref))
          for (const one of listOf(allOf)) add(one)
        })
        for (const list of [anyOf, oneOf]) if (list !== undefined) parts.add(this.#either(list))
      }
    }
    schemas.forEach(add)
    return [...parts]
  }

  #plainOf(schema: SchemaObject): SchemaObject {
    const plain = this.#plain.get(schema) ?? inTodaysWords(schema)
    this.#plain.set(schema, plain)
    return plain
  }

  #ownOf(schema: SchemaObject, own: SchemaObject): SchemaObject {
    const known = this.#own.get(schema) ?? own
    this.#own.set(schema, known)
    return known
  }

  #either(given: unknown): Either {
    const list = listOf(given)
    const either = this.#eithers.get(list) ?? { anyOf: list }
    this.#eithers.set(list, either)
    return either
  }

  #join(parts: readonly (SchemaObject | Either | false)[]): JsonSchema {
    const eithers: Either[] = []
    const plains: SchemaObject[] = []
    for (const part of parts) {
      if (part === false) return false
      if ('anyOf' in part) eithers.push(part as Either)
      else plains.push(part)
    }
    const plain = this.#joinPlain(plains)
    if (plain === false) return false
    const [first, ...others] = eithers
    if (!first) return plain
    this.#context.budget.spend(first.anyOf.length * (2 + others.length))
    return { anyOf: first.anyOf.map((one) => ({ allOf: [plain, ...others, one] })) }
  }

  /** By halves: each keyword is copied a few times, not once for each schema beside it. */
  #joinPlain(parts: readonly SchemaObject[]): SchemaObject | false {
    if (parts.length <= 1) return parts[0] ?? {}
    const half = parts.length >> 1
    const [a, b] = [this.#joinPlain(parts.slice(0, half)), this.#joinPlain(parts.slice(half))]
    return a && b && bothOf(a, b, this.#context.budget)
  }
}

function listOf(list: unknown): readonly unknown[] {
  if (Array.isArray(list)) return list
  throw new MergeError('has no list where one is needed', false)
}

/** Keywords whose bounds the greater, or the lesser, of two holds. */
const LEAST = new Set(['minimum', 'exclusiveMinimum', 'minLength', 'minItems', 'minProperties'])
const MOST = new Set(['maximum', 'exclusiveMaximum', 'maxLength', 'maxItems', 'maxProperties'])
/** Which properties there may be: taken together below. */
const OF_OBJECTS = ['properties', 'additionalProperties', 'patternProperties', 'propertyNames']
/** Which items there may be. */
const OF_ARRAYS = ['items', 'prefixItems', 'additionalItems']

/** What both of two schemas allow that combine no others; false: nothing, as far as their types tell. */
function bothOf(a: SchemaObject, b: SchemaObject, budget: Budget): SchemaObject | false {
  budget.spend(Object.keys(a).length + Object.keys(b).length)
  const both: Record<string, unknown> = { ...b, ...a }
  for (const name of Object.keys(a)) {
    if (!Object.hasOwn(b, name) || isAnnotation(name)) continue
    if (OF_OBJECTS.includes(name) || OF_ARRAYS.includes(name)) continue
    const joined = joinedKeyword(name, a[name], b[name], budget)
    if (joined === false) return false
    both[name] = joined
  }
  // A pattern would be taken for the format beside it.
  if (differ(a, b, 'pattern', 'format') || differ(b, a, 'pattern', 'format')) {
    throw new MergeError('a pattern and a format of several schemas')
  }
  if (differ(a, b, 'const', 'enum') || differ(b, a, 'const', 'enum')) {
    throw new MergeError('a const and an enum of several schemas')
  }
  if (hasAny(a, OF_OBJECTS) && hasAny(b, OF_OBJECTS))
    Object.assign(both, propertiesOfBoth(a, b, budget))

  if (hasAny(a, OF_ARRAYS) && hasAny(b, OF_ARRAYS)) {
    delete both.additionalItems
    Object.assign(both, itemsOfBoth(a, b, budget))
  }
  return both
}

function differ(a: SchemaObject, b: SchemaObject, one: string, other: string): boolean {
  const isApart = Object.hasOwn(a, one) && Object.hasOwn(b, other)
  return isApart && !(Object.hasOwn(a, other) && Object.hasOwn(b, one))
}

const hasAny = (schema: SchemaObject, names: readonly string[]) =>
  names.some((name) => Object.hasOwn(schema, name))

/** A keyword that both have; false: nothing is of both. */
function joinedKeyword(name: string, a: unknown, b: unknown, budget: Budget): unknown {
  if (budget.json(a) === budget.json(b)) return a
  if (name === 'type') {
    for (const type of [a, b].flat()) {
      if (TYPES.includes(type as Type)) continue
      const what = `has the type ${JSON.stringify(type)}, expected ${TYPES.join(', ')}`
      throw new MergeError(what, false)
    }
    const types = meet([a].flat() as Type[], [b].flat() as Type[])
    return types.length > 0 && types
  }
  if (name === 'required') {
    budget.spend(listOf(a).length + listOf(b).length)
    return [...new Set([...listOf(a), ...listOf(b)])]
  }
  if (name === 'enum') {
    const others = new Set(listOf(b).map((one) => budget.json(one)))
    return listOf(a).filter((one) => others.has(budget.json(one)))
  }
  if (name === 'const') return false
  if (name === 'uniqueItems') return a === true || b === true
  const areNumbers = typeof a === 'number' && typeof b === 'number'
  if (areNumbers && LEAST.has(name)) return Math.max(a, b)
  if (areNumbers && MOST.has(name)) return Math.min(a, b)
  if (areNumbers && name === 'multipleOf' && Number.isSafeInteger(a) && Number.isSafeInteger(b)) {
    const common = (a / divisorOf(a, b)) * b
    if (Number.isSafeInteger(common)) return common
  }
  throw new MergeError(`the keyword ${JSON.stringify(name)} of several schemas`)
}

function divisorOf(a: number, b: number): number {
  return b === 0 ? a : divisorOf(b, a % b)
}

/** The keywords of properties that both allow. */
function propertiesOfBoth(a: SchemaObject, b: SchemaObject, budget: Budget): SchemaObject {
  const others = ['patternProperties', 'propertyNames'].filter(
    (name) => Object.hasOwn(a, name) || Object.hasOwn(b, name),
  )
  const [rule] = others.filter((name) => !isOfAnyText(a[name]) || !isOfAnyText(b[name]))
  if (rule !== undefined) throw new MergeError(`the keyword ${JSON.stringify(rule)} beside others`)
  const named = [a, b].map(({ properties = {} }) => {
    if (isSchemaObject(properties)) return properties
    throw new MergeError('has properties that are no object', false)
  }) as [SchemaObject, SchemaObject]
  const additional = allOf([a.additionalProperties ?? true, b.additionalProperties ?? true])
  const names = new Set(named.flatMap((properties) => Object.keys(properties)))
  budget.spend(2 * names.size)
  const ruleOf = (
    name: string,
    properties: SchemaObject,
    { additionalProperties }: SchemaObject,
  ) => (Object.hasOwn(properties, name) ? properties[name] : (additionalProperties ?? true))
  const properties = [...names].map((name) => [
    name,
    allOf([ruleOf(name, named[0], a), ruleOf(name, named[1], b)]),
  ])
  return {
    ...(names.size > 0 ? { properties: Object.fromEntries(properties) } : {}),
    additionalProperties: additional,
  }
}

/** Whether names may be any, as zod says of records. */
function isOfAnyText(names: unknown): boolean {
  if (!isSchemaObject(names)) return names === undefined
  return names.type === 'string' && Object.keys(names).length === 1
}

/** The keywords of items that both allow. */
function itemsOfBoth(a: SchemaObject, b: SchemaObject, budget: Budget): SchemaObject {
  const [first, second] = [a, b].map(({ prefixItems = [], items = true, additionalItems }) => {
    const isOld = Array.isArray(items)
    return isOld
      ? { first: items as readonly unknown[], of: additionalItems ?? true }
      : { first: listOf(prefixItems), of: items }
  }) as [ItemRules, ItemRules]
  const count = Math.max(first.first.length, second.first.length)
  budget.spend(2 * count)
  const ruleOf = ({ first, of }: ItemRules, i: number) => first[i] ?? of
  return {
    prefixItems: Array.from({ length: count }, (_, i) =>
      allOf([ruleOf(first, i), ruleOf(second, i)]),
    ),
    items: allOf([first.of, second.of]),
  }
}

interface ItemRules {
  readonly first: readonly unknown[]
  readonly of: unknown
}

function allOf(schemas: readonly unknown[]): unknown {
  if (schemas.includes(false)) return false
  const isAny = (schema: unknown) =>
    schema === true || (isSchemaObject(schema) && Object.keys(schema).length === 0)
  const rules = schemas.filter((schema) => !isAny(schema))
  if (rules.length <= 1) return rules[0] ?? true
  return { allOf: rules }
}
