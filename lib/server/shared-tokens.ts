import { type PromptModel, type PromptTokens, render, templateOptions } from './prompt.js'
import type { ChatRequest } from './request.js'

/** What prompts of one scope begin with. */
export interface SharedTokens {
  /** How many tokens that is. */
  readonly count: number
  /** Prompts of another one do not share it. */
  readonly scope: string
}

/**
 * How many tokens of a chat's prompt its tools and its first system messages are: what it has in
 * common with every chat that says the same up to there. 0 where that is too little to be kept.
 */
export function countShared(
  { tokenizer }: PromptModel,
  { messages, tooling: { tools }, templateVariables }: ChatRequest,
  source: string | undefined,
  { ids }: PromptTokens,
  beginnings: Beginnings,
): number {
  const end = messages.findIndex(({ role }) => role !== 'system' && role !== 'developer')
  if (tokenizer === null || end < 0) return 0
  const options = templateOptions(tools, templateVariables, source)
  // Where the rest goes differs between templates; two that have no letter in common show it.
  const [one, other] = ['a', '0'].map((content) =>
    render(() =>
      tokenizer.applyChatTemplate([...messages.slice(0, end), { role: 'user', content }], options),
    ),
  ) as [string, string]
  let length = 0
  while (length < one.length && one[length] === other[length]) length++
  const beginning = beginnings.tokensOf(one.slice(0, length), (text) =>
    tokenizer.encode(text, { addSpecialTokens: false }),
  )
  // The last token may become another one by what follows it.
  const count = beginning.length - 1
  const isShared = count >= MIN_SHARED && count < ids.length
  return isShared && beginning.every((id, i) => i === count || id === ids[i]) ? count : 0
}

/** Fewer tokens are not worth a turn of their own, whose pages and parameters are not shared. */
const MIN_SHARED = 128

/** The tokens of the last beginnings that were asked for: splitting a text costs more than finding it. */
export class Beginnings {
  readonly #known = new Map<string, readonly number[]>()

  /** `encode(text)`, or what it gave the last time. */
  tokensOf(text: string, encode: (text: string) => readonly number[]): readonly number[] {
    const ids = this.#known.get(text) ?? encode(text)
    this.#known.delete(text)
    this.#known.set(text, ids)
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= MAX_BEGINNINGS) break
      this.#known.delete(oldest)
    }
    return ids
  }
}

const MAX_BEGINNINGS = 32
