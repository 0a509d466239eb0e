import type { ToolCall } from '../chat/tool-calls.js'
import type { GeneratedToken } from '../engine/generation.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { type AnswerEvent, cacheObject, tokenLogprobs } from './answers.js'
import type { ApiError } from './api-error.js'
import type { JsonObject } from './fields.js'
import type { Usage } from './generation.js'
import { sealed } from './response-items.js'
import { itemId } from './stored-responses.js'

/** An event of the Responses API. */
export interface ResponseEvent {
  /** What happens: `response.output_text.delta`, … */
  readonly type: string
  /** Its place in the stream, from 0. */
  readonly sequence_number: number
  readonly [field: string]: unknown
}

/** An item of a response's output, as far as it is known. */
type OutputItem = JsonObject & { readonly id: string }

/** How far a response, or an item of it, has come. */
type Status = 'in_progress' | 'completed' | 'incomplete' | 'failed'

/** What a response is written with. */
export interface ResponseOptions {
  readonly id: string
  readonly model: string
  /** What it says again of its request. */
  readonly echo: JsonObject
  readonly logprobs: boolean
  /** Whether a reasoning has a summary, which is all of it. */
  readonly summary: boolean
  /** Whether a reasoning is also there in a form that clients carry unread. */
  readonly sealed: boolean
  readonly tokenizer: ModelTokenizer | null
  /** Its usage; read at the end. */
  usage(): object
}

/** A message that is being written. */
interface OpenMessage {
  readonly id: string
  text: string
  readonly logprobs: object[]
}

/** A reasoning that is being written. */
interface OpenReasoning {
  readonly id: string
  text: string
}

/** Writes an answer as the events of the Responses API, the last of which has all of it. */
export class ResponseAnswer {
  readonly #options: ResponseOptions
  readonly #createdAt = now()
  readonly #output: OutputItem[] = []
  #open: OpenMessage | null = null
  /** Never beside an open message. */
  #reasoning: OpenReasoning | null = null
  /** Of tokens whose text has not come yet; those of a call's tokens are nobody's. */
  #held: object[] = []
  #nEvents = 0

  constructor(options: ResponseOptions) {
    this.#options = options
  }

  /** The items of its output that are whole. */
  get output(): readonly OutputItem[] {
    return this.#output
  }

  /**
   * The events of an answer of one choice. `end` is told the whole response before the last event is
   * given out.
   */
  async *events(
    answer: AsyncIterable<AnswerEvent>,
    end: (response: object) => void,
  ): AsyncGenerator<ResponseEvent, void, undefined> {
    let isCut = false
    for await (const event of answer) {
      // Not before: until then an error has a status of its own.
      if (this.#nEvents === 0) {
        yield this.#event('response.created', { response: this.#response('in_progress') })
        yield this.#event('response.in_progress', { response: this.#response('in_progress') })
      }
      if (event.kind === 'token') yield* this.#token(event.token)
      else if (event.kind === 'text') yield* this.#say(event.text)
      else if (event.kind === 'call') yield* this.#call(event.call)
      else if (event.kind === 'reasoning') yield* this.#think(event.text)
      else if (event.kind === 'message') yield* this.#close('completed')
      else isCut = event.finishReason === 'length'
    }
    const status = isCut ? 'incomplete' : 'completed'
    // An answer without a word is a message, too.
    const isEmpty = this.#output.length === 0 && !this.#reasoning
    if (isEmpty || this.#open) yield* this.#say('')
    yield* this.#close(status)
    const response = this.#response(status)
    end(response)
    yield this.#event(`response.${status}`, { response })
  }

  /**
   * What a stream ends with that fails, as OpenAI's do: some clients look for one of the two alone. Its
   * reference has the fields of `error` in the event itself, its API in an object.
   */
  failure(error: ApiError): ResponseEvent[] {
    const { code, message, param } = error
    const hasBegun = this.#nEvents > 0
    const events = [this.#event('error', { code, message, param, ...error.body })]
    if (!hasBegun) return events
    const failed = { code: code ?? 'server_error', message }
    const response = this.#response('failed', failed)
    return [...events, this.#event('response.failed', { response })]
  }

  *#token(token: GeneratedToken): Generator<ResponseEvent> {
    const { logprobs, tokenizer } = this.#options
    if (logprobs) this.#held.push(tokenLogprobs(token, tokenizer))
    if (token.text !== '') yield* this.#say(token.text)
  }

  *#say(delta: string): Generator<ResponseEvent> {
    yield* this.#begin()
    const message = this.#open as OpenMessage
    const logprobs = this.#held
    this.#held = []
    message.text += delta
    message.logprobs.push(...logprobs)
    if (delta === '' && logprobs.length === 0) return
    yield this.#event('response.output_text.delta', { ...this.#place(message), delta, logprobs })
  }

  *#begin(): Generator<ResponseEvent> {
    if (this.#open) return
    yield* this.#closeReasoning('completed')
    const id = itemId('msg', this.#options.id, this.#output.length)
    const message = { id, text: '', logprobs: [] }
    this.#open = message
    const item = { ...messageItem(message, 'in_progress'), content: [] }
    yield this.#event('response.output_item.added', { output_index: this.#output.length, item })
    const part = textPart(message)
    yield this.#event('response.content_part.added', { ...this.#place(message), part })
  }

  *#think(delta: string): Generator<ResponseEvent> {
    yield* this.#closeMessage('completed')
    let reasoning = this.#reasoning
    if (!reasoning) {
      reasoning = { id: itemId('rs', this.#options.id, this.#output.length), text: '' }
      this.#reasoning = reasoning
      const item = { ...this.#reasoningItem(reasoning, 'in_progress'), summary: [], content: [] }
      yield this.#event('response.output_item.added', { output_index: this.#output.length, item })
      const part = reasoningPart(reasoning)
      yield this.#event('response.content_part.added', { ...this.#place(reasoning), part })
      yield* this.#summarize(reasoning, 'part.added', { part: summaryPart(reasoning) })
    }
    reasoning.text += delta
    yield this.#event('response.reasoning_text.delta', { ...this.#place(reasoning), delta })
    yield* this.#summarize(reasoning, 'text.delta', { delta })
  }

  /** An event of a summary, where there is to be one. */
  *#summarize({ id }: OpenReasoning, what: string, fields: object): Generator<ResponseEvent> {
    if (!this.#options.summary) return
    const place = { item_id: id, output_index: this.#output.length, summary_index: 0 }
    yield this.#event(`response.reasoning_summary_${what}`, { ...place, ...fields })
  }

  #reasoningItem(reasoning: OpenReasoning, status: Status): OutputItem {
    const summary = this.#options.summary ? [summaryPart(reasoning)] : []
    const content = [reasoningPart(reasoning)]
    const carried = this.#options.sealed ? { encrypted_content: sealed(reasoning.text) } : {}
    return { id: reasoning.id, type: 'reasoning', status, summary, content, ...carried }
  }

  *#closeReasoning(status: Status): Generator<ResponseEvent> {
    const reasoning = this.#reasoning
    if (!reasoning) return
    this.#reasoning = null
    const place = this.#place(reasoning)
    yield this.#event('response.reasoning_text.done', { ...place, text: reasoning.text })
    yield this.#event('response.content_part.done', { ...place, part: reasoningPart(reasoning) })
    yield* this.#summarize(reasoning, 'text.done', { text: reasoning.text })
    yield* this.#summarize(reasoning, 'part.done', { part: summaryPart(reasoning) })
    yield* this.#done(this.#reasoningItem(reasoning, status))
  }

  *#close(status: Status): Generator<ResponseEvent> {
    yield* this.#closeReasoning(status)
    yield* this.#closeMessage(status)
  }

  *#closeMessage(status: Status): Generator<ResponseEvent> {
    const message = this.#open
    if (!message) return
    this.#open = null
    const { text, logprobs } = message
    const place = this.#place(message)
    yield this.#event('response.output_text.done', { ...place, text, logprobs })
    yield this.#event('response.content_part.done', { ...place, part: textPart(message) })
    yield* this.#done(messageItem(message, status))
  }

  *#call({ id: call_id, name, arguments: args }: ToolCall): Generator<ResponseEvent> {
    this.#held = []
    yield* this.#close('completed')
    const output_index = this.#output.length
    const id = itemId('fc', this.#options.id, output_index)
    const item = { id, type: 'function_call', status: 'completed', call_id, name, arguments: args }
    const empty = { ...item, status: 'in_progress', arguments: '' }
    yield this.#event('response.output_item.added', { output_index, item: empty })
    const place = { item_id: id, output_index }
    yield this.#event('response.function_call_arguments.delta', { ...place, delta: args })
    const done = { ...place, name, arguments: args }
    yield this.#event('response.function_call_arguments.done', done)
    yield* this.#done(item)
  }

  *#done(item: OutputItem): Generator<ResponseEvent> {
    const output_index = this.#output.length
    this.#output.push(item)
    yield this.#event('response.output_item.done', { output_index, item })
  }

  #place({ id }: { readonly id: string }): object {
    return { item_id: id, output_index: this.#output.length, content_index: 0 }
  }

  #event(type: string, fields: object): ResponseEvent {
    return { type, sequence_number: this.#nEvents++, ...fields }
  }

  #response(status: Status, error: object | null = null): object {
    const { id, model, echo, usage } = this.#options
    const open = [
      ...(this.#reasoning ? [this.#reasoningItem(this.#reasoning, 'incomplete')] : []),
      ...(this.#open ? [messageItem(this.#open, 'incomplete')] : []),
    ]
    return {
      id,
      object: 'response',
      created_at: this.#createdAt,
      completed_at: status === 'completed' ? now() : null,
      status,
      background: false,
      error,
      incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
      model,
      ...echo,
      output: [...this.#output, ...open],
      usage: status === 'in_progress' ? null : usage(),
    }
  }
}

function now(): number {
  return Math.floor(Date.now() / 1000)
}

function messageItem(message: OpenMessage, status: Status): OutputItem {
  const { id } = message
  return { id, type: 'message', status, role: 'assistant', content: [textPart(message)] }
}

function reasoningPart({ text }: OpenReasoning): object {
  return { type: 'reasoning_text', text }
}

function summaryPart({ text }: OpenReasoning): object {
  return { type: 'summary_text', text }
}

function textPart({ text, logprobs }: OpenMessage): object {
  return { type: 'output_text', text, annotations: [], logprobs: [...logprobs] }
}

/** A request's usage in the words of the Responses API, with what its caches took at the end. */
export function responseUsage(
  { promptTokens, cachedTokens, completionTokens, reasoningTokens, ...cache }: Readonly<Usage>,
  policy: string,
): object {
  return {
    input_tokens: promptTokens,
    input_tokens_details: { cached_tokens: cachedTokens },
    output_tokens: completionTokens,
    output_tokens_details: { reasoning_tokens: reasoningTokens },
    total_tokens: promptTokens + completionTokens,
    kv_cache: cacheObject(cache, policy),
  }
}
