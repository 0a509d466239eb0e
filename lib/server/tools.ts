import { type JsonSchema, MAX_PARTS } from '../grammar/index.js'
import { invalid } from './api-error.js'
import { describe, Fields, isObject, type JsonObject } from './fields.js'
import { checkSchema } from './json-schema.js'

/** What a chat may call. */
export interface ToolRequest {
  /** As the chat template takes them; empty: none. */
  readonly tools: readonly JsonObject[]
  /** Their names. */
  readonly names: ReadonlySet<string>
  /** Whether the answer has to be a call: of this function, or (null) of any; undefined: it may be. */
  readonly forced: string | null | undefined
  /** Whether one answer may have several calls. */
  readonly isParallel: boolean
  /** Which API names their fields. */
  readonly style: ToolStyle
}

/** How an API writes functions, and the choice of one. */
export interface ToolStyle {
  /** The path from such an object to the function's fields. */
  readonly at: '' | '.function'
  /** Such an object, as errors show it. */
  readonly example: string
  /** The function's fields; undefined where they are not there. */
  functionOf(object: JsonObject): JsonObject | undefined
  /** The `mode` and `tools` of a choice among some of the tools. */
  allowedOf(choice: JsonObject): unknown
  /** The object as chat templates take it; `where`: its own path. Throws an `ApiError` 400. */
  templateTool(object: JsonObject, where: string): JsonObject
}

/** Chat completions': `{ "type": "function", "function": { "name", … } }`. */
export const CHAT_TOOLS: ToolStyle = {
  at: '.function',
  example: '{ "type": "function", "function": { "name": … } }',
  functionOf: (object) => (isObject(object.function) ? object.function : undefined),
  allowedOf: (choice) => choice.allowed_tools,
  templateTool: (object) => ({ ...object, function: toldToModel(object.function as JsonObject) }),
}

/** Responses': `{ "type": "function", "name", … }`. */
export const RESPONSE_TOOLS: ToolStyle = {
  at: '',
  example: '{ "type": "function", "name": … }',
  functionOf: (object) => object,
  allowedOf: (choice) => choice,
  templateTool({ type, ...own }, where) {
    const fields = new Fields(own, `${where}.`)
    fields.ignore(['name', 'description', 'parameters', 'strict'])
    if (fields.boolean('defer_loading')) {
      throw invalid(fields.path('defer_loading'), 'is true; all tools are told at once')
    }
    fields.done()
    return { type, function: toldToModel(own) }
  },
}

/** A function without what is said to the server alone, and without what is not said. */
function toldToModel({ strict: _, defer_loading: __, ...own }: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(own).filter(([, value]) => value !== null))
}

const MAX_TOOLS = 128
const NAME = /^[\w.-]{1,64}$/

/** `tools`, `tool_choice` and `parallel_tool_calls`. Throws an `ApiError` 400. */
export function readTools(fields: Fields, style: ToolStyle): ToolRequest {
  const all = (fields.list('tools', MAX_TOOLS) ?? []).map((tool, i) => readTool(tool, i, style))
  const isParallel = fields.boolean('parallel_tool_calls') ?? true
  const asked = fields.raw('tool_choice') ?? 'auto'
  const { choice, tools } =
    isObject(asked) && asked.type === 'allowed_tools'
      ? allowedTools(style.allowedOf(asked), all, style)
      : { choice: asked, tools: all }
  const names = new Set(tools.map(nameOf))
  const may = { tools, names, forced: undefined, isParallel, style }
  if (choice === 'none') return { ...may, tools: [], names: new Set() }
  if (choice === 'auto') return may
  if (choice === 'required') {
    if (names.size === 0) throw invalid('tool_choice', 'is required, but there are no tools')
    return { ...may, forced: null }
  }
  const named =
    isObject(choice) && choice.type === 'function' ? style.functionOf(choice) : undefined
  if (typeof named?.name !== 'string') {
    const expected = `auto, none, required, or ${style.example}`
    throw invalid('tool_choice', `is ${describe(choice)}, expected ${expected}`)
  }
  if (names.has(named.name)) return { ...may, forced: named.name }
  throw invalid('tool_choice', `names ${describe(named.name)}, which is none of the tools`)
}

/** Some of the tools, as if there were no others. */
function allowedTools(allowed: unknown, all: readonly JsonObject[], style: ToolStyle) {
  const { mode = 'auto', tools: some } = isObject(allowed) ? allowed : {}
  const names = Array.isArray(some)
    ? some.map((tool) => (isObject(tool) ? style.functionOf(tool)?.name : undefined))
    : []
  const tools = all.filter((tool) => names.includes(nameOf(tool)))
  const isKnown = (name: unknown) => tools.some((tool) => nameOf(tool) === name)
  if ((mode === 'auto' || mode === 'required') && names.length > 0 && names.every(isKnown)) {
    return { choice: mode, tools }
  }
  throw invalid('tool_choice', 'allows no tools, or others than there are')
}

/** A tool as chat templates take it, which is as chat completions have it. */
function readTool(tool: unknown, i: number, style: ToolStyle): JsonObject {
  const where = `tools[${i}]`
  if (!isObject(tool)) throw invalid(where, `is ${describe(tool)}, expected ${style.example}`)
  if (tool.type !== 'function') {
    throw invalid(`${where}.type`, `is ${describe(tool.type)}, this server has functions only`)
  }
  const called = style.functionOf(tool)
  if (!called) throw invalid(where, `expected ${style.example}`)
  const { name, parameters } = called
  if (typeof name !== 'string' || !NAME.test(name)) {
    const expected = 'up to 64 of a-z, 0-9, _.-'
    throw invalid(`${where}${style.at}.name`, `is ${describe(name)}, expected ${expected}`)
  }
  if (parameters !== undefined && parameters !== null && !isObject(parameters)) {
    throw invalid(`${where}${style.at}.parameters`, 'expected a JSON schema')
  }
  return style.templateTool(tool, where)
}

const functionOf = (tool: JsonObject) => tool.function as JsonObject
const nameOf = (tool: JsonObject) => functionOf(tool).name as string

/** What says of a schema which values it takes. */
const SAYS_WHAT = ['type', '$ref', 'anyOf', 'oneOf', 'allOf', 'enum', 'const']

/** The schema of a tool's arguments: an object, whether it says so or not. */
function parametersOf(tool: JsonObject): JsonObject {
  const parameters = (functionOf(tool).parameters as JsonObject | null | undefined) ?? {}
  return SAYS_WHAT.some((key) => key in parameters) ? parameters : { type: 'object', ...parameters }
}

/** The schema of a function's arguments, of tools as templates take them; undefined: there is no such function. */
export function parametersIn(tools: readonly JsonObject[], name: string): JsonObject | undefined {
  const tool = tools.find((own) => nameOf(own) === name)
  return tool && parametersOf(tool)
}

/**
 * The schema of an answer that has to be a call, as `makeForcedParser` reads it; null where it need
 * not be one. Throws an `ApiError` 400 for parameters that answers cannot be held to.
 */
export function forcedSchema({ tools, forced, style }: ToolRequest): JsonSchema | null {
  if (forced === undefined) return null
  let nParts = 0
  for (const [i, own] of tools.entries()) {
    if (forced !== null && nameOf(own) !== forced) continue
    const param = `tools[${i}]${style.at}.parameters`
    nParts += checkSchema(parametersOf(own), param)
    if (nParts <= MAX_PARTS) continue
    throw invalid(param, `makes the schemas too large: all have more than ${MAX_PARTS} parts`)
  }
  const tool = tools.find((own) => nameOf(own) === forced)
  if (tool) return parametersOf(tool)
  return {
    anyOf: tools.map((own, i) => ({
      type: 'object',
      properties: {
        name: { const: nameOf(own) },
        arguments: moved(parametersOf(own), `#/anyOf/${i}/properties/arguments`),
      },
      required: ['name', 'arguments'],
    })),
  }
}

/**
 * The schemas of the calls that an answer may make, by their functions, for a format that tells these
 * apart by itself: held to where the answer has to be a call, else any object.
 */
export function callSchemas({ tools, forced }: ToolRequest): Record<string, true | JsonSchema> {
  const meant = tools.filter((own) => typeof forced !== 'string' || nameOf(own) === forced)
  return Object.fromEntries(
    meant.map((own) => [nameOf(own), forced === undefined ? true : parametersOf(own)]),
  )
}

/** A schema whose references into itself go on to find what they mean at another place. */
function moved(schema: unknown, to: string): unknown {
  if (Array.isArray(schema)) return schema.map((one) => moved(one, to))
  if (!isObject(schema)) return schema
  return Object.fromEntries(
    Object.entries(schema).map(([key, value]) => {
      const isOwn = key === '$ref' && typeof value === 'string' && value.startsWith('#')
      return [key, isOwn ? to + value.slice(1) : moved(value, to)]
    }),
  )
}
