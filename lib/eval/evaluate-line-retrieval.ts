import { checkObject } from '../engine/options.js'
import type { PolicySpec } from '../policy/index.js'
import { checkList } from './check.js'
import { evaluate } from './evaluate.js'
import type { AskMode } from './line-retrieval.js'
import { localAsker } from './local-asker.js'
import type { SubjectModel } from './subject.js'

/** What one policy reached at one number of lines. */
export interface LineRetrievalRow {
  /** Its label. */
  readonly policy: string
  /** Record lines of the prompts. */
  readonly lines: number
  /** How many were asked. */
  readonly questions: number
  /** Percent of the questions answered with all five digits right. */
  readonly accuracy: number
  /** Mean over the questions of fp16 bytes / resident bytes, after the last answer token. */
  readonly ratio: number
  /** Mean over the questions of the sequence's resident bytes, after the last answer token. */
  readonly bytes: number
  /** Where the question stood. */
  readonly ask: AskMode
}

/** What `evaluateLineRetrieval` found. */
export interface LineRetrievalResult {
  /** For each number of lines, then each policy. */
  rows: LineRetrievalRow[]
}

/** Options of `evaluateLineRetrieval`. */
export interface LineRetrievalEvaluation {
  /** Who is asked. */
  readonly model: SubjectModel
  /** Record lines of the prompts, one row each. */
  readonly lines: readonly number[]
  /** Prompts for each number of lines. */
  readonly questions: number
  /** Any integer; the same seed gives the same prompts and probes. */
  readonly seed: number
  /** Ways of keeping the cache, a row each. */
  readonly policies: readonly PolicySpec[]
  /** Default `inside`. */
  readonly ask?: AskMode | undefined
  /** Aborting rejects with `signal.reason`. */
  readonly signal?: AbortSignal | undefined
  /** Called after each answer. */
  readonly onProgress?: ((progress: { done: number; total: number }) => void) | undefined
}

/**
 * Asks every policy the same line-retrieval questions, greedily:
 *
 *     accuracy = 100 * hits / questions,   a hit: all digits right
 *
 * One row for each number of lines and policy, in the order given. `evaluate` of `zipcache/eval`
 * does the same for any task, with intervals, and goes on where it was interrupted.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an option out of its range, `ERR_ZC_TOKENIZER` if the model
 * has no tokenizer, `ERR_ZC_CONTEXT_LENGTH` if a prompt is longer than the model's context, and
 * with `signal.reason` when aborted.
 *
 * Source: ZipCache (arXiv 2405.14256) §5, Fig. 5.
 */
export async function evaluateLineRetrieval(
  options: LineRetrievalEvaluation,
): Promise<LineRetrievalResult> {
  checkObject('options', options)
  const { model, lines, questions, seed, policies, ask = 'inside', signal, onProgress } = options
  checkList('lines', lines, 'number of lines')
  const tasks = lines.map((n) => ({ task: 'line-retrieval', lines: n, ask }) as const)
  const asker = await localAsker({ model, tasks, questions, seed })
  const { rows } = await evaluate({ askers: [asker], policies, batch: 1, signal, onProgress })
  return {
    rows: rows.map(({ policy, facts, questions, value, ratio, bytes }) => ({
      policy,
      lines: facts.lines as number,
      questions,
      accuracy: value,
      ratio,
      bytes,
      ask,
    })),
  }
}
