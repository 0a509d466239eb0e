import { ApiError, invalid } from './api-error.js'
import { describe, type Fields, type JsonObject } from './fields.js'
import {
  anySeed,
  type ChatRequest,
  fieldsOf,
  MAX_NAME_LENGTH,
  PLATFORM_FIELDS,
  type ReasoningEffort,
  type RequestRules,
  readChatOptions,
  readEffort,
  readFormat,
  readGeneration,
  readJson,
  readTopLogprobs,
  readVerbosity,
} from './request.js'
import { type Item, messagesOf, readItems } from './response-items.js'
import type { SessionName } from './sessions.js'
import type { StoredResponses } from './stored-responses.js'
import { RESPONSE_TOOLS, readTools } from './tools.js'

/** `POST /v1/responses`. */
export interface ResponseRequest extends ChatRequest {
  /** All that was said until now, but the instructions. */
  readonly conversation: readonly Item[]
  /**
   * The response whose conversation this one goes on with, by its id or by those of its items, for its
   * cache; null: none that is kept.
   */
  readonly past: SessionName | null
  /** Whether what the model thinks is told as a summary, too. */
  readonly summary: boolean
  /** Whether it is also told in a form that clients carry unread. */
  readonly sealed: boolean
  /** Whether it is kept. */
  readonly store: boolean
  /** What the response says again of its request. */
  readonly echo: JsonObject
}

const LOGPROBS = 'message.output_text.logprobs'
const ENCRYPTED = 'reasoning.encrypted_content'
/** What `include` may name; of all but the first two no response here has anything to leave out. */
const INCLUDABLE = [
  LOGPROBS,
  ENCRYPTED,
  'file_search_call.results',
  'web_search_call.results',
  'web_search_call.action.sources',
  'code_interpreter_call.outputs',
  'computer_call_output.output.image_url',
  'message.input_image.image_url',
]

/** What OpenAI takes in `metadata`. */
const MAX_METADATA = 16
const MAX_METADATA_KEY = 64
const MAX_METADATA_VALUE = 512

/**
 * Reads the body of a request for a response.
 *
 * - `stored`: the responses that it may go on with, those of `owner`
 *
 * Throws an `ApiError` that names the field.
 */
export function readResponseRequest(
  body: unknown,
  rules: RequestRules,
  stored: StoredResponses,
  owner: string,
): ResponseRequest {
  const fields = fieldsOf(body)
  const previous = readPrevious(fields, stored, owner)
  let past = previous?.name ?? null
  const items = readItems(fields.raw('input'), (id) => {
    const found = stored.findItem(id, owner)
    if (found && !previous) past = found.name
    return found?.item ?? null
  })
  const conversation = [...(previous?.conversation ?? []), ...items]
  if (conversation.length === 0) throw invalid('input', 'expected a text, or at least one item')
  const instructions = fields.text('instructions', Number.MAX_SAFE_INTEGER)
  const messages = messagesOf(instructions, conversation)
  const tooling = readTools(fields, RESPONSE_TOOLS)
  const text = fields.nested('text')
  const format = readFormat(text?.nested('format'), null)
  readVerbosity(text)
  text?.done()
  const json = readJson(tooling, format, 'text.format')
  const { jsonField } = json
  const include = readInclude(fields)
  const logprobs = include.includes(LOGPROBS)
  const topLogprobs = readTopLogprobs(fields, logprobs, `"include": ["${LOGPROBS}"]`)
  const maxTokens = fields.integer('max_output_tokens', 1, Number.MAX_SAFE_INTEGER)
  const store = readStore(fields, stored.isOn)
  const metadata = readMetadata(fields)
  const options = readChatOptions(fields)
  const generation = readGeneration(fields, rules, maxTokens ?? rules.defaultMaxTokens)
  fields.choice('truncation', ['disabled'])
  // Of calls of OpenAI's own tools, which there are none of.
  fields.integer('max_tool_calls', 1, Number.MAX_SAFE_INTEGER)
  if (fields.boolean('background'))
    throw invalid('background', 'is true; answers are given at once')
  const { effort, summary } = readReasoning(fields.nested('reasoning'))
  const streamOptions = fields.nested('stream_options')
  streamOptions?.ignore(['include_obfuscation'])
  streamOptions?.done()
  fields.ignore([...PLATFORM_FIELDS, 'client_metadata'])
  fields.done()
  const sampling = { ...generation.sampling, topLogprobs, ...json.sampling }
  return {
    ...generation,
    ...options,
    n: 1,
    seed: anySeed(),
    sampling,
    messages,
    messagesField: 'input',
    jsonField,
    tooling,
    logprobs,
    conversation,
    past,
    store,
    effort,
    thinking: null,
    summary: summary !== null,
    sealed: include.includes(ENCRYPTED),
    echo: {
      instructions: instructions ?? null,
      max_output_tokens: maxTokens ?? null,
      metadata,
      parallel_tool_calls: tooling.isParallel,
      previous_response_id: previous?.name.id ?? null,
      prompt_cache_key: options.cacheKey ?? null,
      reasoning: { effort: effort?.value ?? null, summary },
      store,
      temperature: sampling.temperature,
      text: { format: text?.object('format') ?? { type: 'text' } },
      tool_choice: fields.raw('tool_choice') ?? 'auto',
      tools: fields.raw('tools') ?? [],
      top_logprobs: topLogprobs,
      top_p: sampling.topP,
      truncation: 'disabled',
      user: fields.raw('user') ?? null,
    },
  }
}

const SUMMARIES = ['auto', 'concise', 'detailed'] as const

/** A reasoning is told as it is. Many clients show its summary alone: who asks for one gets all of it again. */
function readReasoning(reasoning: Fields | undefined): {
  effort: ReasoningEffort | null
  summary: string | null
} {
  const effort = readEffort(reasoning, 'effort')
  const old = reasoning?.choice('generate_summary', SUMMARIES) ?? null
  const summary = reasoning?.choice('summary', SUMMARIES) ?? old
  reasoning?.choice('mode', ['standard'])
  reasoning?.choice('context', ['auto'])
  reasoning?.done()
  return { effort, summary }
}

function readPrevious(fields: Fields, stored: StoredResponses, owner: string) {
  const id = fields.text('previous_response_id', MAX_NAME_LENGTH)
  if (id === undefined) return null
  const name = { id, owner }
  const found = stored.find(name)
  if (found) return { name, conversation: found.conversation }
  const param = 'previous_response_id'
  const message = `${param}: there is no response ${describe(id)}; they are kept for a while, and with "store" alone`
  throw new ApiError(400, message, { param, code: 'previous_response_not_found' })
}

function readInclude(fields: Fields): readonly unknown[] {
  const include = fields.list('include', INCLUDABLE.length * 8) ?? []
  const wrong = include.find((one) => !INCLUDABLE.includes(one as string))
  if (wrong === undefined) return include
  throw invalid('include', `has ${describe(wrong)}, expected ${INCLUDABLE.join(', ')}`)
}

/** OpenAI's default is true; here it is, too, where anything is kept. */
function readStore(fields: Fields, isOn: boolean): boolean {
  const store = fields.boolean('store') ?? isOn
  if (store && !isOn) throw invalid('store', 'is true, but this server keeps nothing')
  return store
}

function readMetadata(fields: Fields): JsonObject {
  const metadata = fields.object('metadata') ?? {}
  const entries = Object.entries(metadata)
  const isFine = entries.every(
    ([key, value]) =>
      key.length <= MAX_METADATA_KEY &&
      typeof value === 'string' &&
      value.length <= MAX_METADATA_VALUE,
  )
  if (isFine && entries.length <= MAX_METADATA) return metadata
  const expected = `at most ${MAX_METADATA} texts of ${MAX_METADATA_VALUE} characters, keys of ${MAX_METADATA_KEY}`
  throw invalid('metadata', `expected ${expected}`)
}
