import { checkBoolean, checkInteger } from '../engine/options.js'
import { argumentError, show } from '../errors.js'
import { deriveSeed, toSeed, uniformInteger } from '../random.js'
import { check } from './check.js'
import { type AskMode, askRetrieval, checkLines, checkMaxTokens } from './line-retrieval.js'
import { kAdjectives, kNouns } from './line-retrieval-prompt.js'
import { chatKey, encodeTurns } from './prompt.js'
import { questionSeed } from './questions.js'
import {
  firstNumber,
  makeRetrievalPrompt,
  type RetrievalForm,
  type RetrievalPrompt,
  resolveForm,
} from './retrieval-prompt.js'
import type { SubjectTokenizer } from './subject.js'
import type { Task, TaskSetting } from './task.js'
import { readTaskText } from './task-file.js'

/** Settings of the needle task: where a fact stands, among records or in a text of yours. */
export interface NeedleSpec {
  /** Which task this is. */
  readonly task: 'needle'
  /** Where the fact stands, in percent of the context: 0 at its beginning. */
  readonly depth: number
  /** Record lines around it; left out with `data`. */
  readonly lines?: number | undefined
  /** A text file that it is hidden in, repeated where it is too short. */
  readonly data?: string | undefined
  /** Tokens of the context, with `data`. */
  readonly tokens?: number | undefined
  /** Default `inside`. */
  readonly ask?: AskMode | undefined
  /** Default `auto`: by the model's vocabulary. */
  readonly form?: RetrievalForm | 'auto' | undefined
  /** Ask through the model's chat template. Default false. */
  readonly chat?: boolean | undefined
  /** Most tokens of an answer; default those of a number, with some words around it. */
  readonly maxTokens?: number | undefined
}

const kAnswerTokens = 32

/**
 * Needle in a haystack: a number at a given depth of the context. Among record lines it is the line
 * asked for; in a text it is a sentence between two others.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for a setting out of its range, `ERR_ZC_IO`, `ERR_ZC_TOKENIZER`.
 */
export async function needle(spec: NeedleSpec, setting: TaskSetting): Promise<Task> {
  const { depth, ask = 'inside', chat = false } = spec
  const { tokenizer, questions } = setting
  check('ask', ask === 'inside' || ask === 'after', `is ${show(ask)}, expected inside or after`)
  check('depth', depth >= 0 && depth <= 100, `is ${depth}, expected percents of 0 to 100`)
  const maxTokens = checkMaxTokens(spec.maxTokens)
  checkBoolean('chat', chat)
  const seeds = deriveSeed(toSeed(setting.seed), Math.round(1000 * depth))
  const haystack = spec.data === undefined ? null : await readHaystack(spec, tokenizer)
  const form = haystack ? null : resolveForm(tokenizer, spec.form ?? 'auto')
  const lines = haystack ? 0 : checkLines(spec.lines)
  const size: Record<string, number> = haystack ? { tokens: haystack.tokens } : { lines }
  const makePrompt = (seed: number): RetrievalPrompt => {
    if (haystack) return needlePrompt(tokenizer, haystack, { depth, seed, chat })
    const targetLine = Math.round((depth / 100) * (lines - 1))
    const options = { lines, seed, targetLine }
    return makeRetrievalPrompt(tokenizer, form as RetrievalForm, options, { chat })
  }
  return {
    name: 'needle',
    facts: { ...size, depth, ask },
    key: JSON.stringify([
      'needle',
      {
        ...{ ...size, depth, ask, chat: chatKey(tokenizer, chat), form },
        ...{ digest: haystack?.digest, maxTokens },
      },
    ]),
    measure: 'hits',
    count: questions,
    question(index) {
      const seed = questionSeed(seeds, index)
      return { seed, ask: (asked) => askRetrieval(asked, makePrompt(seed), { ask, maxTokens }) }
    },
  }
}

interface Haystack {
  readonly digest: string
  readonly tokens: number
  /** Sentences that together have so many tokens. */
  readonly sentences: readonly string[]
}

async function readHaystack(spec: NeedleSpec, tokenizer: SubjectTokenizer): Promise<Haystack> {
  const tokens = checkInteger('tokens', spec.tokens, 1, 2 ** 24)
  const path = spec.data as string
  const { text, digest } = await readTaskText(path)
  const sentences = text.split(/(?<=[.!?]["')\]]*)\s+/).filter((sentence) => sentence !== '')
  const lengths = sentences.map(
    (sentence) => tokenizer.encode(`${sentence} `, { addSpecialTokens: false }).length,
  )
  if (lengths.every((length) => length === 0)) {
    throw argumentError('data', `${path} has no text`)
  }
  const taken: string[] = []
  for (let length = 0, i = 0; length < tokens; i++) {
    taken.push(sentences[i % sentences.length] as string)
    length += lengths[i % sentences.length] as number
  }
  return { digest, tokens, sentences: taken }
}

function needlePrompt(
  tokenizer: SubjectTokenizer,
  { sentences }: Haystack,
  { depth, seed, chat }: { depth: number; seed: number; chat: boolean },
): RetrievalPrompt {
  const own = toSeed(seed)
  const draw = <T>(list: readonly T[], counter: number) =>
    list[uniformInteger(own, counter, list.length)] as T
  const name = `${draw(kAdjectives, 0)} ${draw(kNouns, 1)}`
  const number = String(10_000 + uniformInteger(own, 2, 90_000))
  const place = Math.round((depth / 100) * sentences.length)
  const fact = `The secret number of the ${name} is ${number}.`
  const text = [...sentences.slice(0, place), fact, ...sentences.slice(place)].join(' ')
  const begun = chat ? '' : `\nAnswer: the secret number of the ${name} is`
  const question = `\n\nQuestion: what is the secret number of the ${name}?${begun}`
  return {
    turns: encodeTurns(tokenizer, [text, question], { chat }),
    isChat: chat,
    number,
    maxTokens: kAnswerTokens,
    readAnswer: firstNumber,
  }
}
