import { randomUUID } from 'node:crypto'
import { HarmonyParser } from '../chat/harmony.js'
import { endsInThought, type ThoughtMarks, ThoughtParser, thoughtMarks } from '../chat/thoughts.js'
import { makeForcedParser, makeToolCallParser, toolFormatOf } from '../chat/tool-calls.js'
import type { Engine } from '../engine/engine.js'
import type { GenerateOptions } from '../engine/generation.js'
import type { HarmonyOptions } from '../engine/harmony-constraint.js'
import type { Model } from '../engine/model.js'
import type { ThoughtOptions } from '../engine/thought-constraint.js'
import { argumentError } from '../errors.js'
import type { JsonSchema } from '../grammar/index.js'
import { gemmaMarks, isGemmaTemplate } from '../model/gemma-marks.js'
import { type HarmonyMarks, harmonyMarks, isHarmonyTemplate } from '../model/harmony.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import {
  type AnswerEvent,
  type AnswerFormat,
  type AnswerHead,
  type AnswerOptions,
  answerChunks,
  chatFormat,
  textFormat,
  usageObject,
  wholeAnswer,
  withHarmony,
  withToolCalls,
} from './answers.js'
import { ApiError, invalid } from './api-error.js'
import { describe, type JsonObject } from './fields.js'
import {
  type ChoiceEvent,
  Generation,
  type GenerationCall,
  type GenerationObserver,
  type Usage,
} from './generation.js'
import { inputItems } from './input-items.js'
import { checkGemmaCalls } from './json-schema.js'
import {
  chatPrompt,
  checkLength,
  type PromptTokens,
  type SharedTokens,
  settledPrompt,
  templateOptions,
  textPrompt,
} from './prompt.js'
import {
  type ChatRequest,
  type GenerationRequest,
  type ReasoningEffort,
  type RequestRules,
  readChatRequest,
  readTextRequest,
  type StreamRequest,
  type ThinkingSwitch,
} from './request.js'
import { ResponseAnswer, type ResponseEvent, responseUsage } from './response-answer.js'
import { readItems } from './response-items.js'
import { readResponseRequest } from './response-request.js'
import { describeCache } from './session-cache.js'
import type { SessionName, Sessions } from './sessions.js'
import { Beginnings, countShared } from './shared-tokens.js'
import { newResponseId, type StoredResponses } from './stored-responses.js'
import { inOneTurn, inTemplateWords, toolsInTemplateWords } from './template-messages.js'
import { type ThoughtEvent, withThoughts } from './thoughts.js'
import { callSchemas, parametersIn, type ToolRequest } from './tools.js'

/** What a service answers from. */
export interface ServiceParts {
  readonly model: Model
  readonly engine: Engine
  readonly sessions: Sessions
  readonly responses: StoredResponses
  readonly rules: RequestRules
  /** See `ServerOptions`. */
  readonly chatTemplate: string | undefined
  /** Whether the engine keeps what chats begin with. */
  readonly keepsPrefixes: boolean
  /** Whether chats that name no session go on with others that do not. */
  readonly matchesSessions: boolean
  /** Most tokens of a prompt. */
  readonly maxPromptTokens: number
  readonly observer: ServiceObserver
}

/** Told what requests do, for metrics and logs. */
export interface ServiceObserver {
  /** A request has tokens to generate. */
  begin(): GenerationObserver & { done(usage: Readonly<Usage>): void }
}

/** What a request is beside its body. */
export interface Call {
  /** Aborted when nobody waits for the answer. */
  readonly signal: AbortSignal
  /** The conversation that it goes on with. */
  readonly session: SessionName | null
  /** Whose request it is: what tells one key from another. Default: everybody's. */
  readonly owner?: string | undefined
  /** Told what it took, when its tokens have ended, however they did. */
  readonly done?: ((usage: Readonly<Usage>, policy: string) => void) | undefined
}

/** An answer: one object, or objects as they come. */
export type Answer = WholeAnswer | StreamedAnswer

/** An answer of the Responses API: one object, or events as they come. */
export type ResponsesAnswer = WholeAnswer | EventsAnswer

/** One object. */
export interface WholeAnswer {
  /** Tells it from the others. */
  readonly kind: 'whole'
  /** To be sent as JSON. */
  readonly body: object
}

/** Objects as they come. */
export interface StreamedAnswer {
  /** Tells it from the others. */
  readonly kind: 'stream'
  /** Each to be sent as an event, `[DONE]` after them. */
  readonly chunks: AsyncGenerator<object, void, undefined>
}

/** Events as they come. */
export interface EventsAnswer {
  /** Tells it from the others. */
  readonly kind: 'events'
  /** Each to be sent under the name that is its `type`. */
  readonly events: AsyncGenerator<ResponseEvent, void, undefined>
  /** The last ones, where the others have ended with an error: `toApiError` makes it of that. */
  failure(error: ApiError): readonly ResponseEvent[]
}

/** A call that goes on from a kept conversation, and leaves that as it is. */
type FromCall = Call & Pick<GenerationCall, 'from'>

/** An answer that has begun. */
interface Started {
  readonly nChoices: number
  readonly generation: Generation
  /** What happens, once it is read. */
  readonly events: AsyncIterable<AnswerEvent>
}

/**
 * OpenAI's API over an engine, apart from HTTP: bodies in, objects out. Its methods reject with an
 * `ApiError` or a `ZipCacheError`; `toApiError` makes an answer of either.
 */
export class OpenAiService {
  readonly #parts: ServiceParts
  readonly #beginnings = new Beginnings()
  readonly #created = Math.floor(Date.now() / 1000)

  /** @internal Use `createService`. */
  constructor(parts: ServiceParts) {
    this.#parts = parts
  }

  /** `GET /v1/models`. */
  models(): object {
    return { object: 'list', data: this.#parts.rules.modelNames.map((id) => this.#model(id)) }
  }

  /** `GET /v1/models/:id`; null when there is none of that name. */
  model(id: string): object | null {
    return this.#parts.rules.modelNames.includes(id) ? this.#model(id) : null
  }

  /** `POST /v1/chat/completions`. */
  async chat(body: unknown, call: Call): Promise<Answer> {
    checkCall(call)
    const request = readChatRequest(body, this.#parts.rules)
    return this.#complete(request, this.#chat(request, call, '\n'), chatFormat)
  }

  /** `POST /v1/completions`. */
  async complete(body: unknown, call: Call): Promise<Answer> {
    checkCall(call)
    const request = readTextRequest(body, this.#parts.rules)
    const { model, maxPromptTokens } = this.#parts
    this.#checkJson(request, 'response_format')
    const prompts = request.prompts.map((prompt) => textPrompt(model, prompt, maxPromptTokens))
    for (const { ids } of prompts) checkLength(ids, 'prompt', maxPromptTokens)
    const echoes = request.echo
      ? prompts.flatMap(({ text, ids }) => {
          const echo = text ?? model.tokenizer?.decode(ids) ?? ''
          return new Array<string>(request.n).fill(echo)
        })
      : []
    const started = this.#generate(request, prompts, call)
    return this.#complete(request, started, (options) => textFormat(options, echoes))
  }

  /** `POST /v1/responses`. */
  async respond(body: unknown, call: Call): Promise<ResponsesAnswer> {
    checkCall(call)
    const { model, sessions, responses, rules } = this.#parts
    const { owner = '' } = call
    const request = readResponseRequest(body, rules, responses, owner)
    const id = newResponseId()
    const name = { id, owner }
    // Its cache stays under its own name, unless it belongs to a session.
    const own = request.store && !call.session ? name : null
    const session = call.session ?? own
    const from = call.session ? null : request.past
    const { generation, events } = this.#chat(request, { ...call, session, from }, '')
    const answer = new ResponseAnswer({
      id,
      model: request.model,
      echo: request.echo,
      logprobs: request.logprobs,
      summary: request.summary,
      sealed: request.sealed,
      tokenizer: model.tokenizer,
      usage: () => responseUsage(generation.usage, generation.policy),
    })
    let response: object = {}
    const end = (whole: object) => {
      response = whole
      if (!request.store) return
      const output = readItems(answer.output, () => null)
      const conversation = [...request.conversation, ...output]
      responses.keep(name, { response, conversation, nOutput: output.length })
    }
    async function* written() {
      try {
        yield* answer.events(events, end)
      } finally {
        // Given up before there was a response to go on with.
        if (own && !responses.find(own)) sessions.remove(own)
      }
    }
    if (request.stream) {
      return { kind: 'events', events: written(), failure: (error) => answer.failure(error) }
    }
    for await (const _ of written()); // the last has all
    return { kind: 'whole', body: response }
  }

  /** `GET /v1/responses/:id`; null when there is none of that name any more. */
  response(name: SessionName): object | null {
    return this.#parts.responses.find(name)?.response ?? null
  }

  /**
   * `GET /v1/responses/:id/input_items`; null when there is none of that name any more.
   *
   * Throws an `ApiError` 400 that names the field of `query`.
   */
  inputItems(name: SessionName, query: Readonly<Record<string, unknown>>): object | null {
    const stored = this.#parts.responses.find(name)
    return stored && inputItems(name.id, stored, query)
  }

  /** `DELETE /v1/responses/:id`: frees its cache; null when there is none of that name. */
  deleteResponse(name: SessionName): object | null {
    const { responses, sessions } = this.#parts
    if (!responses.remove(name)) return null
    sessions.remove(name)
    return { id: name.id, object: 'response', deleted: true }
  }

  /** `GET /v1/sessions/:id/cache`; null when there is no such session. */
  async sessionCache(name: SessionName): Promise<object | null> {
    const sequence = this.#parts.sessions.find(name)
    return sequence && describeCache(sequence, this.#parts.model)
  }

  /** `DELETE /v1/sessions/:id`: frees its cache; null when there is no such session. */
  endSession(name: SessionName): object | null {
    const isThere = this.#parts.sessions.remove(name)
    return isThere ? { id: name.id, object: 'session', deleted: true } : null
  }

  /** Ends the conversations and the engine; answers under way reject. Idempotent. */
  async dispose(): Promise<void> {
    this.#parts.sessions.dispose()
    await this.#parts.engine.dispose()
  }

  /**
   * An answer to messages; `separator`: what stands between two of the model's own whose texts are taken
   * together. Throws an `ApiError` 400 for a prompt that cannot be made of them.
   */
  #chat(asked: ChatRequest, asCalled: FromCall, separator: string): Started {
    const { model, chatTemplate, maxPromptTokens } = this.#parts
    this.#checkJson(asked, asked.jsonField)
    const template = this.#templateOf(asked)
    const { tooling } = asked
    const { request, prompt } = this.#written({
      ...asked,
      messages: inTemplateWords(template, asked.messages, tooling.tools),
      tooling: { ...tooling, tools: toolsInTemplateWords(template, tooling.tools) },
      templateVariables: variablesOf(asked, template),
      sampling: this.#withPrediction(asked.sampling),
    })
    checkLength(prompt.ids, request.messagesField, maxPromptTokens)
    const shared = this.#sharedOf(request, prompt, asCalled)
    const marks = isHarmonyTemplate(template) && model.tokenizer && harmonyMarks(model.tokenizer)
    const thoughts = thoughtMarks(template)
    const matching = this.#matchingOf(request, asCalled)
    const isKept = this.#parts.sessions.isOn && (asCalled.session !== null || matching !== null)
    // Most templates leave out what was thought before.
    const settled =
      (marks || thoughts) && isKept ? settledPrompt(model, request, chatTemplate, prompt) : null
    const prompts = [{ ...prompt, ...(shared && { shared }), ...(settled && { settled }) }]
    const call = { ...asCalled, matching }
    if (marks) return this.#harmony(request, prompts, marks, call, separator)
    const own = this.#asGemmas(request, tooling, template)
    const started = thoughts
      ? this.#thinking(own, prompts, thoughts, call)
      : this.#generate(own, prompts, call)
    const isJson = own.sampling.json !== undefined
    return { ...started, events: this.#findCalls(tooling, template, started.events, isJson) }
  }

  /** A request with its prompt. Turns that the template does not take one after the other are said in one. */
  #written(request: ChatRequest): { request: ChatRequest; prompt: PromptTokens } {
    const { model, chatTemplate, maxPromptTokens } = this.#parts
    const write = (own: ChatRequest) => ({
      request: own,
      prompt: chatPrompt(model, own, chatTemplate, maxPromptTokens),
    })
    const messages = inOneTurn(request.messages)
    if (messages === request.messages) return write(request)
    try {
      return write(request)
    } catch (refusal) {
      if (!isRefusal(refusal)) throw refusal
      try {
        return write({ ...request, messages })
      } catch (error) {
        throw isRefusal(error) ? refusal : error
      }
    }
  }

  /**
   * A request to a model of Gemma 4's as that answers: with the tokens that end its turn, whatever
   * generation_config.json says, and calls that are asked for in its own notation.
   *
   * - `tooling`: the tools as they were asked for
   */
  #asGemmas(request: ChatRequest, tooling: ToolRequest, template: string): ChatRequest {
    const { tokenizer } = this.#parts.model
    const marks = isGemmaTemplate(template) && tokenizer ? gemmaMarks(tokenizer) : null
    if (!marks) return request
    const { json, ...own } = request.sampling
    const ends = own.ignoreEos ? [] : marks.ends
    const sampling = { ...own, stopTokens: [...(own.stopTokens ?? []), ...ends] }
    if (tooling.forced === undefined) {
      return { ...request, sampling: json === undefined ? sampling : { ...sampling, json } }
    }
    const gemmaCalls = callSchemas(tooling)
    checkGemmaCalls(gemmaCalls, request.jsonField)
    return { ...request, sampling: { ...sampling, gemmaCalls } }
  }

  /** An answer that may have thoughts before what it says. */
  #thinking(
    { sampling, ...request }: ChatRequest,
    prompts: readonly PromptTokens[],
    marks: ThoughtMarks,
    call: FromCall,
  ): Started & { events: AsyncIterable<ThoughtEvent> } {
    // Texts that end the answer are looked for where it is told apart: thoughts may have them.
    const { stop = [], ...own } = sampling
    const tokenizer = this.#parts.model.tokenizer as ModelTokenizer
    const prompt = prompts[0]?.text ?? ''
    const isHeld = sampling.json !== undefined || sampling.gemmaCalls !== undefined
    const thoughts = isHeld ? thoughtsBefore(marks, prompt, tokenizer) : undefined
    const started = this.#generate({ ...request, sampling: { ...own, thoughts } }, prompts, call)
    const events = withThoughts(started.events, {
      makeParser: () => new ThoughtParser({ marks, tokenizer, prompt }),
      stop: [stop].flat(),
      ...toldTo(started.generation),
    })
    return { ...started, events }
  }

  /** An answer whose format tells what the model thinks from what it says and calls. */
  #harmony(
    { sampling: asked, tooling, ...request }: ChatRequest,
    prompts: readonly PromptTokens[],
    marks: HarmonyMarks,
    call: FromCall,
    separator: string,
  ): Started {
    // Texts that end the answer are looked for where it is told apart: headers and thoughts may have them.
    const { json, stop = [], ...own } = asked
    const tokenizer = this.#parts.model.tokenizer as ModelTokenizer
    const prompt = prompts[0]?.ids ?? []
    if (json !== undefined && !isAtHeader(prompt, marks, tokenizer)) {
      throw invalid(
        request.jsonField,
        'needs a chat template that ends with <|start|>assistant, which that of this model does not',
      )
    }
    const ends = asked.ignoreEos ? [] : [marks.call, marks.return].filter((id) => id !== null)
    const sampling = {
      ...own,
      stopTokens: [...(asked.stopTokens ?? []), ...ends],
      ...(json === undefined ? {} : { harmony: constraintOf(json, tooling) }),
    }
    const started = this.#generate({ ...request, sampling }, prompts, call)
    const { names, forced, isParallel } = tooling
    const events = withHarmony(started.events, {
      makeParser: () => new HarmonyParser({ marks, tokenizer, names, separator, prompt }),
      stop: [stop].flat(),
      isNamed: typeof forced === 'string',
      isParallel,
      ...toldTo(started.generation),
    })
    return { ...started, events }
  }

  /** Begins to answer; nothing runs before the events are read. */
  #generate(
    request: GenerationRequest,
    prompts: readonly PromptTokens[],
    call: FromCall,
  ): Started & { events: AsyncIterable<ChoiceEvent> } {
    const { model, engine, sessions, observer, rules } = this.#parts
    const nChoices = prompts.length * request.n
    if (nChoices > rules.maxChoices) {
      throw invalid('n', `${nChoices} choices in all, this server gives ${rules.maxChoices}`)
    }
    if (call.session && nChoices > 1) {
      throw invalid('n', 'a session (x-session-id) goes on with one choice of one prompt')
    }
    const seen = observer.begin()
    const host = { engine, tokenizer: model.tokenizer, sessions }
    const generation = new Generation(host, request, prompts, { ...call, observer: seen })
    async function* events() {
      try {
        yield* generation.events()
      } finally {
        seen.done(generation.usage)
        call.done?.(generation.usage, generation.policy)
      }
    }
    return { nChoices, generation, events: events() }
  }

  /** Writes what is generated as a completion. */
  async #complete(
    request: GenerationRequest & StreamRequest,
    { nChoices, generation, events }: Started,
    formatOf: (options: AnswerOptions) => AnswerFormat,
  ): Promise<Answer> {
    const { tokenizer } = this.#parts.model
    const options = { nChoices, logprobs: request.logprobs, tokenizer }
    const format = formatOf(options)
    const head: AnswerHead = {
      id: `${format.idPrefix}${randomUUID().replaceAll('-', '')}`,
      created: Math.floor(Date.now() / 1000),
      model: request.model,
    }
    const usage = () => usageObject(generation.usage, generation.policy)
    if (!request.stream) {
      return { kind: 'whole', body: await wholeAnswer(events, usage, head, format, options) }
    }
    const now = () => usageObject(generation.usageNow, generation.policy)
    const streamUsage = { last: usage, now: request.continuousUsage ? now : null }
    const used = request.includeUsage ? streamUsage : null
    return { kind: 'stream', chunks: answerChunks(events, used, head, format, options) }
  }

  /** With a prediction as tokens, of which all choices are drafted. Throws an `ApiError` 400 for too many. */
  #withPrediction({ prediction, ...sampling }: GenerateOptions): GenerateOptions {
    const { tokenizer } = this.#parts.model
    if (typeof prediction !== 'string' || prediction === '' || !tokenizer) return sampling
    const ids = tokenizer.encode(prediction, { addSpecialTokens: false })
    checkLength(ids, 'prediction', this.#parts.maxPromptTokens)
    return { ...sampling, prediction: ids }
  }

  /** The source of the chat template that a request's messages are written by; '': there is none. */
  #templateOf({ tooling: { tools }, templateVariables }: ChatRequest): string {
    const { model, chatTemplate } = this.#parts
    const options = templateOptions(tools, templateVariables, chatTemplate)
    return model.tokenizer?.chatTemplateSource(options) ?? ''
  }

  /** The events of a chat's answer, with calls of its tools where there are any; `isJson`: it is held to JSON. */
  #findCalls(
    { tools, names, forced, isParallel }: ToolRequest,
    template: string,
    events: AsyncIterable<ThoughtEvent>,
    isJson: boolean,
  ): AsyncIterable<AnswerEvent> {
    const isNamed = typeof forced === 'string'
    if (forced !== undefined && isJson) {
      return withToolCalls(events, () => makeForcedParser(forced), { isNamed, isParallel })
    }
    const { tokenizer } = this.#parts.model
    const format = toolFormatOf(template)
    if (tools.length === 0 || tokenizer === null || format === null) return events
    const specialId = (token: string) => {
      const id = tokenizer.tokenId(token)
      return id !== undefined && tokenizer.specialIds.has(id) ? id : undefined
    }
    const parametersOf = (name: string) => parametersIn(tools, name)
    const makeParser = () => makeToolCallParser(format, { names, parametersOf, specialId })
    return withToolCalls(events, makeParser, { isNamed, isParallel })
  }

  /** What a chat that names a `prompt_cache_key` shares with others that name it. */
  #sharedOf(request: ChatRequest, prompt: PromptTokens, { owner = '' }: Call): SharedTokens | null {
    const { model, chatTemplate, keepsPrefixes } = this.#parts
    const { cacheKey } = request
    if (cacheKey === undefined || !keepsPrefixes) return null
    const count = countShared(model, request, chatTemplate, prompt, this.#beginnings)
    return count === 0 ? null : { count, scope: JSON.stringify([owner, cacheKey]) }
  }

  /** Among whose conversations a chat that names none looks for one to go on with. */
  #matchingOf({ n }: ChatRequest, { session, from, owner = '' }: FromCall): string | null {
    return this.#parts.matchesSessions && !session && !from && n === 1 ? owner : null
  }

  /** Throws an `ApiError` 400 for JSON that this model's vocabulary cannot be held to. */
  #checkJson({ sampling }: GenerationRequest, param: string): void {
    if (sampling.json === undefined || this.#parts.model.tokenizer?.knowsBytes) return
    const what = 'needs a byte-level or byte-fallback vocabulary, which this model does not have'
    throw invalid(param, what)
  }

  #model(id: string): object {
    const { maxPositions } = this.#parts.model.config
    return {
      id,
      object: 'model',
      created: this.#created,
      owned_by: 'zipcache',
      max_model_len: maxPositions,
    }
  }
}

/** Whether a template did not take the messages. */
function isRefusal(error: unknown): boolean {
  return error instanceof ApiError && error.code === 'invalid_prompt'
}

/** What models of gpt-oss's family have learned. */
const HARMONY_EFFORTS = ['low', 'medium', 'high']

/**
 * The variables of a chat's template, with whether and how much the model is to think. Throws an
 * `ApiError` 400 where the template does not say that.
 */
function variablesOf({ templateVariables, effort, thinking }: ChatRequest, template: string) {
  if (!effort && !thinking) return templateVariables
  const own = { ...templateVariables, ...(thinking && switchThinking(thinking, template)) }
  return { ...own, ...(effort && variablesOfEffort(effort, template, own)) }
}

/** `own`: what else was said. */
function variablesOfEffort(
  { field, value }: ReasoningEffort,
  template: string,
  own: JsonObject,
): JsonObject {
  const isRead = template.includes('reasoning_effort')
  const name = switchOf(template)
  if (value === 'none' && (!isRead || name !== null)) {
    return switchThinking({ field, isOn: false }, template)
  }
  if (!isRead) {
    // OpenAI's default, which clients send unasked, also beside a switch that is off.
    if (value === 'medium') return name === null || Object.hasOwn(own, name) ? {} : { [name]: true }
    const what = `is ${describe(value)}, but the chat template of this model reads no effort`
    throw invalid(field, what)
  }
  if (isHarmonyTemplate(template) && !HARMONY_EFFORTS.includes(value)) {
    throw invalid(field, `is ${describe(value)}, this model knows ${HARMONY_EFFORTS.join(', ')}`)
  }
  return { reasoning_effort: value }
}

/** What says in a template whether the model is to think. */
function switchOf(template: string): string | null {
  // Of Qwen 3, GLM and others; of DeepSeek V3.1 and Granite.
  if (template.includes('enable_thinking')) return 'enable_thinking'
  return /\bif (not )?thinking\b/.test(template) ? 'thinking' : null
}

function switchThinking({ field, isOn }: ThinkingSwitch, template: string): JsonObject {
  const name = switchOf(template)
  if (name !== null) return { [name]: isOn }
  const thinks = isHarmonyTemplate(template) || thoughtMarks(template) !== null
  // It does so by itself.
  if (isOn === thinks) return {}
  const what = thinks ? 'always lets it think' : 'knows no thoughts'
  throw invalid(field, `asks for what the chat template of this model has not: it ${what}`)
}

/** What a model may think before JSON that is asked for; undefined: the prompt says that it does not. */
function thoughtsBefore(
  marks: ThoughtMarks,
  prompt: string,
  tokenizer: ModelTokenizer,
): ThoughtOptions | undefined {
  const { open, close } = marks
  if (prompt.trimEnd().endsWith(close)) return undefined
  if (endsInThought(prompt, marks)) return { close }
  const isToken = tokenizer.encode(open, { addSpecialTokens: false }).length === 1
  return isToken ? { open, close } : undefined
}

/** What a generation is told by those who tell apart what it gives. */
function toldTo(generation: Generation) {
  return {
    stopChoice: (choice: number) => generation.stop(choice),
    countReasoning: () => {
      generation.usage.reasoningTokens++
    },
  }
}

/** Whether a prompt ends where the model says to which channel it writes. */
function isAtHeader(
  prompt: readonly number[],
  { start }: HarmonyMarks,
  tokenizer: ModelTokenizer,
): boolean {
  const end = [start, ...tokenizer.encode('assistant', { addSpecialTokens: false })]
  const tail = prompt.slice(-end.length)
  return tail.length === end.length && tail.every((id, i) => id === end[i])
}

/** What an answer has to be in harmony's format that has to be JSON, or a call. */
function constraintOf(json: true | JsonSchema, tooling: ToolRequest): HarmonyOptions {
  const calls = callSchemas(tooling)
  return tooling.forced === undefined ? { final: json, calls } : { calls }
}

/** Throws `ERR_ZC_ARGUMENT`: a caller without types may give anything. */
function checkCall(call: Call | undefined): void {
  const { signal, session } = (call ?? {}) as Partial<Call>
  const isName = typeof session?.id === 'string' && typeof session.owner === 'string'
  if (signal instanceof AbortSignal && (session === null || isName)) return
  throw argumentError(
    'call',
    'expected { signal, session }, an AbortSignal and { id, owner } or null',
  )
}
