/**
 * Messages and tools as Gemma 4's chat template takes them.
 * Source: https://huggingface.co/google/gemma-4-31B-it, chat_template.jinja.
 */
import type { ChatMessage } from '../model/tokenizer.js'
import { isObject, type JsonObject } from './fields.js'

/**
 * Messages whose calls have their results, and what is said after these, in one: how the template was at
 * first, and the model's turn is.
 */
export function withResponses(messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const all: ChatMessage[] = []
  for (let i = 0; i < messages.length; i++) {
    const message = messages[i] as ChatMessage
    const calls: unknown[] = Array.isArray(message.tool_calls) ? message.tool_calls : []
    let end = i + 1
    while (calls.length > 0 && messages[end]?.role === 'tool') end++
    const tool_responses = messages.slice(i + 1, end).map((result) => responseOf(result, calls))
    if (tool_responses.length === 0) {
      all.push(message)
      continue
    }
    const next = messages[end]
    const isAnswer =
      next?.role === 'assistant' && !Array.isArray(next.tool_calls) && !message.content
    all.push({ ...message, ...(isAnswer ? { content: next.content } : {}), tool_responses })
    i = isAnswer ? end : end - 1
  }
  return all
}

/** The result of a call, which has the name of its function; JSON of an object is one there. */
function responseOf({ tool_call_id: id, name, content }: ChatMessage, calls: readonly unknown[]) {
  const called = calls.find((call) => isObject(call) && call.id === id)
  const { function: own } = isObject(called) ? called : {}
  return { name: (isObject(own) ? own.name : name) ?? 'unknown', response: objectOf(content) }
}

function objectOf(content: unknown): unknown {
  try {
    const value: unknown = JSON.parse(content as string)
    return isObject(value) ? value : content
  } catch {
    return content
  }
}

/**
 * A tool whose parameters have a type each, as a text: the template writes it in capitals, which its
 * interpreter here cannot of a list, or of nothing.
 */
export function withGemmasParameters(tool: JsonObject): JsonObject {
  const { parameters, ...called } = tool.function as JsonObject
  if (!isObject(parameters) || Object.keys(parameters).length === 0) {
    return { ...tool, function: called }
  }
  const { type = 'object', properties } = parameters
  const own = { ...parameters, type: typeText(type), ...typedProperties(properties) }
  return { ...tool, function: { ...called, parameters: own } }
}

function typedProperties(properties: unknown): JsonObject {
  if (!isObject(properties)) return {}
  const typed = Object.entries(properties).map(([name, schema]) => [name, typedSchema(schema)])
  return { properties: Object.fromEntries(typed) }
}

function typedSchema(schema: unknown): JsonObject {
  if (!isObject(schema)) return { type: '' }
  const { properties, items, ...own } = schema
  const type = typeText(schema.type ?? typesOf(schema))
  const all = { ...own, type, ...(isObject(items) ? { items: typedItems(items) } : {}) }
  if (isObject(properties)) return { ...all, ...typedProperties(properties) }
  // The template takes what else an object's schema says for properties.
  return type === 'object' ? { ...all, properties: {} } : all
}

function typedItems({ type, ...items }: JsonObject): JsonObject {
  const own = type === undefined ? {} : { type: typeText(type) }
  return { ...own, ...items, ...typedProperties(items.properties) }
}

/** The types of a schema that has none of its own: those of its alternatives, or of its values. */
function typesOf({ anyOf, oneOf, enum: values }: JsonObject): unknown {
  const choices = anyOf ?? oneOf
  if (Array.isArray(choices)) {
    const types = choices.flatMap((one) => (isObject(one) ? (one.type ?? []) : []))
    return types.length === 1 ? types[0] : types
  }
  const areTexts = Array.isArray(values) && values.every((value) => typeof value === 'string')
  return areTexts ? 'string' : []
}

/** Types as Python writes a list of them, which is what models have learned. */
function typeText(type: unknown): string {
  if (typeof type === 'string') return type
  const types = Array.isArray(type) ? type.filter((one) => typeof one === 'string') : []
  return types.length === 0 ? '' : `[${types.map((one) => `'${one}'`).join(', ')}]`
}
