import { isJsonObject, type JsonObject } from '../model/model-files.js'

/** Elements one after the other, each with a name and a text. */
interface ElementTags {
  readonly open: string
  /** What ends the name, and, white space apart, what else stands before the text. */
  readonly named: readonly string[]
  readonly close: string
}

/** How calls are written whose arguments stand between tags, each by itself and without quotes. */
export interface CallTags {
  /** Of calls; null: a call is its name, and then its arguments. */
  readonly call: ElementTags | null
  /** Of the arguments of a call. */
  readonly argument: ElementTags
  /** Values stand in lines of their own. */
  readonly hasLines: boolean
}

/**
 * Of Qwen3-Coder, and Seed-OSS without the newlines: `<function=NAME>`, for each argument
 * `<parameter=KEY>\nVALUE\n</parameter>`, `</function>`.
 */
export const FUNCTION_TAGS: CallTags = {
  call: { open: '<function=', named: ['>'], close: '</function>' },
  argument: { open: '<parameter=', named: ['>'], close: '</parameter>' },
  hasLines: true,
}

/** Of MiniMax-M2: `<invoke name="NAME">`, for each argument `<parameter name="KEY">VALUE</parameter>`, `</invoke>`. */
export const INVOKE_TAGS: CallTags = {
  call: { open: '<invoke name="', named: ['">'], close: '</invoke>' },
  argument: { open: '<parameter name="', named: ['">'], close: '</parameter>' },
  hasLines: false,
}

/** Of GLM-4.5 and 4.6: NAME, for each argument `<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>`. */
export const KEY_TAGS: CallTags = {
  call: null,
  argument: { open: '<arg_key>', named: ['</arg_key>', '<arg_value>'], close: '</arg_value>' },
  hasLines: false,
}

/** The functions that there are. */
export interface TaggedContext {
  readonly names: ReadonlySet<string>
  parametersOf(name: string): unknown
}

/** A call, its arguments as the text of a JSON object. */
export interface TaggedCall {
  readonly name: string
  readonly args: string
}

/**
 * The calls of a text that is nothing but calls; null for any other. A name alone is one if there is such a
 * function.
 *
 * - `parametersOf`: the JSON schema of a function's arguments, which says what is a text and what is not
 */
export function readTagged(
  text: string,
  { call, argument, hasLines }: CallTags,
  { names, parametersOf }: TaggedContext,
): TaggedCall[] | null {
  const calls = call ? elementsOf(text, call) : [nameAndBody(text)]
  const read = calls?.map(({ name, text: body }) => {
    const members = elementsOf(body, argument)?.map((own) => {
      const key = own.name.trim()
      const value = hasLines ? withoutLineEnds(own.text) : own.text
      return `${JSON.stringify(key)}: ${jsonOf(value, typesOfArgument(parametersOf(name), key))}`
    })
    const isCall = call !== null || members?.length !== 0 || names.has(name)
    return members && isCall && /^[^\s<>]+$/.test(name)
      ? { name, args: `{${members.join(', ')}}` }
      : null
  })
  return read && read.length > 0 && read.every((own) => own !== null) ? read : null
}

/** Whether a text ends where calls may end, as far as that can be told without reading it. */
export function mayBeTagged(text: string, { call, argument }: CallTags): boolean {
  const end = text.trimEnd()
  if (call) return end.endsWith(call.close)
  return end.endsWith(argument.close) || !end.includes('<')
}

/** The elements of a text that is nothing but them; null for any other. Takes time in proportion to its length. */
function elementsOf(
  text: string,
  { open, named, close }: ElementTags,
): { name: string; text: string }[] | null {
  const [nameTag = '', ...others] = named
  const elements = []
  for (let at = behindSpace(text, 0); at < text.length; ) {
    if (!text.startsWith(open, at)) return null
    const nameAt = at + open.length
    const nameEnd = text.indexOf(nameTag, nameAt)
    if (nameEnd < 0) return null
    let from = nameEnd + nameTag.length
    for (const tag of others) {
      from = behindSpace(text, from)
      if (!text.startsWith(tag, from)) return null
      from += tag.length
    }
    // It may have tags in it: it ends where another one begins, or nothing is left.
    let end = from - 1
    do {
      end = text.indexOf(close, end + 1)
      if (end < 0) return null
      at = behindSpace(text, end + close.length)
    } while (at < text.length && !text.startsWith(open, at))
    elements.push({ name: text.slice(nameAt, nameEnd), text: text.slice(from, end) })
  }
  return elements
}

/** Where white space that begins at a place has ended. */
function behindSpace(text: string, at: number): number {
  const space = /\s*/y
  space.lastIndex = at
  space.exec(text)
  return space.lastIndex
}

function nameAndBody(text: string): { name: string; text: string } {
  const at = text.search(/<|$/)
  return { name: text.slice(0, at).trim(), text: text.slice(at) }
}

function withoutLineEnds(text: string): string {
  return text.replace(/^\n/, '').replace(/\n$/, '')
}

/** JSON's words as Python has them, which templates write, too. */
const PYTHON: Readonly<Record<string, string>> = { True: 'true', False: 'false', None: 'null' }

/** A value as JSON: what it is by its types, if they allow a text and something else that, too, the latter. */
export function jsonOf(text: string, types: ReadonlySet<string> | null): string {
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
export function typesOfArgument(parameters: unknown, key: string): ReadonlySet<string> | null {
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
  const choices = schema.anyOf ?? schema.oneOf
  if (choices === undefined && Array.isArray(schema.allOf)) {
    // One part says it, others bound it.
    const parts = schema.allOf.filter(isJsonObject).map((part) => typesOf(part, root, seen))
    return parts.find((part) => part !== null && part.size > 0) ?? null
  }
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
