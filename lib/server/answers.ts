import type { HarmonyParser, HarmonyPart } from '../chat/harmony.js'
import type { Said, ToolCall, ToolCallParser } from '../chat/tool-calls.js'
import type { FinishReason, GeneratedToken } from '../engine/generation.js'
import { StopMatcher } from '../model/text-stream.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import type { ChoiceEvent, Usage } from './generation.js'
import type { ThoughtEvent } from './thoughts.js'

/** Why a choice ended, as clients are told: calls are to be made, or as the engine has it. */
export type AnswerReason = FinishReason | 'tool_calls'

/** What happens to one choice, as it is written: its tool calls are told from its text. */
export type AnswerEvent =
  | Extract<ChoiceEvent, { kind: 'token' | 'text' }>
  /** Text that the model thinks by itself. */
  | { readonly kind: 'reasoning'; readonly choice: number; readonly text: string }
  /** Another message of the model's begins. */
  | { readonly kind: 'message'; readonly choice: number }
  | { readonly kind: 'call'; readonly choice: number; readonly call: ToolCall }
  | { readonly kind: 'end'; readonly choice: number; readonly finishReason: AnswerReason }

/**
 * Finds the tool calls of an answer.
 *
 * - `isNamed`: the request named the function to call; OpenAI's API then keeps the reason `stop`
 * - `isParallel`: whether a choice may have more than its first call; those after it are left out
 */
export async function* withToolCalls(
  events: AsyncIterable<ThoughtEvent>,
  makeParser: () => ToolCallParser,
  { isNamed, isParallel }: { readonly isNamed: boolean; readonly isParallel: boolean },
): AsyncGenerator<AnswerEvent, void, undefined> {
  const parsers = new Map<number, ToolCallParser>()
  const called = new Set<number>()
  for await (const event of events) {
    const { choice } = event
    if (event.kind === 'reasoning') {
      yield event
      continue
    }
    const parser = parsers.get(choice) ?? makeParser()
    parsers.set(choice, parser)
    const { text, calls } = tell(parser, event)
    if (event.kind === 'token') yield { ...event, token: { ...event.token, text } }
    else if (text !== '') yield { kind: 'text', choice, text }
    for (const call of calls) {
      if (called.has(choice) && !isParallel) continue
      called.add(choice)
      yield { kind: 'call', choice, call }
    }
    if (event.kind !== 'end') continue
    const isCalling = called.has(choice) && !isNamed && event.finishReason === 'stop'
    yield { ...event, finishReason: isCalling ? 'tool_calls' : event.finishReason }
  }
}

/** What an answer of messages in harmony's format is read with. */
export interface HarmonyReading {
  /** A parser for the answer of a choice. */
  makeParser(choice: number): HarmonyParser
  /** Texts that end a choice, looked for in what it says to people alone. */
  readonly stop: readonly string[]
  /** See `withToolCalls`. */
  readonly isNamed: boolean
  /** See `withToolCalls`. */
  readonly isParallel: boolean
  /** Told of a choice that such a text has ended. */
  stopChoice(choice: number): void
  /** Told of every token of a reasoning. */
  countReasoning(): void
}

/** Tells apart what an answer in harmony's format thinks, says and calls. */
export async function* withHarmony(
  events: AsyncIterable<ChoiceEvent>,
  reading: HarmonyReading,
): AsyncGenerator<AnswerEvent, void, undefined> {
  const choices = new Map<number, HarmonyChoice>()
  for await (const event of events) {
    const choice = choices.get(event.choice) ?? new HarmonyChoice(event.choice, reading)
    choices.set(event.choice, choice)
    yield* choice.read(event)
  }
}

/** One choice of an answer in harmony's format. */
class HarmonyChoice {
  readonly #choice: number
  readonly #reading: HarmonyReading
  readonly #parser: HarmonyParser
  #matcher: StopMatcher
  #hasCalled = false
  #isStopped = false

  constructor(choice: number, reading: HarmonyReading) {
    this.#choice = choice
    this.#reading = reading
    this.#parser = reading.makeParser(choice)
    this.#matcher = new StopMatcher(reading.stop)
  }

  *read(event: ChoiceEvent): Generator<AnswerEvent> {
    if (event.kind === 'token' && !this.#isStopped) {
      const { token } = event
      if (this.#parser.isReasoning && !this.#parser.isMark(token.id)) this.#reading.countReasoning()
      const own = this.#parser.isMark(token.id) ? null : token
      for (const part of this.#parser.push(token.id)) yield* this.#tell(part, own)
    }
    // The parser has all tokens, and so what was held back of their text.
    if (event.kind !== 'end') return
    if (!this.#isStopped) {
      const parts = this.#parser.end(event.finishReason === 'length')
      for (const part of parts) yield* this.#tell(part, null)
      yield* this.#endText()
    }
    const isStop = event.finishReason === 'stop' || this.#isStopped
    const isCalling = this.#hasCalled && !this.#reading.isNamed && isStop
    const finishReason = isStop ? 'stop' : event.finishReason
    yield { ...event, finishReason: isCalling ? 'tool_calls' : finishReason }
  }

  /** `token`: whose text it is; null for one that was held back until now. */
  *#tell(part: HarmonyPart, token: GeneratedToken | null): Generator<AnswerEvent> {
    const choice = this.#choice
    if (this.#isStopped) return
    if (part.kind === 'text') {
      const { text, stop } = this.#matcher.push(part.text)
      if (token) yield { kind: 'token', choice, token: { ...token, text } }
      else if (text !== '') yield { kind: 'text', choice, text }
      if (stop === null) return
      this.#isStopped = true
      this.#reading.stopChoice(choice)
      return
    }
    yield* this.#endText()
    if (part.kind === 'reasoning') yield { kind: 'reasoning', choice, text: part.text }
    else if (part.kind === 'message') yield { kind: 'message', choice }
    else if (this.#reading.isParallel || !this.#hasCalled) {
      this.#hasCalled = true
      yield { kind: 'call', choice, call: part.call }
    }
  }

  /** No text that ends the choice goes on from one message to the next. */
  *#endText(): Generator<AnswerEvent> {
    const text = this.#matcher.flush()
    if (text !== '') yield { kind: 'text', choice: this.#choice, text }
  }
}

function tell(parser: ToolCallParser, event: ChoiceEvent): Said {
  if (event.kind === 'end') return parser.end()
  return event.kind === 'text'
    ? parser.push(null, event.text)
    : parser.push(event.token.id, event.token.text)
}

/** What all objects of one answer have in common. */
export interface AnswerHead {
  readonly id: string
  readonly created: number
  readonly model: string
}

/** How an answer is to be written. */
export interface AnswerOptions {
  readonly nChoices: number
  readonly logprobs: boolean
  readonly tokenizer: ModelTokenizer | null
}

/** Writes what choices do as OpenAI's objects of one kind: one at the end, or chunks. */
export interface AnswerFormat {
  readonly idPrefix: string
  readonly wholeKind: string
  readonly chunkKind: string
  /** The first chunks of a stream, if any. */
  opening(choice: number): object | null
  /** A piece of a stream; null for a token without text. */
  piece(choice: number, text: string, logprobs: object | null): object
  /** What the model thinks by itself as a piece of a stream. */
  reasoning(choice: number, text: string): object
  /** A tool call as a piece of a stream; `index`: its number in the choice. */
  call(choice: number, call: ToolCall, index: number): object
  ending(choice: number, finishReason: AnswerReason): object
  whole(choice: number, state: WholeChoice, logprobs: object | null): object
  logprobs(tokens: readonly GeneratedToken[], textOffset: number): object
}

/** `/v1/chat/completions`. */
export function chatFormat({ tokenizer }: AnswerOptions): AnswerFormat {
  return {
    idPrefix: 'chatcmpl-',
    wholeKind: 'chat.completion',
    chunkKind: 'chat.completion.chunk',
    opening: (index) => ({
      index,
      delta: { role: 'assistant', content: '' },
      logprobs: null,
      finish_reason: null,
    }),
    piece: (index, content, logprobs) => ({
      index,
      delta: { content },
      logprobs,
      finish_reason: null,
    }),
    ending: (index, finishReason) => ({
      index,
      delta: {},
      logprobs: null,
      finish_reason: finishReason,
    }),
    // vLLM's name for it.
    reasoning: (index, text) => ({
      index,
      delta: { reasoning_content: text },
      logprobs: null,
      finish_reason: null,
    }),
    call: (choice, call, index) => ({
      index: choice,
      delta: { tool_calls: [{ index, ...callObject(call) }] },
      logprobs: null,
      finish_reason: null,
    }),
    whole: (index, { text, reasoning, calls, finishReason }, logprobs) => ({
      index,
      message: {
        role: 'assistant',
        content: calls.length > 0 && text === '' ? null : text,
        refusal: null,
        ...(reasoning === '' ? {} : { reasoning_content: reasoning }),
        ...(calls.length > 0 ? { tool_calls: calls.map(callObject) } : {}),
      },
      logprobs,
      finish_reason: finishReason,
    }),
    logprobs: (tokens) => ({
      content: tokens.map((token) => tokenLogprobs(token, tokenizer)),
      refusal: null,
    }),
  }
}

/** A token with its log-probability, and the likeliest in its place. */
export function tokenLogprobs(token: GeneratedToken, tokenizer: ModelTokenizer | null): object {
  return {
    ...tokenEntry(token, tokenizer),
    top_logprobs: (token.top ?? []).map((other) => tokenEntry(other, tokenizer)),
  }
}

/** `/v1/completions`. `prompts`: texts to stand before choices, for `echo`. */
export function textFormat({ tokenizer }: AnswerOptions, echoes: readonly string[]): AnswerFormat {
  return {
    idPrefix: 'cmpl-',
    wholeKind: 'text_completion',
    chunkKind: 'text_completion',
    opening: (index) =>
      echoes[index] === undefined
        ? null
        : { index, text: echoes[index], logprobs: null, finish_reason: null },
    piece: (index, text, logprobs) => ({ index, text, logprobs, finish_reason: null }),
    ending: (index, finishReason) => ({
      index,
      text: '',
      logprobs: null,
      finish_reason: finishReason,
    }),
    reasoning: () => {
      throw new Error('text completions are what the model wrote')
    },
    call: () => {
      throw new Error('text completions have no tools')
    },
    whole: (index, { text, finishReason }, logprobs) => ({
      index,
      text: (echoes[index] ?? '') + text,
      logprobs,
      finish_reason: finishReason,
    }),
    logprobs: (tokens, textOffset) => {
      const nameOf = (token: Pick<GeneratedToken, 'id' | 'logprob'>) =>
        tokenName(tokenEntry(token, tokenizer))
      let offset = textOffset
      return {
        tokens: tokens.map(nameOf),
        token_logprobs: tokens.map(({ logprob }) => logprob),
        top_logprobs: tokens.some(({ top }) => top && top.length > 0)
          ? tokens.map(({ top = [] }) =>
              Object.fromEntries(top.map((other) => [nameOf(other), other.logprob])),
            )
          : null,
        text_offset: tokens.map(({ text }) => {
          const at = offset
          offset += text.length
          return at
        }),
      }
    },
  }
}

function tokenEntry(
  { id, logprob }: Pick<GeneratedToken, 'id' | 'logprob'>,
  tokenizer: ModelTokenizer | null,
) {
  // Decoded by itself a token loses the space before it, and the bytes of half a character.
  const bytes = tokenizer?.bytesOf(id)
  const token = bytes ? Buffer.from(bytes).toString() : (tokenizer?.decode([id]) ?? String(id))
  return { token, logprob, bytes: [...(bytes ?? Buffer.from(token))] }
}

/** Tells parts of characters from one another, as OpenAI does where no bytes stand beside a token. */
function tokenName({ token, bytes }: { token: string; bytes: readonly number[] }): string {
  if (Buffer.from(token).equals(Buffer.from(bytes))) return token
  return `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`
}

function callObject({ id, name, arguments: args }: ToolCall): object {
  return { id, type: 'function', function: { name, arguments: args } }
}

/** What one choice said. */
export interface WholeChoice {
  readonly text: string
  /** What it thought by itself; '': nothing that was told apart. */
  readonly reasoning: string
  readonly calls: readonly ToolCall[]
  readonly finishReason: AnswerReason
}

/** One choice so far. */
class ChoiceState implements WholeChoice {
  text = ''
  reasoning = ''
  readonly calls: ToolCall[] = []
  readonly tokens: GeneratedToken[] = []
  finishReason: AnswerReason = 'stop'
}

/** Reads all events, then writes one object. */
export async function wholeAnswer(
  events: AsyncIterable<AnswerEvent>,
  usage: () => object,
  head: AnswerHead,
  format: AnswerFormat,
  options: AnswerOptions,
): Promise<object> {
  const states = Array.from({ length: options.nChoices }, () => new ChoiceState())
  for await (const event of events) {
    const state = states[event.choice] as ChoiceState
    switch (event.kind) {
      case 'end':
        state.finishReason = event.finishReason
        break
      case 'call':
        state.calls.push(event.call)
        break
      case 'text':
        state.text += event.text
        break
      case 'reasoning':
        state.reasoning += event.text
        break
      case 'message':
        break
      case 'token':
        state.text += event.token.text
        if (options.logprobs) state.tokens.push(event.token)
    }
  }
  const choices = states.map((state, index) =>
    format.whole(index, state, options.logprobs ? format.logprobs(state.tokens, 0) : null),
  )
  return { ...head, object: format.wholeKind, choices, usage: usage() }
}

/** A stream's usage: in its last chunk, and in all others too where they are to have it. */
export interface StreamUsage {
  readonly last: () => object
  readonly now: (() => object) | null
}

/** The chunks of a stream. */
export async function* answerChunks(
  events: AsyncIterable<AnswerEvent>,
  usage: StreamUsage | null,
  head: AnswerHead,
  format: AnswerFormat,
  options: AnswerOptions,
): AsyncGenerator<object, void, undefined> {
  // With usage asked for, OpenAI's other chunks say that they have none.
  const chunk = (choices: readonly object[], used?: object) => ({
    ...head,
    object: format.chunkKind,
    choices,
    ...(usage ? { usage: used ?? usage.now?.() ?? null } : {}),
  })
  const offsets = new Array<number>(options.nChoices).fill(0)
  const nCalls = new Array<number>(options.nChoices).fill(0)
  const opened = new Set<number>()
  const open = (choice: number) => {
    const opening = opened.has(choice) ? null : format.opening(choice)
    opened.add(choice)
    return opening
  }
  for await (const event of events) {
    const { choice } = event
    const opening = open(choice)
    if (opening) yield chunk([opening])
    if (event.kind === 'end') {
      yield chunk([format.ending(choice, event.finishReason)])
      continue
    }
    if (event.kind === 'call') {
      const index = nCalls[choice] as number
      nCalls[choice] = index + 1
      yield chunk([format.call(choice, event.call, index)])
      continue
    }
    if (event.kind === 'message') continue
    if (event.kind === 'reasoning') {
      yield chunk([format.reasoning(choice, event.text)])
      continue
    }
    if (event.kind === 'text') {
      yield chunk([format.piece(choice, event.text, null)])
      continue
    }
    const { token } = event
    if (token.text === '' && !options.logprobs) continue
    const logprobs = options.logprobs ? format.logprobs([token], offsets[choice] as number) : null
    offsets[choice] = (offsets[choice] as number) + token.text.length
    yield chunk([format.piece(choice, token.text, logprobs)])
  }
  if (usage) yield chunk([], usage.last())
}

/** A request's usage in OpenAI's words, with what its caches took at the end. */
export function usageObject(usage: Readonly<Usage>, policy: string): object {
  const { promptTokens, cachedTokens, completionTokens, reasoningTokens, ...others } = usage
  const { draftedTokens, predictedTokens, ...cache } = others
  // A schema's names are drafted, too, whether they were predicted or not.
  const accepted = Math.min(draftedTokens, predictedTokens ?? 0)
  const predicted = predictedTokens !== null && {
    accepted_prediction_tokens: accepted,
    rejected_prediction_tokens: predictedTokens - accepted,
  }
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
    completion_tokens_details: { reasoning_tokens: reasoningTokens, ...predicted },
    kv_cache: cacheObject(cache, policy),
  }
}

/** What caches take, in the words of `usage.kv_cache`. */
export function cacheObject(
  { cacheBytes, fp16Bytes, bytesByClass }: Pick<Usage, 'cacheBytes' | 'fp16Bytes' | 'bytesByClass'>,
  policy: string,
): object {
  return {
    policy,
    bytes: cacheBytes,
    fp16_bytes: fp16Bytes,
    ratio: cacheBytes > 0 ? fp16Bytes / cacheBytes : null,
    bytes_by_class: bytesByClass,
  }
}
