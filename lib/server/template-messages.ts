import type { ChatMessage } from '../model/tokenizer.js'
import { isObject, type JsonObject } from './fields.js'
import { PHI } from './tool-calls.js'

/**
 * Messages and tools in the words of a template.
 *
 * Most have no developer, and leave out or refuse what one says: it is the system's there, as OpenAI
 * has the two for one. Phi-4-mini's takes its tools with the system's message, and knows no calls, nor
 * does that of Granite 3: they are the text that the model wrote.
 */
export function inTemplateWords(
  template: string,
  messages: readonly ChatMessage[],
  tools: readonly JsonObject[],
): readonly ChatMessage[] {
  const known = template.includes('developer') ? messages : messages.map(withoutDeveloper)
  if (template.includes("message['tools']")) return inPhiWords(known, tools)
  const isGranite = template.includes(PHI.open) && !template.includes('tool_calls')
  return isGranite ? known.map((message) => withCallsAsText(message, '')) : known
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

function calledFunction(call: unknown): unknown {
  const called = isObject(call) && isObject(call.function) ? call.function : {}
  return { name: called.name, arguments: called.arguments }
}

/** JSON with spaces as Python writes it, which is what models have learned. */
function spaced(value: unknown): string {
  // Strings have no line breaks of their own, which are escaped.
  return JSON.stringify(value, null, 1).replace(/,\n */g, ', ').replace(/\n */g, '')
}
