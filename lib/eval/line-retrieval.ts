import { checkBoolean, checkInteger } from '../engine/options.js'
import { show } from '../errors.js'
import { deriveSeed, toSeed } from '../random.js'
import { check } from './check.js'
import type { LineRetrievalPrompt } from './line-retrieval-prompt.js'
import { chatKey, expectFits, prefillTurns, writeAnswer } from './prompt.js'
import { questionSeed } from './questions.js'
import {
  firstFiveDigits,
  longEvalPrompt,
  makeRetrievalPrompt,
  type RetrievalForm,
  type RetrievalPrompt,
  readLongEval,
  resolveForm,
} from './retrieval-prompt.js'
import type { SubjectSequence, SubjectTokenizer } from './subject.js'
import type { Asked, Outcome, Task, TaskSetting } from './task.js'

/**
 * When the question is asked: `inside` the prompt, as in the paper, so that attention of the
 * prefill, which is exact, still sees it with the records; or `after` the records were compressed,
 * as a next turn, which has nothing but the compressed cache to look at.
 */
export type AskMode = 'inside' | 'after'

/** Settings of the line-retrieval task. */
export interface LineRetrievalSpec {
  /** Which task this is. */
  readonly task: 'line-retrieval'
  /** Record lines, 1 to 4096; left out with `data`. */
  readonly lines?: number | undefined
  /** Default `inside`. */
  readonly ask?: AskMode | undefined
  /** Default `auto`: by the model's vocabulary. */
  readonly form?: RetrievalForm | 'auto' | undefined
  /** A file of LongEval's own prompts; without it prompts are made of the seed. */
  readonly data?: string | undefined
  /** Ask through the model's chat template. Default false. */
  readonly chat?: boolean | undefined
  /** Most tokens of an answer; default those of a number, with some words around it. */
  readonly maxTokens?: number | undefined
}

const kMaxLines = 4096

/**
 * Line retrieval: the number in one of many lines; a hit has all of its digits right.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for a setting out of its range and a damaged file, `ERR_ZC_IO`,
 * `ERR_ZC_TOKENIZER`.
 *
 * Source: LongEval (Li et al., 2023); ZipCache (arXiv 2405.14256) §5, Fig. 5.
 */
export async function lineRetrieval(spec: LineRetrievalSpec, setting: TaskSetting): Promise<Task> {
  const { ask = 'inside', chat = false } = spec
  const { tokenizer } = setting
  check('ask', ask === 'inside' || ask === 'after', `is ${show(ask)}, expected inside or after`)
  checkBoolean('chat', chat)
  const maxTokens = checkMaxTokens(spec.maxTokens)
  if (spec.data !== undefined) {
    return publishedLineRetrieval(spec.data, { ask, chat, maxTokens }, setting)
  }
  const lines = checkLines(spec.lines)
  const form = resolveForm(tokenizer, spec.form ?? 'auto')
  const seeds = deriveSeed(toSeed(setting.seed), lines)
  return {
    name: 'line-retrieval',
    facts: { lines, ask },
    key: JSON.stringify([
      'line-retrieval',
      { lines, ask, form, chat: chatKey(tokenizer, chat), maxTokens },
    ]),
    measure: 'hits',
    count: setting.questions,
    question(index) {
      const seed = questionSeed(seeds, index)
      return {
        seed,
        ask: (asked) =>
          askRetrieval(asked, makeRetrievalPrompt(tokenizer, form, { lines, seed }, { chat }), {
            ask,
            maxTokens,
          }),
      }
    },
  }
}

async function publishedLineRetrieval(
  path: string,
  { ask, chat, maxTokens }: RetrievalAsking & { chat: boolean },
  { tokenizer, questions, seed: baseSeed }: TaskSetting,
): Promise<Task> {
  const { digest, prompts } = await readLongEval(path)
  const seeds = toSeed(baseSeed)
  return {
    name: 'line-retrieval',
    facts: { data: path, ask },
    key: JSON.stringify([
      'line-retrieval',
      { digest, ask, chat: chatKey(tokenizer, chat), maxTokens },
    ]),
    measure: 'hits',
    count: Math.min(questions, prompts.length),
    question: (index) => ({
      seed: questionSeed(seeds, index),
      async ask(asked) {
        const text = prompts[index] as (typeof prompts)[number]
        return askRetrieval(asked, longEvalPrompt(tokenizer, text, { chat }), { ask, maxTokens })
      },
    }),
  }
}

/** How a prompt is asked. */
export interface RetrievalAsking {
  readonly ask: AskMode
  /** undefined: as many as the prompt has it. */
  readonly maxTokens: number | undefined
}

/** Puts a prompt into the sequence, at once or in turns, and reads the number. */
export async function askRetrieval(
  asked: Asked,
  { turns, isChat, number, readAnswer, ...prompt }: RetrievalPrompt,
  { ask, maxTokens = prompt.maxTokens }: RetrievalAsking,
): Promise<Outcome> {
  const length = turns.reduce((sum, ids) => sum + ids.length, 0)
  expectFits(asked.model, length + maxTokens, 'lines')
  await prefillTurns(asked, ask === 'inside' ? [turns.flat()] : turns)
  const { said, values } = await writeAnswer(asked, {
    maxTokens,
    isDone: (text) => readAnswer(text) !== null,
    chat: isChat ? turns.flat() : null,
  })
  // Something stands after the last digit of what has ended.
  const given = readAnswer(said) ?? readAnswer(`${said}\n`)
  return { score: given === number ? 1 : 0, answer: given, expected: number, values }
}

/** Throws `ERR_ZC_ARGUMENT` for what is no number of lines. */
export function checkLines(lines: number | undefined): number {
  return checkInteger('lines', lines, 1, kMaxLines)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no number of tokens. */
export function checkMaxTokens(maxTokens: number | undefined): number | undefined {
  return maxTokens === undefined ? undefined : checkInteger('maxTokens', maxTokens, 1, 2 ** 20)
}

// ---- the demo's question ----

/** Ids of a line-retrieval text; `<s>` is written in it, so that the tokenizer adds nothing. */
export function encodeLineRetrieval(tokenizer: SubjectTokenizer, text: string): number[] {
  return tokenizer.encode(text, { addSpecialTokens: false })
}

/** The greedy answer of a sequence that holds a prompt: its first five digits, null without. */
export async function answerLineRetrieval(
  sequence: SubjectSequence,
  tokenizer: SubjectTokenizer,
  prompt: LineRetrievalPrompt,
  signal?: AbortSignal,
): Promise<string | null> {
  const maxTokens = encodeLineRetrieval(tokenizer, prompt.answerText).length + 3
  const isDone = (text: string) => firstFiveDigits(text) !== null
  const { text } = await writeAnswer({ sequence, tokenizer, signal }, { maxTokens, isDone })
  return firstFiveDigits(text)
}
