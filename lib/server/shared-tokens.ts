import { ZipCacheError } from '../errors.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { type PromptModel, type PromptTokens, templateOptions } from './prompt.js'
import type { ChatRequest } from './request.js'

/**
 * How many tokens of a chat's prompt its tools and its first system messages are: what it has in
 * common with every chat that says the same up to there. 0 where that is too little to be kept, and
 * where the template does not show where the rest begins.
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
  const first = messages.slice(0, end)
  // The last token may become another one by what follows it.
  const begins = (all: readonly number[]) => all.slice(0, -1).every((id, i) => id === ids[i])
  const said = JSON.stringify([first, tools, templateVariables])
  let beginning = beginnings.find(said)
  // What a template makes of the same messages may change: some tell the date.
  if (!beginning || !begins(beginning)) {
    const options = templateOptions(tools, templateVariables, source)
    beginning = tokensOf(tokenizer, first, options)
    beginnings.keep(said, beginning)
  }
  const count = beginning.length - 1
  return count >= MIN_SHARED && count < ids.length && begins(beginning) ? count : 0
}

/** Fewer tokens are not worth a turn of their own, whose pages and parameters are not shared. */
const MIN_SHARED = 128

/** The tokens of what a template writes before the first other message; none where it is not known. */
function tokensOf(
  tokenizer: ModelTokenizer,
  messages: ChatRequest['messages'],
  options: ReturnType<typeof templateOptions>,
): readonly number[] {
  const followedBy = (content: string) =>
    tokenizer.applyChatTemplate([...messages, { role: 'user', content }], options)
  try {
    // Where the rest goes differs between templates; two that have no letter in common show it.
    const [one, other] = [followedBy('a'), followedBy('0')]
    let length = 0
    while (length < one.length && one[length] === other[length]) length++
    return tokenizer.encode(one.slice(0, length), { addSpecialTokens: false })
  } catch (error) {
    // It takes the messages that there are, but not these.
    if (error instanceof ZipCacheError && error.code === 'ERR_ZC_TOKENIZER') return []
    throw error
  }
}

/** The tokens of the last beginnings, by the messages that they are of: finding them costs less. */
export class Beginnings {
  readonly #known = new Map<string, readonly number[]>()

  find(said: string): readonly number[] | undefined {
    const ids = this.#known.get(said)
    if (ids) this.keep(said, ids)
    return ids
  }

  keep(said: string, ids: readonly number[]): void {
    this.#known.delete(said)
    this.#known.set(said, ids)
    const [oldest] = this.#known.keys()
    if (this.#known.size > MAX_BEGINNINGS) this.#known.delete(oldest as string)
  }
}

const MAX_BEGINNINGS = 32
