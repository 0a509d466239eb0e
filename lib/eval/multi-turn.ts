import { checkInteger } from '../engine/options.js'
import { deriveSeed, toSeed, uniformInteger } from '../random.js'
import { checkLines } from './line-retrieval.js'
import { generateLineRetrieval, lineKey, lineQuestion } from './line-retrieval-prompt.js'
import { encodeTurns, expectFits, writeAnswer } from './prompt.js'
import { questionSeed } from './questions.js'
import {
  firstFiveDigits,
  firstNumber,
  kLongEvalHeader,
  longEvalLine,
  longEvalQuestion,
  longEvalRecords,
  type RetrievalForm,
  resolveForm,
} from './retrieval-prompt.js'
import type { Asked, Outcome, Task, TaskSetting } from './task.js'

/** Settings of the multi-turn task. */
export interface MultiTurnSpec {
  /** Which task this is. */
  readonly task: 'multi-turn'
  /** Record lines, 5 to 4096. */
  readonly lines: number
  /** Turns between a question and its repetition; default 3. */
  readonly turns?: number | undefined
  /** Default `auto`: by the model's vocabulary. */
  readonly form?: RetrievalForm | 'auto' | undefined
}

/** The right answer has 13 tokens in words, then `>` and the end of the line. */
const kWordAnswerTokens = 15
const kLongEvalAnswerTokens = 24

/** A conversation about records: the first turn has them all. */
interface Conversation {
  readonly recordText: string
  /** What to ask in each turn, and what is right. */
  readonly turns: readonly { readonly question: string; readonly number: string }[]
  readonly addSpecialTokens: boolean
  readonly maxTokens: number
  /** Ends the answer, so that the next question begins on a line of its own. */
  readonly stop: readonly string[]
  readAnswer(text: string): string | null
}

/**
 * A conversation: a question with the records, others after it, then the first once more, over a
 * cache that was compressed when nobody knew that it would be asked again. A hit is the repeated
 * question answered right; `first` and `others` say how the others went.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for a setting out of its range, `ERR_ZC_TOKENIZER`.
 */
export async function multiTurn(spec: MultiTurnSpec, setting: TaskSetting): Promise<Task> {
  const { tokenizer, questions } = setting
  const turns = checkInteger('turns', spec.turns ?? 3, 1, 100)
  const lines = checkLines(spec.lines)
  checkInteger('lines', lines, turns + 2, 4096)
  const form = resolveForm(tokenizer, spec.form ?? 'auto')
  const seeds = deriveSeed(toSeed(setting.seed), lines)
  return {
    name: 'multi-turn',
    facts: { lines, turns },
    key: JSON.stringify(['multi-turn', { lines, turns, form }]),
    measure: 'hits',
    count: questions,
    question(index) {
      const seed = questionSeed(seeds, index)
      const make = form === 'words' ? wordConversation : longEvalConversation
      return { seed, ask: (asked) => converse(asked, make(lines, turns, seed)) }
    },
  }
}

async function converse(asked: Asked, conversation: Conversation): Promise<Outcome> {
  const { sequence, model, tokenizer, signal } = asked
  const { recordText, turns, addSpecialTokens, maxTokens, stop, readAnswer } = conversation
  const hits: number[] = []
  let answer: string | null = null
  for (const [t, { question, number }] of turns.entries()) {
    const texts = t === 0 ? [recordText, question] : ['', question]
    const style = { addSpecialTokens: addSpecialTokens && t === 0 }
    const ids = encodeTurns(tokenizer, texts, style).flat()
    expectFits(model, sequence.length + ids.length + maxTokens, 'lines')
    await sequence.prefill(ids, { signal })
    const { text } = await writeAnswer(asked, { maxTokens, stop })
    answer = readAnswer(`${text}\n`)
    hits.push(answer === number ? 1 : 0)
  }
  const others = hits.slice(1, -1)
  return {
    score: hits.at(-1) as number,
    answer,
    expected: turns.at(-1)?.number ?? null,
    values: {
      first: hits[0] as number,
      others: others.reduce((sum, hit) => sum + hit, 0) / Math.max(1, others.length),
    },
  }
}

/** Distinct lines, the first of them once more at the end. */
function drawTargets(lines: number, turns: number, seed: number): number[] {
  const own = deriveSeed(toSeed(seed), 9)
  const left = Array.from({ length: lines }, (_, line) => line)
  const drawn = Array.from(
    { length: turns + 1 },
    (_, t) => left.splice(uniformInteger(own, t, left.length), 1)[0] as number,
  )
  return [...drawn, drawn[0] as number]
}

function wordConversation(lines: number, turns: number, seed: number): Conversation {
  const { recordText, records } = generateLineRetrieval({ lines, seed })
  return {
    recordText,
    turns: drawTargets(lines, turns, seed).map((line) => {
      const record = records[line] as (typeof records)[number]
      return {
        question: ` question : ${lineQuestion(lineKey(record))} \n answer :`,
        number: record.number,
      }
    }),
    addSpecialTokens: false,
    maxTokens: kWordAnswerTokens,
    stop: [],
    readAnswer: firstFiveDigits,
  }
}

function longEvalConversation(lines: number, turns: number, seed: number): Conversation {
  const records = longEvalRecords(lines, seed)
  const text = records.map(({ key, number }) => longEvalLine(key, number)).join('')
  return {
    recordText: kLongEvalHeader + text,
    turns: drawTargets(lines, turns, seed).map((line) => {
      const { key, number } = records[line] as (typeof records)[number]
      return { question: longEvalQuestion(key, true), number }
    }),
    addSpecialTokens: true,
    maxTokens: kLongEvalAnswerTokens,
    stop: ['\n'],
    readAnswer: firstNumber,
  }
}
