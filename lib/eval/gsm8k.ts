import { checkBoolean, checkInteger } from '../engine/options.js'
import { deriveSeed, sampleWithoutReplacement, toSeed } from '../random.js'
import { chatKey, encodeTurns, expectFits, prefillTurns, writeAnswer } from './prompt.js'
import { drawItems, questionSeed } from './questions.js'
import type { Asked, Outcome, Task, TaskSetting } from './task.js'
import { readTaskFile, type TaskLine } from './task-file.js'

/** Settings of the GSM8k task. */
export interface Gsm8kSpec {
  /** Which task this is. */
  readonly task: 'gsm8k'
  /** The published JSONL: `question`, and `answer` with its steps and `#### number`. */
  readonly data: string
  /** Worked examples before the question; default 8. */
  readonly shots?: number | undefined
  /** Where they come from, as the training split; default the other questions of `data`. */
  readonly shotsData?: string | undefined
  /** Most tokens of an answer; default 400. */
  readonly maxTokens?: number | undefined
  /** Ask through the model's chat template. Default false. */
  readonly chat?: boolean | undefined
}

const kQuestion = 'Question:'

interface Problem {
  readonly question: string
  /** Steps and result. */
  readonly answer: string
  readonly number: string
}

/**
 * Grade-school mathematics, answered with a chain of thought: worked examples, the question, and
 * whatever the model writes; a hit gives the right number after `####`, or else as the last number.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for a setting out of its range and a damaged file, naming its line;
 * `ERR_ZC_IO`.
 *
 * Source: Cobbe et al., 2021; ZipCache (arXiv 2405.14256) Table 3 asks so.
 */
export async function gsm8k(spec: Gsm8kSpec, setting: TaskSetting): Promise<Task> {
  const shots = checkInteger('shots', spec.shots ?? 8, 0, 64)
  const maxTokens = checkInteger('maxTokens', spec.maxTokens ?? 400, 1, 2 ** 20)
  const { chat = false } = spec
  checkBoolean('chat', chat)
  const file = await readTaskFile(spec.data)
  const problems = file.lines.map(readProblem)
  const shotsFile = spec.shotsData === undefined ? null : await readTaskFile(spec.shotsData)
  const others = shotsFile?.lines.map(readProblem) ?? null
  const fewest = others ? shots : shots + 1
  checkInteger('shots', shots, 0, (others ?? problems).length - (fewest - shots))

  const seeds = toSeed(setting.seed)
  const chosen = drawItems(setting, problems.length)
  return {
    name: 'gsm8k',
    facts: { data: spec.data, shots },
    key: JSON.stringify([
      'gsm8k',
      {
        digest: file.digest,
        shotsDigest: shotsFile?.digest,
        shots,
        maxTokens,
        chat: chatKey(setting.tokenizer, chat),
      },
    ]),
    measure: 'hits',
    count: chosen.length,
    question(index) {
      const own = chosen[index] as number
      const problem = problems[own] as Problem
      const source = others ?? problems.filter((_, i) => i !== own)
      const examples = sampleWithoutReplacement(source.length, shots, deriveSeed(seeds, 1), index)
      const prompt = [
        ...Array.from(examples, (i) => source[i] as Problem).map(
          ({ question, answer }) => `${kQuestion} ${question}\nAnswer: ${answer}\n\n`,
        ),
        `${kQuestion} ${problem.question}\nAnswer:`,
      ].join('')
      return {
        seed: questionSeed(seeds, index),
        ask: (asked) => solve(asked, prompt, problem.number, { maxTokens, chat }),
      }
    },
  }
}

async function solve(
  asked: Asked,
  prompt: string,
  number: string,
  { maxTokens, chat }: { maxTokens: number; chat: boolean },
): Promise<Outcome> {
  const turns = encodeTurns(asked.tokenizer, [prompt], { chat })
  expectFits(asked.model, turns.flat().length + maxTokens, 'data')
  await prefillTurns(asked, turns)
  const { text, said, values } = await writeAnswer(asked, {
    maxTokens,
    stop: [`\n${kQuestion}`],
    chat: chat ? turns.flat() : null,
  })
  const given = answeredNumber(said)
  const score = given !== null && equal(given, number) ? 1 : 0
  return { score, answer: text, expected: number, values }
}

function readProblem(line: TaskLine): Problem {
  const answer = line.text('answer')
  const [, number] = /####\s*(\S+)/.exec(answer) ?? []
  if (number === undefined || Number.isNaN(numberOf(number))) {
    throw line.error("field 'answer' has no '#### number'")
  }
  return { question: line.text('question'), answer, number }
}

/** The number after `####`, or the last one there is. */
export function answeredNumber(text: string): string | null {
  const [, marked] = /####\s*\$?(-?\d[\d,]*(?:\.\d+)?)/.exec(text) ?? []
  return marked ?? text.match(/-?\d[\d,]*(?:\.\d+)?/g)?.at(-1) ?? null
}

const numberOf = (number: string) => Number(number.replace(/[,$]/g, '').replace(/\.$/, ''))
const equal = (a: string, b: string) => numberOf(a) === numberOf(b)
