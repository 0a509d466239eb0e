import { ZipCacheError } from '../errors.js'
import type { ModelConfig } from '../model/config.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { ApiError, invalid } from './api-error.js'
import type { ChatRequest } from './request.js'

/** What a prompt is made with. */
export interface PromptModel {
  readonly config: ModelConfig
  readonly tokenizer: ModelTokenizer | null
}

/** What prompts of one scope begin with. */
export interface SharedTokens {
  /** How many tokens that is. */
  readonly count: number
  /** Prompts of another one do not share it. */
  readonly scope: string
}

/** What a chat's next prompt begins with, whatever its template makes of the answer to this one. */
export interface SettledPrompt {
  readonly text: string
  /** What the prompt says beyond it: how the template begins an answer. */
  readonly rest: readonly number[]
  /** Whether it ends with what a user says. */
  readonly isUsers: boolean
}

/** A prompt as the model reads it. */
export interface PromptTokens {
  readonly ids: readonly number[]
  /** The text that the ids were made of; null for a prompt of ids. */
  readonly text: string | null
  /** The first of the ids, which other prompts begin with, too. */
  readonly shared?: SharedTokens
  /** Where a conversation may be gone on from again; where it is not said, behind the answer alone. */
  readonly settled?: SettledPrompt
}

/**
 * A chat as the model's own template writes it, ending where the answer begins.
 *
 * Throws an `ApiError` 400 for a model without tokenizer or template, and when the template refuses
 * the messages.
 */
export function chatPrompt(
  { tokenizer }: PromptModel,
  { messages, messagesField: param, tooling: { tools }, templateVariables }: ChatRequest,
  source: string | undefined,
  maxTokens: number,
): PromptTokens {
  if (tokenizer === null || (tokenizer.chatTemplates.length === 0 && source === undefined)) {
    throw new ApiError(
      400,
      `${param}: this model has no chat template; use /v1/completions, or start the server with --chat-template`,
      { param, code: 'no_chat_template' },
    )
  }
  const options = templateOptions(tools, templateVariables, source)
  const text = render(param, () => tokenizer.applyChatTemplate(messages, options))
  checkTextLength(text, param, maxTokens)
  return { text, ids: tokenizer.encode(text, { addSpecialTokens: false }) }
}

/**
 * Where a chat's prompt is settled; null where the template does not show it, or writes no more to begin
 * an answer than it writes anyway.
 */
export function settledPrompt(
  { tokenizer }: PromptModel,
  { messages, tooling: { tools }, templateVariables }: ChatRequest,
  source: string | undefined,
  { ids, text: whole }: PromptTokens,
): SettledPrompt | null {
  if (tokenizer === null || whole === null) return null
  const options = templateOptions(tools, templateVariables, source)
  let text: string
  try {
    text = tokenizer.applyChatTemplate(messages, { ...options, addGenerationPrompt: false })
  } catch (error) {
    if (error instanceof ZipCacheError && error.code === 'ERR_ZC_TOKENIZER') return null
    throw error
  }
  if (text.length === whole.length || !whole.startsWith(text)) return null
  const rest = tokenizer.encode(whole.slice(text.length), { addSpecialTokens: false })
  if (!endsWith(ids, rest)) return null
  return { text, rest, isUsers: messages.at(-1)?.role === 'user' }
}

/** Whether ids end with these, one at least, and have others before. */
export function endsWith(ids: readonly number[], rest: readonly number[]): boolean {
  const first = ids.length - rest.length
  return rest.length > 0 && first > 0 && rest.every((id, i) => id === ids[first + i])
}

/** What a chat template is told beside the messages. */
export function templateOptions(
  tools: ChatRequest['tooling']['tools'],
  variables: ChatRequest['templateVariables'],
  source: string | undefined,
) {
  return {
    addGenerationPrompt: true,
    ...(source === undefined ? {} : { source }),
    ...(tools.length > 0 ? { tools } : {}),
    ...(variables ? { variables } : {}),
  }
}

/** A template's text. Throws an `ApiError` 400 when it refuses the messages. */
function render(param: string, template: () => string): string {
  try {
    return template()
  } catch (cause) {
    if (!(cause instanceof ZipCacheError) || cause.code !== 'ERR_ZC_TOKENIZER') throw cause
    const message = `${param}: the model's template does not take them: ${cause.message}`
    throw new ApiError(400, message, { param, code: 'invalid_prompt', cause })
  }
}

/**
 * A prompt that is a text, or token ids as they are. An empty text is taken where the model has a
 * token that begins texts. Throws an `ApiError` 400.
 */
export function textPrompt(
  { config, tokenizer }: PromptModel,
  prompt: string | readonly number[],
  maxTokens: number,
): PromptTokens {
  if (typeof prompt !== 'string') {
    const wrong = prompt.find((id) => id < 0 || id >= config.vocabSize)
    if (wrong === undefined) return { ids: prompt, text: null }
    throw invalid('prompt', `holds ${wrong}, expected token ids below ${config.vocabSize}`)
  }
  checkTextLength(prompt, 'prompt', maxTokens)
  if (tokenizer) {
    const ids = tokenizer.encode(prompt)
    const { bosTokenId } = config
    // Any text may follow, but something has to run.
    return { text: prompt, ids: ids.length === 0 && bosTokenId !== null ? [bosTokenId] : ids }
  }
  throw invalid('prompt', 'is a text, but this model has no tokenizer; give token ids')
}

/** Characters a token has at most, on average, in any prompt that is worth to be read. */
const MAX_TOKEN_LENGTH = 16

/**
 * Throws an `ApiError` 400 for a text that is far too long, before it is split into tokens, which
 * keeps the event loop for some 3 ms a thousand of them.
 */
function checkTextLength(text: string, param: string, maxTokens: number): void {
  if (text.length <= maxTokens * MAX_TOKEN_LENGTH) return
  throw tooLong(param, `${text.length} characters`, maxTokens)
}

/** Throws an `ApiError` 400 for a prompt without tokens, or one that leaves no room for an answer. */
export function checkLength(ids: readonly number[], param: string, maxTokens: number): void {
  if (ids.length === 0) throw invalid(param, 'is empty, expected at least one token')
  if (ids.length <= maxTokens) return
  throw tooLong(param, `${ids.length} tokens`, maxTokens)
}

/** In the words that clients look for, OpenAI's, to shorten a conversation: not all see the code. */
function tooLong(param: string, what: string, maxTokens: number): ApiError {
  const limit = `this model's maximum context length is ${maxTokens + 1} tokens, one for an answer`
  return new ApiError(400, `${param}: ${what} are too many: ${limit}`, {
    param,
    code: 'context_length_exceeded',
  })
}
