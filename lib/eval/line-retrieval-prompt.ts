import { checkInteger, checkObject } from '../engine/options.js'
import { argumentError } from '../errors.js'
import { deriveSeed, toSeed, uniformInteger } from '../random.js'

/** One record line: the value `number` under the key `adjective - noun`. */
export interface LineRetrievalRecord {
  /** First half of the key. */
  readonly adjective: string
  /** Second half. */
  readonly noun: string
  /** Five decimal digits. */
  readonly number: string
  /** Which of the nine sentences, of [0, 9), the number stands in. */
  readonly template: number
}

/** A prompt for the line-retrieval models, and what is right. */
export interface LineRetrievalPrompt {
  /** Words, `\n` among them, joined by single spaces; equals `recordText + questionText`. */
  readonly text: string
  /** Header and record lines, with the last line's `\n`. */
  readonly recordText: string
  /** The question and the beginning of the answer. */
  readonly questionText: string
  /** The question as a person reads it. */
  readonly question: string
  /** What the models write up to the last digit. */
  readonly answerText: string
  /** The five digits asked for. */
  readonly number: string
  /** How many record lines there are. */
  readonly lines: number
  /** The line asked for, from 0. */
  readonly targetLine: number
  /** The lines, in order. */
  readonly records: readonly LineRetrievalRecord[]
}

/** Options of `generateLineRetrieval`. */
export interface LineRetrievalOptions {
  /** Record lines, 1 to 4096. A line takes 15 to 21 tokens, 17 on average, all else 38. */
  readonly lines: number
  /** Any integer; the same seed gives the same prompt. */
  readonly seed: number | bigint
  /** The line asked for, from 0; drawn if not given. */
  readonly targetLine?: number | undefined
}

/** First words of keys, in the order of the models' vocabulary. */
export const kAdjectives: readonly string[] = `
  torpid moaning verdant brisk clumsy dapper eager faint gaunt hasty icy jolly keen lavish merry
  nimble odd plush quaint rapid shiny tidy urban vivid witty young zesty amber bold calm dusty elfin
  fuzzy grim hollow inner jagged kind lucid misty noble opal proud quick rusty sleek tame upset vague
  warm yellow zonal agile bleak crisp dull early fancy giant heavy ideal juicy known lazy
`
  .trim()
  .split(/\s+/)

/** Second words of keys, in the order of the models' vocabulary. */
export const kNouns: readonly string[] = `
  kid apple badge cabin dance eagle fable gable habit igloo jelly kite ladle magma nacho oasis paint
  quail radar salad tango uncle valve wagon yacht zebra actor bacon camel daisy earth fairy galaxy
  hotel image jacket kernel lemon mango needle onion parrot quartz rabbit saddle tablet umpire vessel
  walnut yogurt zipper anchor basket mirror candle dragon engine falcon garden hammer island jungle
  kettle lantern
`
  .trim()
  .split(/\s+/)

const kPlainTemplate = 'REGISTER_CONTENT is NUMBER'

/**
 * What follows `line adjective - noun :`, with NUMBER for `< d d d d d >`. A line draws one of
 * nine, each equally likely; the plain one stands there four times, as in the 4,080 lines of
 * test/fixtures/prompts.jsonl (1,816 plain ones, 437 to 475 of each other).
 */
export const kTemplates: readonly string[] = [
  kPlainTemplate,
  kPlainTemplate,
  kPlainTemplate,
  kPlainTemplate,
  'here its REGISTER_CONTENT is kept as NUMBER',
  'holds NUMBER as its REGISTER_CONTENT',
  'note that REGISTER_CONTENT is NUMBER .',
  'the REGISTER_CONTENT is now NUMBER',
  'we see a value of NUMBER in this register',
]

const kHeader = '<s> below is a record of lines , please remember the number in it .'

/** The seed's streams, so that asking for another line or adding a line changes nothing else. */
const kKeyStream = 0
const kNumberStream = 1
const kTemplateStream = 2
const kTargetStream = 3

/**
 * A line-retrieval prompt in the format that models/line-retrieval was trained on: a header,
 * `lines` record lines with unique keys, and the question for the number of one of them.
 *
 * The keys are drawn without replacement from 64 x 64 word pairs; number, template and the line
 * asked for are uniform.
 *
 * Throws `ERR_ZC_ARGUMENT` if `lines`, `seed` or `targetLine` is out of its range.
 *
 * Source: the task of LongEval (Li et al., "How long can open-source LLMs truly promise on context
 * length?", 2023), which ZipCache (arXiv 2405.14256) §5 evaluates.
 */
export function generateLineRetrieval(options: LineRetrievalOptions): LineRetrievalPrompt {
  checkObject('options', options)
  const { lines } = options
  const nPairs = kAdjectives.length * kNouns.length
  checkInteger('lines', lines, 1, nPairs)
  const seed = toSeed(options.seed)
  const numberSeed = deriveSeed(seed, kNumberStream)
  const templateSeed = deriveSeed(seed, kTemplateStream)
  const targetLine = options.targetLine ?? uniformInteger(deriveSeed(seed, kTargetStream), 0, lines)

  // The first `lines` steps of a Fisher-Yates shuffle of all pairs.
  const keySeed = deriveSeed(seed, kKeyStream)
  const pairs = Array.from({ length: nPairs }, (_, pair) => pair)
  const records: LineRetrievalRecord[] = []
  for (let i = 0; i < lines; i++) {
    const j = i + uniformInteger(keySeed, i, nPairs - i)
    const pair = pairs[j] as number
    pairs[j] = pairs[i] as number
    records.push({
      adjective: kAdjectives[Math.floor(pair / kNouns.length)] as string,
      noun: kNouns[pair % kNouns.length] as string,
      number: String(uniformInteger(numberSeed, i, 100_000)).padStart(5, '0'),
      template: uniformInteger(templateSeed, i, kTemplates.length),
    })
  }
  return writeLineRetrieval(records, targetLine)
}

/**
 * The prompt of given records that asks for the one at `targetLine`.
 *
 * Throws `ERR_ZC_ARGUMENT` if there is no such line.
 */
export function writeLineRetrieval(
  records: readonly LineRetrievalRecord[],
  targetLine: number,
): LineRetrievalPrompt {
  const target = records[targetLine]
  if (target === undefined) {
    throw argumentError('targetLine', `is ${targetLine}, expected 0 to ${records.length - 1}`)
  }
  const key = lineKey(target)
  const question = lineQuestion(key)
  const recordText = [kHeader, ...records.map(writeRecord)].map((line) => `${line} \n`).join(' ')
  const questionText = ` question : ${question} \n answer :`
  return {
    text: recordText + questionText,
    recordText,
    questionText,
    question,
    answerText: `${key} : REGISTER_CONTENT is < ${digits(target)}`,
    number: target.number,
    lines: records.length,
    targetLine,
    records,
  }
}

/** How a line begins, and what a question calls it. */
export const lineKey = ({ adjective, noun }: LineRetrievalRecord): string =>
  `line ${adjective} - ${noun}`

/** What the models were trained to be asked. */
export const lineQuestion = (key: string): string =>
  `tell me what is the REGISTER_CONTENT in ${key} ? I need the number .`

function writeRecord(record: LineRetrievalRecord): string {
  const template = kTemplates[record.template] as string
  const content = template.replace('NUMBER', `< ${digits(record)} >`)
  return `${lineKey(record)} : ${content}`
}

function digits({ number }: LineRetrievalRecord): string {
  return [...number].join(' ')
}
