import { MOST_DRAFTED } from '../engine/drafts.js'
import type { GenerateOptions } from '../engine/generation.js'
import { type ChatMessage, NEED_CONTENT } from '../model/tokenizer.js'
import type { PolicySpec } from '../policy/index.js'
import { ApiError, invalid } from './api-error.js'
import { describe, Fields, isObject, type JsonObject } from './fields.js'
import { checkSchema } from './json-schema.js'
import { choosePolicy, type PolicyRules } from './policies.js'
import { CHAT_TOOLS, forcedSchema, readTools, type ToolRequest } from './tools.js'

/** Sampling of requests that do not say how. */
export type SamplingDefaults = Required<
  Pick<GenerateOptions, 'temperature' | 'topK' | 'topP' | 'minP' | 'repetitionPenalty'>
>

/** What requests may ask for. */
export interface RequestRules {
  readonly policies: PolicyRules
  readonly sampling: SamplingDefaults
  /** Most new tokens of a choice; a request that says nothing gets `defaultMaxTokens`. */
  readonly maxTokens: number
  readonly defaultMaxTokens: number
  /** Tokens to draft for a step of a request that does not say; 0: none, unless it has a prediction. */
  readonly promptLookup: number
  /** Most choices of one request. */
  readonly maxChoices: number
  readonly modelNames: readonly string[]
}

/** What every request for tokens says, whatever its prompt is. */
export interface GenerationRequest {
  /** The name that it calls the model by. */
  readonly model: string
  /** Choices for each prompt. */
  readonly n: number
  readonly stream: boolean
  /** Sampling and limits; a choice adds its seed. */
  readonly sampling: GenerateOptions
  readonly seed: bigint
  readonly policy: PolicySpec
  /** Whether each token's log-probability is wanted. */
  readonly logprobs: boolean
}

/** What a request for completions says of its stream. */
export interface StreamRequest {
  /** A stream ends with a chunk that has the usage. */
  readonly includeUsage: boolean
  /** Its other chunks have the usage so far. */
  readonly continuousUsage: boolean
}

/** Messages that an answer is to be given to, whichever API they came by. */
export interface ChatRequest extends GenerationRequest {
  readonly messages: readonly ChatMessage[]
  /** The field that they stand in. */
  readonly messagesField: string
  /** The field that asks for JSON, or for a call, where one does. */
  readonly jsonField: string
  /** Functions that the model may call. */
  readonly tooling: ToolRequest
  /** Chats that name the same one share the cache of what they begin with. */
  readonly cacheKey: string | undefined
  /** Further variables for the model's chat template. */
  readonly templateVariables: JsonObject | undefined
  /** How much the model is to think, and the field that says so; null: as it is used to. */
  readonly effort: ReasoningEffort | null
  /** Whether it is to think at all; null: as it is used to. */
  readonly thinking: ThinkingSwitch | null
}

/** Whether a model is to think. */
export interface ThinkingSwitch {
  /** The field of the request. */
  readonly field: string
  readonly isOn: boolean
}

/** How much a model is to think, as chat templates take it in `reasoning_effort`. */
export interface ReasoningEffort {
  /** The field of the request. */
  readonly field: string
  readonly value: (typeof EFFORTS)[number]
}

/** OpenAI's; which of them a model knows is its template's affair. */
const EFFORTS = ['none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max'] as const

/** `POST /v1/completions`. */
export interface TextRequest extends GenerationRequest, StreamRequest {
  readonly prompts: readonly (string | readonly number[])[]
  /** Whether the prompt stands before the text. */
  readonly echo: boolean
}

/**
 * Fields of OpenAI's API that are accepted and change nothing here: bookkeeping of its platform, and how
 * long it keeps what prompts begin with.
 */
export const PLATFORM_FIELDS = [
  'user',
  'service_tier',
  'safety_identifier',
  'prompt_cache_retention',
  'prompt_cache_options',
]
/** Those that completions have beside them. */
const IGNORED = [
  ...PLATFORM_FIELDS,
  'store',
  'metadata',
  'prompt_cache_key', // of a chat it means something
]

/** Most messages of a chat. */
export const MAX_MESSAGES = 4096
const MAX_STOPS = 16
const MAX_BIAS = 300
const MAX_TOP_LOGPROBS = 20
const MAX_STOP_LENGTH = 1024
const MAX_PROMPTS = 128
/** Most characters of a name. */
export const MAX_NAME_LENGTH = 256

/** Reads the body of a chat completion. Throws an `ApiError` that names the field. */
export function readChatRequest(body: unknown, rules: RequestRules): ChatRequest & StreamRequest {
  const fields = fieldsOf(body)
  const messages = readMessages(fields)
  const tooling = readTools(fields, CHAT_TOOLS)
  const format = readFormat(fields.nested('response_format'), 'json_schema')
  const json = readJson(tooling, format, 'response_format')
  const logprobs = fields.boolean('logprobs') ?? false
  const topLogprobs = readTopLogprobs(fields, logprobs, '"logprobs": true')
  const chat = readChatOptions(fields)
  const reasoning = fields.nested('reasoning')
  const ofReasoning = readEffort(reasoning, 'effort')
  const effort = readEffort(fields, 'reasoning_effort') ?? ofReasoning
  const thinking = readThinking(fields, reasoning)
  reasoning?.done()
  const maxTokens =
    fields.integer('max_completion_tokens', 1, Number.MAX_SAFE_INTEGER) ??
    fields.integer('max_tokens', 1, Number.MAX_SAFE_INTEGER)
  fields.ignore(['max_tokens'])
  readModalities(fields)
  readVerbosity(fields)
  refuseFunctions(fields)
  const prediction = readPrediction(fields.nested('prediction'))
  const completion = readCompletion(fields, rules, maxTokens ?? rules.defaultMaxTokens)
  const sampling = { ...completion.sampling, ...prediction, topLogprobs, ...json.sampling }
  const { jsonField } = json
  const messagesField = 'messages'
  const asked = { ...completion, ...chat, messages, messagesField, jsonField, tooling }
  return { ...asked, logprobs, sampling, effort, thinking }
}

/**
 * Whether to think, as clients of Qwen's models say it to their vendor, or those of DeepSeek's and GLM's.
 *
 * - `reasoning`: OpenRouter's field, which has the effort, too
 */
function readThinking(fields: Fields, reasoning: Fields | undefined): ThinkingSwitch | null {
  const isOn = fields.boolean('enable_thinking')
  const enabled = reasoning?.boolean('enabled')
  const thinking = fields.nested('thinking')
  const type = thinking?.choice('type', ['enabled', 'disabled'])
  thinking?.done()
  if (isOn !== undefined) return { field: 'enable_thinking', isOn }
  if (type !== undefined) return { field: 'thinking', isOn: type === 'enabled' }
  return enabled === undefined ? null : { field: 'reasoning.enabled', isOn: enabled }
}

/** What the answer is predicted to be: a text, or OpenAI's parts of one. */
function readPrediction(prediction: Fields | undefined): Pick<GenerateOptions, 'prediction'> {
  if (!prediction) return {}
  if (prediction.choice('type', ['content']) === undefined) {
    throw invalid(prediction.path('type'), 'is missing')
  }
  const where = prediction.path('content')
  const content = readContent(prediction.raw('content'), where)
  prediction.done()
  if (content === null) throw invalid(where, 'is missing')
  return { prediction: content }
}

/** A model that writes texts alone can be asked for those. */
function readModalities(fields: Fields): void {
  const wrong = fields.list('modalities', 2)?.find((one) => one !== 'text')
  if (wrong === undefined) return
  throw invalid('modalities', `has ${describe(wrong)}; this model writes texts only`)
}

/** As tools were asked for before 2023 was over. */
function refuseFunctions(fields: Fields): void {
  const old = ['functions', 'function_call'].find((name) => fields.raw(name) !== undefined)
  if (old !== undefined) throw invalid(old, 'is no longer known; use tools and tool_choice')
}

/** OpenAI's default may be asked for; there is nothing that would make answers shorter or longer. */
export function readVerbosity(fields: Fields | undefined): void {
  fields?.choice('verbosity', ['medium'])
}

/** `reasoning_effort`, or `effort` of `reasoning`. */
export function readEffort(fields: Fields | undefined, name: string): ReasoningEffort | null {
  const value = fields?.choice(name, EFFORTS)
  return value === undefined || !fields ? null : { field: fields.path(name), value }
}

/** What chats say in every API. */
export function readChatOptions(
  fields: Fields,
): Pick<ChatRequest, 'cacheKey' | 'templateVariables'> {
  return {
    cacheKey: fields.text('prompt_cache_key', MAX_NAME_LENGTH),
    templateVariables: fields.object('chat_template_kwargs'),
  }
}

/** `top_logprobs`; `condition`: what has to be asked for with it. */
export function readTopLogprobs(fields: Fields, logprobs: boolean, condition: string): number {
  const n = fields.integer('top_logprobs', 0, MAX_TOP_LOGPROBS) ?? 0
  if (n > 0 && !logprobs) throw invalid('top_logprobs', `is only for ${condition}`)
  return n
}

/**
 * The JSON that an answer has to be, for a format that was asked for in `formatField` or for a call
 * that has to be made; one of the two at most.
 */
export function readJson(
  tooling: ToolRequest,
  format: Pick<GenerateOptions, 'json'>,
  formatField: string,
): { sampling: Pick<GenerateOptions, 'json'>; jsonField: string } {
  const json = forcedSchema(tooling)
  if (json === null) return { sampling: format, jsonField: formatField }
  if (format.json === undefined) return { sampling: { json }, jsonField: 'tool_choice' }
  throw invalid(formatField, 'is no use where tool_choice asks for a call')
}

/** Reads the body of a text completion. Throws an `ApiError` that names the field. */
export function readTextRequest(body: unknown, rules: RequestRules): TextRequest {
  const fields = fieldsOf(body)
  const prompts = readPrompts(fields.raw('prompt'))
  const echo = fields.boolean('echo') ?? false
  if (fields.text('suffix', Number.MAX_SAFE_INTEGER)) throw invalid('suffix', 'is not supported')
  const topLogprobs = fields.integer('logprobs', 0, MAX_TOP_LOGPROBS)
  const logprobs = topLogprobs !== undefined
  if (echo && logprobs) throw invalid('echo', 'with logprobs is not supported')
  const bestOf = fields.integer('best_of', 1, rules.maxChoices) ?? 1
  // OpenAI's default of this older interface.
  const maxTokens = fields.integer('max_tokens', 0, Number.MAX_SAFE_INTEGER) ?? 16
  const format = readFormat(fields.nested('response_format'), 'json_schema')
  const completion = readCompletion(fields, rules, maxTokens)
  if (bestOf > completion.n) throw invalid('best_of', 'above n is not supported')
  const sampling = {
    ...completion.sampling,
    ...format,
    topLogprobs: topLogprobs ?? 0,
    continueText: true,
  }
  return { ...completion, sampling, prompts, echo, logprobs }
}

/** The fields of a body. Throws an `ApiError` 400 for one that is no object. */
export function fieldsOf(body: unknown): Fields {
  if (isObject(body)) return new Fields(body)
  throw new ApiError(400, `the body is ${describe(body)}, expected a JSON object`, {
    code: 'invalid_body',
  })
}

/** What requests say in every API. */
type CommonRequest = Omit<GenerationRequest, 'n' | 'seed' | 'logprobs'>

/** Reads what requests say in every API; a choice has `maxTokens` new tokens at most. */
export function readGeneration(
  fields: Fields,
  rules: RequestRules,
  maxTokens: number,
): CommonRequest {
  const { sampling } = rules
  return {
    model: readModel(fields, rules.modelNames),
    stream: fields.boolean('stream') ?? false,
    sampling: {
      maxTokens: Math.min(maxTokens, rules.maxTokens),
      temperature: fields.number('temperature', 0, 2) ?? sampling.temperature,
      topP: fields.number('top_p', 0, 1) ?? sampling.topP,
      topK: readTopK(fields) ?? sampling.topK,
      minP: fields.number('min_p', 0, 1) ?? sampling.minP,
      repetitionPenalty:
        fields.number('repetition_penalty', 0.01, 100) ?? sampling.repetitionPenalty,
      stopTokens: readStopTokens(fields.list('stop_token_ids', MAX_STOPS)),
      ignoreEos: fields.boolean('ignore_eos') ?? false,
      // Without a number a prediction decides.
      promptLookup:
        fields.integer('prompt_lookup', 0, MOST_DRAFTED) ?? (rules.promptLookup || undefined),
    },
    policy: choosePolicy(fields.raw('kv_cache'), rules.policies),
  }
}

/** Reads what both kinds of completions say, and refuses what neither does. */
function readCompletion(
  fields: Fields,
  rules: RequestRules,
  maxTokens: number,
): Omit<GenerationRequest, 'logprobs'> & StreamRequest {
  const common = readGeneration(fields, rules, maxTokens)
  const request = {
    ...common,
    ...readStreamOptions(fields.nested('stream_options'), common.stream),
    n: fields.integer('n', 1, rules.maxChoices) ?? 1,
    sampling: {
      ...common.sampling,
      presencePenalty: fields.number('presence_penalty', -2, 2) ?? 0,
      frequencyPenalty: fields.number('frequency_penalty', -2, 2) ?? 0,
      logitBias: readLogitBias(fields),
      stop: readStop(fields.raw('stop')),
    },
    seed: readSeed(fields),
  }
  fields.ignore(IGNORED)
  fields.done()
  return request
}

function readStreamOptions(options: Fields | undefined, stream: boolean): StreamRequest {
  if (options && !stream) throw invalid('stream_options', 'is only for "stream": true')
  const includeUsage = options?.boolean('include_usage') ?? false
  // vLLM's name for it.
  const continuousUsage = options?.boolean('continuous_usage_stats') ?? false
  if (continuousUsage && !includeUsage) {
    throw invalid('stream_options.continuous_usage_stats', 'is only for "include_usage": true')
  }
  options?.ignore(['include_obfuscation'])
  options?.done()
  return { includeUsage, continuousUsage }
}

function readModel(fields: Fields, names: readonly string[]): string {
  const model = fields.text('model', MAX_NAME_LENGTH) ?? (names[0] as string)
  if (names.includes(model)) return model
  throw modelNotFound(model, names)
}

/** The answer to whoever asks for another model than the one there is. */
export function modelNotFound(model: string, names: readonly string[]): ApiError {
  return new ApiError(404, `model: there is no ${describe(model)}, only ${names.join(', ')}`, {
    param: 'model',
    code: 'model_not_found',
  })
}

/** The seed of a request that names none. */
export function anySeed(): bigint {
  return BigInt(Math.floor(Math.random() * 2 ** 48))
}

/** 64 bits, as OpenAI takes; of those that a double cannot hold, the nearest that it can. */
function readSeed(fields: Fields): bigint {
  const seed = fields.number('seed', -(2 ** 63), 2 ** 63)
  if (seed === undefined) return anySeed()
  if (Number.isInteger(seed)) return BigInt(seed)
  throw invalid('seed', `is ${seed}, expected a whole number`)
}

/** -1 is what other servers take for "all", 0 what we do. */
function readTopK(fields: Fields): number | undefined {
  const topK = fields.integer('top_k', -1, 2 ** 31 - 1)
  return topK === -1 ? 0 : topK
}

function readLogitBias(fields: Fields): Map<number, number> {
  const bias = Object.entries(fields.object('logit_bias') ?? {})
  const isBias = ([id, value]: [string, unknown]) =>
    /^\d{1,9}$/.test(id) && typeof value === 'number' && value >= -100 && value <= 100
  if (bias.length <= MAX_BIAS && bias.every(isBias)) {
    return new Map(bias.map(([id, value]) => [Number(id), value as number]))
  }
  throw invalid('logit_bias', `expected token ids with -100 to 100, at most ${MAX_BIAS}`)
}

/**
 * What the answer must be: any text, a JSON object, or JSON by a schema, which stands in the format's
 * field `schemaIn`, or (null) in the format itself.
 */
export function readFormat(
  format: Fields | undefined,
  schemaIn: string | null,
): Pick<GenerateOptions, 'json'> {
  const type = format?.choice('type', ['text', 'json_object', 'json_schema'])
  if (format === undefined) return {}
  if (type === undefined) throw invalid(format.path('type'), 'is missing')
  // llama.cpp and others take the schema of an object beside its type.
  const isNamed = type === 'json_schema' && schemaIn !== null
  const named = isNamed ? format.nested(schemaIn) : type === 'text' ? undefined : format
  if (type === 'json_schema') named?.ignore(['name', 'description', 'strict'])
  const schema = named?.raw('schema')
  named?.done()
  format.done()
  if (type === 'text') return {}
  if (type === 'json_object' && schema === undefined) return { json: true }
  const param = named?.path('schema') ?? format.path(`${schemaIn}.schema`)
  if (!isObject(schema)) throw invalid(param, 'expected a JSON schema')
  checkSchema(schema, param)
  return { json: schema }
}

function readStop(value: unknown): string[] {
  const list = value === undefined ? [] : Array.isArray(value) ? value : [value]
  const isStop = (stop: unknown) =>
    typeof stop === 'string' && stop !== '' && stop.length <= MAX_STOP_LENGTH
  if (list.length <= MAX_STOPS && list.every(isStop)) return list as string[]
  throw invalid('stop', `expected a text, or at most ${MAX_STOPS}, none empty`)
}

function readStopTokens(list: readonly unknown[] = []): number[] {
  if (list.every((id) => Number.isSafeInteger(id) && (id as number) >= 0)) return list as number[]
  throw invalid('stop_token_ids', 'expected token ids')
}

function readMessages(fields: Fields): ChatMessage[] {
  const list = fields.list('messages', MAX_MESSAGES)
  if (list === undefined || list.length === 0) {
    throw invalid('messages', 'expected a list of at least one message')
  }
  return list.map((message, i) => {
    if (!isObject(message)) throw invalid(`messages[${i}]`, 'expected { role, content }')
    const { role, content } = message
    if (typeof role !== 'string' || role === '' || role.length > MAX_NAME_LENGTH) {
      throw invalid(`messages[${i}].role`, `is ${describe(role)}, expected a text`)
    }
    if (NEED_CONTENT.has(role) && (content === null || content === undefined)) {
      throw invalid(`messages[${i}].content`, 'is missing, expected a text or a list of parts')
    }
    const calls = readCalls(message.tool_calls, i)
    const said = readContent(content, `messages[${i}].content`)
    return { ...withoutEmpty(message), ...calls, role, content: said }
  })
}

/**
 * A message without fields that are null and calls that are none, which clients send of earlier answers:
 * some templates ask whether there are calls by the name of their field alone.
 */
function withoutEmpty(message: JsonObject): JsonObject {
  const isEmpty = (name: string, value: unknown) =>
    value === null || (name === 'tool_calls' && Array.isArray(value) && value.length === 0)
  return Object.fromEntries(
    Object.entries(message).filter(([name, value]) => !isEmpty(name, value)),
  )
}

/** Calls of an earlier answer: templates write their arguments, which come as texts, as objects. */
function readCalls(calls: unknown, i: number): { tool_calls?: JsonObject[] } {
  if (calls === undefined || calls === null) return {}
  const where = `messages[${i}].tool_calls`
  if (!Array.isArray(calls)) throw invalid(where, `is ${describe(calls)}, expected a list`)
  if (calls.length === 0) return {}
  const tool_calls = calls.map((call: unknown): JsonObject => {
    const called = isObject(call) ? call.function : undefined
    if (!isObject(call) || !isObject(called) || typeof called.name !== 'string') {
      throw invalid(where, 'expected { "id", "type", "function": { "name", "arguments" } }')
    }
    return { ...call, function: { ...called, arguments: readArguments(called.arguments, where) } }
  })
  return { tool_calls }
}

/**
 * The arguments of a call, a text of JSON or an object; an empty text, as some models write a call
 * without any, is one without. Throws an `ApiError` 400.
 */
export function readArguments(given: unknown, where: string): JsonObject {
  if (isObject(given)) return given
  try {
    const value: unknown = JSON.parse(String(given ?? '').trim() || '{}')
    if (isObject(value)) return value
  } catch {
    // told below
  }
  throw invalid(where, 'has arguments that are no JSON object')
}

/** A text, or OpenAI's parts of one, which templates take as one text. */
function readContent(content: unknown, where: string): string | null {
  if (typeof content === 'string') return content
  // An assistant's message that is all tool calls has none.
  if (content === null || content === undefined) return null
  if (!Array.isArray(content)) {
    throw invalid(where, `is ${describe(content)}, expected a text or a list of parts`)
  }
  return content
    .map((part) => {
      const { type, text, refusal } = isObject(part) ? part : {}
      if (type === 'text' && typeof text === 'string') return text
      // What a model said when it would not answer.
      if (type === 'refusal' && typeof refusal === 'string') return refusal
      throw invalid(where, `holds ${describe(type)}; this model reads texts only`)
    })
    .join('')
}

function readPrompts(prompt: unknown): (string | number[])[] {
  const isIds = (list: unknown) =>
    Array.isArray(list) && list.length > 0 && list.every(Number.isSafeInteger)
  if (typeof prompt === 'string') return [prompt]
  if (isIds(prompt)) return [prompt as number[]]
  if (
    Array.isArray(prompt) &&
    prompt.length > 0 &&
    prompt.length <= MAX_PROMPTS &&
    (prompt.every((one) => typeof one === 'string') || prompt.every(isIds))
  ) {
    return prompt as (string | number[])[]
  }
  throw invalid(
    'prompt',
    `expected a text, token ids, or a list of at most ${MAX_PROMPTS} of those`,
  )
}
