import type { ChatMessage } from '../model/tokenizer.js'
import { ApiError, invalid } from './api-error.js'
import { describe, Fields, isObject, type JsonObject } from './fields.js'
import { MAX_MESSAGES, MAX_NAME_LENGTH, readArguments } from './request.js'

/** One thing of a conversation, as `input` and `output` of the Responses API have it. */
export type Item =
  | { readonly kind: 'message'; readonly role: string; readonly text: string }
  /** What the model thought by itself. */
  | { readonly kind: 'reasoning'; readonly text: string }
  /** The model asks for a call. */
  | {
      readonly kind: 'call'
      readonly id: string
      readonly name: string
      readonly arguments: JsonObject
    }
  /** What the call of that id gave. */
  | { readonly kind: 'result'; readonly id: string; readonly text: string }

const ROLES = ['user', 'assistant', 'system', 'developer']
/** Parts of messages that are texts. */
const TEXT_PARTS = ['input_text', 'output_text', 'text']
const REASONING_PARTS = ['reasoning_text']

/**
 * The items of an `input`: a text of the user's, or a list.
 *
 * - `find`: the item of an id that another one had, told of each that is named; null: there is none
 *   any more
 *
 * Throws an `ApiError` that names the item.
 */
export function readItems(input: unknown, find: (id: string) => Item | null): Item[] {
  if (input === undefined) return []
  if (typeof input === 'string') return [{ kind: 'message', role: 'user', text: input }]
  if (Array.isArray(input) && input.length <= MAX_MESSAGES) {
    return input.flatMap((item, i) => {
      const known = isObject(item) && typeof item.id === 'string' ? find(item.id) : null
      return readItem(item, `input[${i}]`, known) ?? []
    })
  }
  throw invalid('input', `is ${describe(input)}, expected a text or at most ${MAX_MESSAGES} items`)
}

/**
 * null for an item that says nothing to this model.
 *
 * - `known`: the item that had the same id
 */
function readItem(item: unknown, where: string, known: Item | null): Item | null {
  if (!isObject(item)) throw invalid(where, `is ${describe(item)}, expected an item`)
  const { type = 'message' } = item
  switch (type) {
    case 'message':
      if (!ROLES.includes(item.role as string)) {
        throw invalid(`${where}.role`, `is ${describe(item.role)}, expected ${ROLES.join(', ')}`)
      }
      return {
        kind: 'message',
        role: item.role as string,
        text: readText(item.content, `${where}.content`),
      }
    case 'function_call': {
      const name = readName(item, 'name', where)
      const id = readName(item, 'call_id', where)
      const args = readArguments(item.arguments, `${where}.arguments`)
      return { kind: 'call', id, name, arguments: args }
    }
    case 'function_call_output': {
      const id = readName(item, 'call_id', where)
      return { kind: 'result', id, text: readText(item.output, `${where}.output`) }
    }
    case 'item_reference': {
      const id = readName(item, 'id', where)
      if (known) return known
      const message = `${where}.id: there is no item ${describe(id)}; responses are kept for a while, and with "store" alone`
      throw new ApiError(404, message, { param: `${where}.id`, code: 'item_not_found' })
    }
    case 'reasoning': {
      const { content } = item
      const hasText = Array.isArray(content) ? content.length > 0 : (content ?? null) !== null
      const text = hasText
        ? readText(content, `${where}.content`, REASONING_PARTS)
        : unsealed(item.encrypted_content)
      if (text !== null) return { kind: 'reasoning', text }
      // Else another model's, of which there is a summary at most.
      return known?.kind === 'reasoning' ? known : null
    }
    default: {
      const types = 'message, function_call, function_call_output, item_reference or reasoning'
      throw invalid(`${where}.type`, `is ${describe(type)}, expected ${types}`)
    }
  }
}

const SEAL = 'zipcache.'

/**
 * A reasoning as clients carry it that give back what they take for encrypted and nothing else. It is no
 * secret: the item has it as a text, too.
 */
export function sealed(text: string): string {
  return SEAL + Buffer.from(text).toString('base64url')
}

/** null for what was not sealed here. */
function unsealed(content: unknown): string | null {
  if (typeof content !== 'string' || !content.startsWith(SEAL)) return null
  return Buffer.from(content.slice(SEAL.length), 'base64url').toString()
}

function readName(item: JsonObject, field: string, where: string): string {
  const name = new Fields(item, `${where}.`).text(field, MAX_NAME_LENGTH)
  if (name) return name
  throw invalid(`${where}.${field}`, 'is missing, expected a text')
}

function readText(content: unknown, where: string, parts = TEXT_PARTS): string {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) {
    throw invalid(where, `is ${describe(content)}, expected a text or a list of parts`)
  }
  const texts = content.map((part, i) => {
    const { type, text, refusal } = isObject(part) ? part : {}
    if (parts.includes(type as string) && typeof text === 'string') return text
    // What a model said when it would not answer.
    if (type === 'refusal' && typeof refusal === 'string') return refusal
    throw invalid(`${where}[${i}]`, `is ${describe(type)}; this model reads texts only`)
  })
  return texts.join('')
}

/**
 * The messages of a chat that items are. `instructions` and what the system says at once after them
 * are one message, since many templates take one alone; what was said and called in one turn is
 * another.
 *
 * Throws an `ApiError` 400 for the result of a call that was not made.
 */
export function messagesOf(
  instructions: string | undefined,
  items: readonly Item[],
): ChatMessage[] {
  const first = items.findIndex((item) => item.kind !== 'message' || !isSystem(item.role))
  const nSystem = first < 0 ? items.length : first
  const own = instructions === undefined ? [] : [{ role: 'system', text: instructions }]
  const [head, ...more] = [...own, ...(items.slice(0, nSystem) as SystemItem[])]
  const content = [head, ...more].map((one) => one?.text).join('\n\n')
  const messages: WrittenMessage[] = head ? [{ role: head.role, content }] : []
  const names = new Map<string, string>()
  /** What was thought before what comes next; nobody's if that is not the model's. */
  let thought = ''
  for (const item of items.slice(nSystem)) {
    const last = messages.at(-1)
    if (item.kind === 'reasoning') {
      thought += item.text
      continue
    }
    // Under the name that templates know.
    const thinking = thought === '' ? {} : { reasoning_content: thought }
    thought = ''
    if (item.kind === 'message') {
      const { role, text } = item
      messages.push({ role, content: text, ...(role === 'assistant' ? thinking : {}) })
    } else if (item.kind === 'call') {
      const { id, name, arguments: args } = item
      names.set(id, name)
      const call = { id, type: 'function', function: { name, arguments: args } }
      if (last?.role !== 'assistant' || 'reasoning_content' in thinking) {
        messages.push({ role: 'assistant', content: null, ...thinking, tool_calls: [call] })
      } else last.tool_calls = [...(last.tool_calls ?? []), call]
    } else {
      const name = names.get(item.id)
      if (name === undefined) {
        throw invalid(
          'input',
          `has the output of ${describe(item.id)}, which no call before it has`,
        )
      }
      messages.push({ role: 'tool', tool_call_id: item.id, name, content: item.text })
    }
  }
  return messages
}

type WrittenMessage = {
  role: string
  content: string | null
  tool_calls?: object[]
  [key: string]: unknown
}

type SystemItem = Extract<Item, { kind: 'message' }>

const isSystem = (role: string) => role === 'system' || role === 'developer'
