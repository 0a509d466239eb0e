import type { JsonSchema } from '../grammar/index.js'
import { invalid } from './api-error.js'
import { describe, type Fields, isObject, type JsonObject } from './fields.js'
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
}

const MAX_TOOLS = 128
const NAME = /^[\w.-]{1,64}$/

/** `tools`, `tool_choice` and `parallel_tool_calls`. Throws an `ApiError` 400. */
export function readTools(fields: Fields): ToolRequest {
  const tools = (fields.list('tools', MAX_TOOLS) ?? []).map(readTool)
  const names = new Set(tools.map(nameOf))
  const isParallel = fields.boolean('parallel_tool_calls') ?? true
  const choice = fields.raw('tool_choice') ?? 'auto'
  if (choice === 'none') return { tools: [], names: new Set(), forced: undefined, isParallel }
  if (choice === 'auto') return { tools, names, forced: undefined, isParallel }
  if (choice === 'required') {
    if (names.size === 0) throw invalid('tool_choice', 'is required, but there are no tools')
    return { tools, names, forced: null, isParallel }
  }
  const named = isObject(choice) && choice.type === 'function' ? choice.function : undefined
  if (!isObject(named) || typeof named.name !== 'string') {
    const expected = 'auto, none, required, or { "type": "function", "function": { "name": … } }'
    throw invalid('tool_choice', `is ${describe(choice)}, expected ${expected}`)
  }
  if (names.has(named.name)) return { tools, names, forced: named.name, isParallel }
  throw invalid('tool_choice', `names ${describe(named.name)}, which is none of the tools`)
}

function readTool(tool: unknown, i: number): JsonObject {
  const where = `tools[${i}]`
  if (!isObject(tool) || tool.type !== 'function' || !isObject(tool.function)) {
    throw invalid(where, 'expected { "type": "function", "function": { "name": … } }')
  }
  const { name, parameters } = tool.function
  if (typeof name !== 'string' || !NAME.test(name)) {
    throw invalid(
      `${where}.function.name`,
      `is ${describe(name)}, expected up to 64 of a-z, 0-9, _.-`,
    )
  }
  if (parameters !== undefined && parameters !== null && !isObject(parameters)) {
    throw invalid(`${where}.function.parameters`, 'expected a JSON schema')
  }
  return tool
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

/**
 * The schema of an answer that has to be a call, as `makeForcedParser` reads it; null where it need
 * not be one. Throws an `ApiError` 400 for parameters that answers cannot be held to.
 */
export function forcedSchema({ tools, forced }: ToolRequest): JsonSchema | null {
  if (forced === undefined) return null
  for (const [i, own] of tools.entries()) {
    const isMeant = forced === null || nameOf(own) === forced
    if (isMeant) checkSchema(parametersOf(own), `tools[${i}].function.parameters`)
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
