import { isJsonObject, type JsonObject } from '../model/model-files.js'

/** How calls are written whose arguments stand between tags, each by itself and without quotes. */
export interface CallTags {
  /** What such calls end with, as a text between their marks does. */
  readonly end: RegExp
  /** All calls of a text, with the groups `name` and `body`. */
  readonly call: RegExp
  /** All arguments of a call's body, with the groups `key` and `value`. */
  readonly argument: RegExp
}

// A value may have tags in it: one ends where another begins, or nothing is left.

/**
 * Of Qwen3-Coder, and Seed-OSS without the newlines: `<function=NAME>`, for each argument
 * `<parameter=KEY>\nVALUE\n</parameter>`, `</function>`.
 */
export const FUNCTION_TAGS: CallTags = {
  end: /<\/function>\s*$/,
  call: /<function=(?<name>[^>\s]+)>(?<body>.*?)<\/function>(?=\s*(?:<function=|$))/gs,
  argument: /<parameter=(?<key>[^>]+)>\n?(?<value>.*?)\n?<\/parameter>(?=\s*(?:<parameter=|$))/gs,
}

/** Of MiniMax-M2: `<invoke name="NAME">`, for each argument `<parameter name="KEY">VALUE</parameter>`, `</invoke>`. */
export const INVOKE_TAGS: CallTags = {
  end: /<\/invoke>\s*$/,
  call: /<invoke name="?(?<name>[^">]+)"?>(?<body>.*?)<\/invoke>(?=\s*(?:<invoke |$))/gs,
  argument:
    /<parameter name="?(?<key>[^">]+)"?>(?<value>.*?)<\/parameter>(?=\s*(?:<parameter |$))/gs,
}

/** Of GLM-4.5 and 4.6: NAME, for each argument `<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>`. */
export const KEY_TAGS: CallTags = {
  end: /^\s*[^\s<>{]+\s*$|<\/arg_value>\s*$/,
  call: /^\s*(?<name>[^\s<>{]+)\s*(?<body>(?:<.*)?)$/gs,
  argument:
    /<arg_key>(?<key>.*?)<\/arg_key>\s*<arg_value>(?<value>.*?)<\/arg_value>(?=\s*(?:<arg_key>|$))/gs,
}

/** A call, its arguments as the text of a JSON object. */
export interface TaggedCall {
  readonly name: string
  readonly args: string
}

/**
 * The calls of a text that is nothing but calls; null for any other.
 *
 * - `parametersOf`: the JSON schema of a function's arguments, which says what is a text and what is not
 */
export function readTagged(
  text: string,
  tags: CallTags,
  parametersOf: (name: string) => unknown,
): TaggedCall[] | null {
  const calls = allOf(tags.call, text)?.map(({ name = '', body = '' }) => {
    const members = allOf(tags.argument, body)?.map(({ key = '', value = '' }) => {
      const types = typesOfArgument(parametersOf(name), key.trim())
      return `${JSON.stringify(key.trim())}: ${jsonOf(value, types)}`
    })
    return members ? { name, args: `{${members.join(', ')}}` } : null
  })
  return calls && calls.length > 0 && calls.every((call) => call !== null) ? calls : null
}

/** The groups of all matches; null where there is more than these and white space. */
function allOf(expression: RegExp, text: string): Record<string, string | undefined>[] | null {
  if (text.replace(expression, '').trim() !== '') return null
  return [...text.matchAll(expression)].map(({ groups }) => groups ?? {})
}

/** JSON's words as Python has them, which templates write, too. */
const PYTHON: Readonly<Record<string, string>> = { True: 'true', False: 'false', None: 'null' }

/** A value as JSON: what it is by its types, if they allow a text and something else that, too, the latter. */
function jsonOf(text: string, types: ReadonlySet<string> | null): string {
  const word = text.trim()
  const json = PYTHON[word] ?? word
  const type = typeOf(json)
  // Numbers stay as they are written.
  const isMeant = types === null || types.has(type) || (type === 'integer' && types.has('number'))
  return type !== 'string' && isMeant ? json : JSON.stringify(text)
}

/** What a text is as JSON; a text where it is none. */
function typeOf(json: string): string {
  try {
    const value: unknown = JSON.parse(json)
    if (value === null) return 'null'
    if (Array.isArray(value)) return 'array'
    return Number.isInteger(value) ? 'integer' : typeof value
  } catch {
    return 'string'
  }
}

/** The types that an argument may have; null: any, or nobody knows. */
function typesOfArgument(parameters: unknown, key: string): ReadonlySet<string> | null {
  const { properties } = isJsonObject(parameters) ? parameters : {}
  const own = isJsonObject(properties) && Object.hasOwn(properties, key) ? properties[key] : null
  return isJsonObject(own) ? typesOf(own, parameters as JsonObject, new Set()) : null
}

/** Schemas of one argument that are looked at. */
const MAX_SCHEMAS = 256

/** `seen`: those that were looked at; some contain themselves. */
function typesOf(
  schema: JsonObject,
  root: JsonObject,
  seen: Set<JsonObject>,
): ReadonlySet<string> | null {
  if (seen.has(schema)) return new Set()
  if (seen.add(schema).size > MAX_SCHEMAS) return null
  const { type, nullable, $ref } = schema
  const types = [type].flat().filter((own) => typeof own === 'string')
  if (types.length > 0) return new Set(nullable === true ? [...types, 'null'] : types)
  const values = Array.isArray(schema.enum) ? schema.enum : 'const' in schema ? [schema.const] : []
  if (values.length > 0) return new Set(values.map((value) => typeOf(JSON.stringify(value))))
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf
  const others = typeof $ref === 'string' ? [referred($ref, root)] : choices
  if (!Array.isArray(others)) return null
  const all = new Set<string>()
  for (const other of others) {
    const own = isJsonObject(other) ? typesOf(other, root, seen) : null
    if (own === null) return null
    for (const one of own) all.add(one)
  }
  return all
}

function referred(path: string, root: JsonObject): unknown {
  let at: unknown = root
  for (const part of path.split('/').slice(1)) {
    const key = part.replaceAll('~1', '/').replaceAll('~0', '~')
    at = isJsonObject(at) && Object.hasOwn(at, key) ? at[key] : undefined
  }
  return at
}
