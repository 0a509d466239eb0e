import { answerReader } from '../chat/answer-reader.js'
import { ZipCacheError } from '../errors.js'
import type { SubjectModel, SubjectTokenizer } from './subject.js'
import type { Asked } from './task.js'

/** Token ids of a prompt, cut where one turn ends and the next begins. */
export type PromptTurns = readonly (readonly number[])[]

/** How a prompt becomes token ids. */
export interface PromptStyle {
  /** As a user's message in the model's chat template; default false: as a text. */
  readonly chat?: boolean | undefined
  /** Let the tokenizer add what its authors put before a text; default true. */
  readonly addSpecialTokens?: boolean | undefined
}

/** The tokenizer of a model that is asked in text. Throws `ERR_ZC_TOKENIZER` if it has none. */
export function requireTokenizer(model: SubjectModel): SubjectTokenizer {
  if (model.tokenizer !== null) return model.tokenizer
  throw new ZipCacheError('ERR_ZC_TOKENIZER', 'model: has no tokenizer.json, expected one', {
    argument: 'model',
  })
}

/**
 * Ids of texts that follow each other in one prompt. Each is encoded by itself, so that the ids of
 * the whole do not depend on which policy is asked, or when.
 *
 * Throws `ERR_ZC_TOKENIZER` if the chat template changes the texts.
 */
export function encodeTurns(
  tokenizer: SubjectTokenizer,
  texts: readonly string[],
  { chat = false, addSpecialTokens = true }: PromptStyle = {},
): PromptTurns {
  if (!chat) {
    return texts.map((text, turn) =>
      tokenizer.encode(text, { addSpecialTokens: addSpecialTokens && turn === 0 }),
    )
  }
  const content = texts.join('').trim()
  const whole = tokenizer.applyChatTemplate([{ role: 'user', content }], {
    addGenerationPrompt: true,
  })
  const start = whole.indexOf(content)
  if (start < 0) {
    throw new ZipCacheError('ERR_ZC_TOKENIZER', "chat: the model's template changes the message", {
      argument: 'chat',
    })
  }
  // The template's own words go to the first and to the last turn.
  const ends = texts.map(
    (_, turn) =>
      texts
        .slice(0, turn + 1)
        .join('')
        .trimStart().length,
  )
  return texts.map((_, turn) => {
    const from = turn === 0 ? 0 : start + (ends[turn - 1] as number)
    const to = turn === texts.length - 1 ? whole.length : start + (ends[turn] as number)
    return tokenizer.encode(whole.slice(from, to), { addSpecialTokens: false })
  })
}

/** Throws `ERR_ZC_CONTEXT_LENGTH` if a prompt and its answer do not fit the model. */
export function expectFits(model: SubjectModel, tokens: number, argument: string): void {
  const { maxPositions } = model.config
  if (tokens <= maxPositions) return
  throw new ZipCacheError(
    'ERR_ZC_CONTEXT_LENGTH',
    `${argument}: makes a prompt that needs ${tokens} positions, expected at most the model's ` +
      `${maxPositions}`,
    { argument },
  )
}

/** Brings a prompt into the sequence, turn by turn. */
export async function prefillTurns({ sequence, signal }: Asked, turns: PromptTurns): Promise<void> {
  for (const ids of turns) if (ids.length > 0) await sequence.prefill(ids, { signal })
}

/** What a model wrote. */
export interface Written {
  /** All of it. */
  readonly text: string
  /** Without its thoughts, where the prompt was a chat whose template tells them apart. */
  readonly said: string
  /** `unfinished`, there: 1 for an answer that ended within its thoughts, else 0. */
  readonly values: Readonly<Record<string, number>>
}

/**
 * What the model writes greedily, until `isDone` of what it said so far, a stop text in that, its own end,
 * or `maxTokens`.
 *
 * - `chat`: the prompt, where it was made by the model's chat template
 */
export async function writeAnswer(
  { sequence, tokenizer, signal }: Pick<Asked, 'sequence' | 'tokenizer' | 'signal'>,
  options: {
    readonly maxTokens: number
    readonly stop?: readonly string[]
    readonly isDone?: (said: string) => boolean
    readonly chat?: readonly number[] | null
  },
): Promise<Written> {
  const { maxTokens, stop = [], isDone = () => false, chat = null } = options
  const reader = chat && answerReader(tokenizer, chat, stop)
  const ends = reader ? { stopTokens: reader.stopTokens } : { stop }
  let text = ''
  let nTokens = 0
  for await (const token of sequence.generate(null, {
    ...{ maxTokens, temperature: 0, signal },
    ...ends,
  })) {
    text += token.text
    if (!token.isStop) nTokens++
    reader?.push(token)
    if (reader?.isStopped || isDone(reader?.text ?? text)) break
  }
  if (!reader) return { text, said: text, values: {} }
  reader.end(nTokens === maxTokens)
  const isUnfinished = reader.text.trim() === '' && reader.reasoning !== ''
  return { text, said: reader.text, values: { unfinished: isUnfinished ? 1 : 0 } }
}

/** What keys of tasks have of `chat`: answers are read differently where thoughts are told apart. */
export function chatKey(tokenizer: SubjectTokenizer, chat: boolean): boolean | string {
  return chat && answerReader(tokenizer, [], []) ? 'thoughts apart' : chat
}
