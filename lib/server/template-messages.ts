import { PHI, toolFormatOf } from '../chat/tool-calls.js'
import { isGemmaTemplate } from '../model/gemma-marks.js'
import { isHarmonyTemplate } from '../model/harmony.js'
import type { ChatMessage } from '../model/tokenizer.js'
import { isObject, type JsonObject } from './fields.js'
import { withGemmasParameters, withResponses } from './gemma-words.js'

/**
 * Messages and tools in the words of a template.
 *
 * Most have no developer, and leave out or refuse what one says: it is the system's there, as OpenAI
 * has the two for one. Phi-4-mini's takes its tools with the system's message, and knows no calls, nor
 * does that of Granite 3: they are the text that the model wrote. That of gpt-oss has a message for each
 * call, and the reasoning before it under another name. Those of Qwen3-Coder and Seed-OSS write what an
 * argument is as Python does. The first one of Gemma 4 takes the results of calls with these.
 */
export function inTemplateWords(
  template: string,
  messages: readonly ChatMessage[],
  tools: readonly JsonObject[],
): readonly ChatMessage[] {
  if (isHarmonyTemplate(template)) return inHarmonyWords(messages)
  const known = template.includes('developer') ? messages : messages.map(withoutDeveloper)
  const format = toolFormatOf(template)
  if (isGemmaTemplate(template)) return takesResults(template) ? known : withResponses(known)
  if (format === 'qwen-coder' || format === 'seed') return known.map(withPythonsArguments)
  if (template.includes("message['tools']")) return inPhiWords(known, tools)
  const isGranite = template.includes(PHI.open) && !template.includes('tool_calls')
  return isGranite ? known.map((message) => withCallsAsText(message, '')) : known
}

/** Whether a template of Gemma 4's finds the results of calls in messages of their own. */
function takesResults(template: string): boolean {
  return template.includes('tool_call_id') || !template.includes('tool_responses')
}

/**
 * Messages with one system at their beginning, and one user at a time: programs send several, and some
 * templates refuse those. The same list where there is nothing to join.
 */
export function inOneTurn(messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const joined: ChatMessage[] = []
  for (const message of messages) {
    const last = joined.at(-1)
    const isOfLast = last?.role === message.role
    const isJoined = message.role === 'user' || (isSystem(message) && joined.length === 1)
    if (last && isOfLast && isJoined) {
      joined[joined.length - 1] = { ...last, content: `${last.content}\n\n${message.content}` }
    } else joined.push(message)
  }
  return joined.length === messages.length ? messages : joined
}

const isSystem = ({ role }: ChatMessage) => role === 'system' || role === 'developer'

/**
 * Tools in the words of a template: that of gpt-oss joins their descriptions to texts, also where there is
 * none; that of Qwen3-Coder makes texts of what a schema says beside types, as of arguments; that of
 * Gemma 4 writes a type for each property.
 */
export function toolsInTemplateWords(
  template: string,
  tools: readonly JsonObject[],
): readonly JsonObject[] {
  if (toolFormatOf(template) === 'qwen-coder') return tools.map(withPythonsParameters)
  if (isGemmaTemplate(template)) return tools.map(withGemmasParameters)
  if (!isHarmonyTemplate(template)) return tools
  return tools.map((tool) => {
    const called = tool.function as JsonObject
    return { ...tool, function: { ...called, description: called.description ?? '' } }
  })
}

/**
 * Source: https://huggingface.co/openai/gpt-oss-20b, chat_template.jinja. It reads one message of a
 * system alone, the first call of a message and, for results, the name of the last one; `thinking` where
 * clients have `reasoning_content`; and texts that are there.
 */
function inHarmonyWords(messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const first = messages.findIndex((message) => !isSystem(message))
  const nSystem = first < 0 ? messages.length : first
  const system = messages.slice(0, nSystem)
  const content = system.map((message) => message.content).join('\n\n')
  const said = system.length > 1 ? [{ ...system[0], role: system[0]?.role ?? '', content }] : system
  return [...said, ...callByCall(messages.slice(nSystem))]
}

/** Each call in a message of its own, its results after it. */
function callByCall(messages: readonly ChatMessage[]): ChatMessage[] {
  const all: ChatMessage[] = []
  for (let i = 0; i < messages.length; i++) {
    const message = messages[i] as ChatMessage
    if (message.role !== 'assistant') {
      all.push(message)
      continue
    }
    const { tool_calls, reasoning_content, ...own } = message
    const calls: unknown[] = Array.isArray(tool_calls) ? tool_calls : []
    const thinking = textOf(own.thinking) || textOf(reasoning_content)
    const content = textOf(own.content)
    if (calls.length === 0) {
      all.push({ ...own, content, ...(thinking === '' ? {} : { thinking }) })
      continue
    }
    let end = i + 1
    while (messages[end]?.role === 'tool') end++
    const results = messages.slice(i + 1, end)
    const ids = calls.map((call) => (isObject(call) ? call.id : undefined))
    for (const [c, call] of calls.entries()) {
      // What was said before a call is thinking there, and stands once.
      const before = c > 0 ? '' : [thinking, content].filter((text) => text !== '').join('\n')
      all.push({ role: 'assistant', content: '', thinking: before, tool_calls: [call] })
      const isLast = c === calls.length - 1
      const isOfCall = ({ tool_call_id: id }: ChatMessage) =>
        id === ids[c] || (isLast && !ids.includes(id))
      all.push(...results.filter(isOfCall))
    }
    i = end - 1
  }
  return all
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : ''
}

function withoutDeveloper(message: ChatMessage): ChatMessage {
  return message.role === 'developer' ? { ...message, role: 'system' } : message
}

/** What its authors' example has for a system. */
const PHI_SYSTEM = 'You are a helpful assistant with some tools.'

/**
 * Source: https://huggingface.co/microsoft/Phi-4-mini-instruct, "Tool-enabled function-calling format".
 * There the tools are a list of functions, as text.
 */
function inPhiWords(
  messages: readonly ChatMessage[],
  tools: readonly JsonObject[],
): readonly ChatMessage[] {
  const said = messages.map((message) => withCallsAsText(message, PHI.close))
  if (tools.length === 0) return said
  const [first, ...rest] = said
  const hasSystem = first?.role === 'system'
  const system = hasSystem ? first : { role: 'system', content: PHI_SYSTEM }
  const functions = spaced(tools.map((tool) => tool.function))
  return [{ ...system, tools: functions }, ...(hasSystem ? rest : said)]
}

function withCallsAsText({ tool_calls, ...message }: ChatMessage, close: string): ChatMessage {
  if (!Array.isArray(tool_calls) || tool_calls.length === 0) return message
  const calls = PHI.open + spaced(tool_calls.map(calledFunction)) + close
  return { ...message, content: `${message.content ?? ''}${calls}` }
}

/**
 * Calls whose arguments are texts where the template makes texts of them (`| string`), which its interpreter
 * here cannot of nothing, and would of a truth in JavaScript's words.
 */
function withPythonsArguments(message: ChatMessage): ChatMessage {
  if (!Array.isArray(message.tool_calls)) return message
  const calls = message.tool_calls.map((call: unknown) => {
    const { name, arguments: args } = calledFunction(call)
    if (!isObject(call) || !isObject(args)) return call
    return { ...call, function: { name, arguments: mapped(args, pythonsText) } }
  })
  return { ...message, tool_calls: calls }
}

/** A tool whose parameters say what is nothing and what is true in Python's words: some defaults do. */
function withPythonsParameters(tool: JsonObject): JsonObject {
  const called = tool.function as JsonObject
  if (!isObject(called.parameters)) return tool
  const { properties, ...own } = called.parameters
  const texts = isObject(properties)
    ? { properties: mapped(properties, (one) => (isObject(one) ? mapped(one, pythonsWord) : one)) }
    : {}
  return { ...tool, function: { ...called, parameters: { ...mapped(own, pythonsWord), ...texts } } }
}

function mapped(object: JsonObject, map: (value: unknown) => unknown): JsonObject {
  return Object.fromEntries(Object.entries(object).map(([key, value]) => [key, map(value)]))
}

function pythonsWord(value: unknown): unknown {
  if (value === null) return 'None'
  if (typeof value === 'boolean') return value ? 'True' : 'False'
  return value
}

function pythonsText(value: unknown): unknown {
  return isObject(value) || Array.isArray(value) ? spaced(value) : pythonsWord(value)
}

function calledFunction(call: unknown): { name: unknown; arguments: unknown } {
  const called = isObject(call) && isObject(call.function) ? call.function : {}
  return { name: called.name, arguments: called.arguments }
}

/** JSON with spaces as Python writes it, which is what models have learned. */
function spaced(value: unknown): string {
  // Strings have no line breaks of their own, which are escaped.
  return JSON.stringify(value, null, 1).replace(/,\n */g, ', ').replace(/\n */g, '')
}
