import { ZipCacheError } from '../errors.js'
import { deriveSeed, sampleWithoutReplacement, toSeed, uniformInteger } from '../random.js'
import { generateLineRetrieval, kAdjectives, kNouns } from './line-retrieval-prompt.js'
import { encodeTurns, type PromptStyle, type PromptTurns } from './prompt.js'
import type { SubjectTokenizer } from './subject.js'
import { readTaskFile, type TaskLine } from './task-file.js'

/**
 * How records and questions are written: `words` as the models of this package read them, one token
 * a word and a digit; `longeval` in sentences, for any model.
 */
export type RetrievalForm = 'words' | 'longeval'

/** Records and a question, ready to be asked. */
export interface RetrievalPrompt {
  /** The records, then the question. */
  readonly turns: PromptTurns
  /** Whether they are a chat by the model's template. */
  readonly isChat: boolean
  /** The digits that are right. */
  readonly number: string
  readonly maxTokens: number
  /** The number in what the model wrote so far; null as long as there is none. */
  readAnswer(text: string): string | null
}

/** What a general model may write around a number of five digits. */
const kLongEvalAnswerTokens = 64
/** Tokens beyond the right answer's before a model is taken to have missed. */
const kExtraAnswerTokens = 3

/**
 * The form that a model reads: its vocabulary tells.
 *
 * Throws `ERR_ZC_TOKENIZER` where `words` is asked for and the vocabulary has no such words.
 */
export function resolveForm(
  tokenizer: SubjectTokenizer,
  form: RetrievalForm | 'auto',
): RetrievalForm {
  const knowsWords = tokenizer.tokenId('REGISTER_CONTENT') !== undefined
  if (form === 'auto') return knowsWords ? 'words' : 'longeval'
  if (form === 'longeval' || knowsWords) return form
  throw new ZipCacheError(
    'ERR_ZC_TOKENIZER',
    "form: is words, but the model's vocabulary has no REGISTER_CONTENT; expected longeval",
    { argument: 'form' },
  )
}

/** A prompt of either form, made of a seed. */
export function makeRetrievalPrompt(
  tokenizer: SubjectTokenizer,
  form: RetrievalForm,
  options: { readonly lines: number; readonly seed: number; readonly targetLine?: number },
  style: PromptStyle = {},
): RetrievalPrompt {
  if (form === 'longeval') {
    return longEvalPrompt(tokenizer, generateLongEval(options, !style.chat), style)
  }
  const { recordText, questionText, number, answerText } = generateLineRetrieval(options)
  // `<s>` stands in the text.
  const turns = encodeTurns(tokenizer, [recordText, questionText], { addSpecialTokens: false })
  const rightTokens = tokenizer.encode(answerText, { addSpecialTokens: false }).length
  return {
    turns,
    isChat: false,
    number,
    maxTokens: rightTokens + kExtraAnswerTokens,
    readAnswer: firstFiveDigits,
  }
}

/** The first five digits in a row, whatever spaces stand between them. */
export function firstFiveDigits(text: string): string | null {
  return /\d{5}/.exec(text.replace(/\s+/g, ''))?.[0] ?? null
}

/** Texts of a prompt in LongEval's form. */
export interface LongEvalText {
  readonly recordText: string
  readonly questionText: string
  readonly number: string
}

/** Record lines of LongEval's form, with unique keys and numbers of 1 to 50,000. */
export function longEvalRecords(
  lines: number,
  seed: number,
): readonly { readonly key: string; readonly number: string }[] {
  const own = toSeed(seed)
  const nPairs = kAdjectives.length * kNouns.length
  const pairs = sampleWithoutReplacement(nPairs, lines, own, 0)
  // They come ascending: shuffled, so that neighbours share no word.
  const order = deriveSeed(own, 1)
  for (let i = lines - 1; i > 0; i--) {
    const j = uniformInteger(order, i, i + 1)
    const pair = pairs[i] as number
    pairs[i] = pairs[j] as number
    pairs[j] = pair
  }
  const numbers = deriveSeed(own, 2)
  return Array.from(pairs, (pair, i) => ({
    key: `${kAdjectives[Math.floor(pair / kNouns.length)]}-${kNouns[pair % kNouns.length]}`,
    number: String(1 + uniformInteger(numbers, i, 50_000)),
  }))
}

/** How a general model is told what follows. */
export const kLongEvalHeader =
  "Here is a record of lines to remember. Each line begins with 'line <line index>' and ends with " +
  "a number, its '<REGISTER_CONTENT>'. After the record you are asked for the <REGISTER_CONTENT> " +
  'of one line. The record starts here:\n\n'

export const longEvalLine = (key: string, number: string): string =>
  `line ${key}: REGISTER_CONTENT is <${number}>\n`

/** `begun`: with the beginning of the answer, so that a model that knows no chats answers too. */
export const longEvalQuestion = (key: string, begun: boolean): string =>
  `\nWhat is the <REGISTER_CONTENT> in line ${key}? Answer with the number.\n${
    begun ? `The <REGISTER_CONTENT> in line ${key} is <` : ''
  }`

/** A prompt whose lines are LongEval's; header and question are worded by us. */
function generateLongEval(
  options: { readonly lines: number; readonly seed: number; readonly targetLine?: number },
  begun: boolean,
): LongEvalText {
  const { lines, seed } = options
  const records = longEvalRecords(lines, seed)
  const targetLine = options.targetLine ?? uniformInteger(deriveSeed(toSeed(seed), 3), 0, lines)
  const target = records[targetLine] as (typeof records)[number]
  const text = records.map(({ key, number }) => longEvalLine(key, number)).join('')
  return {
    recordText: kLongEvalHeader + text,
    questionText: longEvalQuestion(target.key, begun),
    number: target.number,
  }
}

export function longEvalPrompt(
  tokenizer: SubjectTokenizer,
  { recordText, questionText, number }: LongEvalText,
  style: PromptStyle,
): RetrievalPrompt {
  return {
    turns: encodeTurns(tokenizer, [recordText, questionText], style),
    isChat: style.chat ?? false,
    number,
    maxTokens: kLongEvalAnswerTokens,
    readAnswer: firstNumber,
  }
}

/** The first number that is complete: something stands after its last digit. */
export function firstNumber(text: string): string | null {
  return /(\d+)\D/.exec(text)?.[1] ?? null
}

/**
 * Prompts of a LongEval file (`prompt`, `expected_number`), cut after the last record line.
 *
 * Rejects as `readTaskFile`, and with `ERR_ZC_ARGUMENT` naming the line whose prompt has no records.
 *
 * Source: LongEval (https://github.com/DachengLi1/LongChat), lines task.
 */
export async function readLongEval(path: string): Promise<{
  readonly digest: string
  readonly prompts: readonly LongEvalText[]
}> {
  const { digest, lines } = await readTaskFile(path)
  return { digest, prompts: lines.map(parseLongEval) }
}

function parseLongEval(line: TaskLine): LongEvalText {
  const prompt = line.text('prompt')
  const number = String(line.number('expected_number'))
  const records = [...prompt.matchAll(/^line .*REGISTER_CONTENT is <\d+>.*\n/gm)]
  const last = records.at(-1)
  if (last === undefined) throw line.error("field 'prompt' has no line with a REGISTER_CONTENT")
  const end = last.index + last[0].length
  return { recordText: prompt.slice(0, end), questionText: prompt.slice(end), number }
}
