import { checkInteger, checkObject, checkSignal } from '../engine/options.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import type { Answer, Asker, Unit } from './asker.js'
import { check, checkList, checkMethods } from './check.js'
import type { Journal } from './journal.js'
import { type EvalPair, type EvalRow, pairsOf, rowsOf } from './rows.js'
import type { TaskFacts } from './task.js'

/** Options of `evaluate`. */
export interface Evaluation {
  /** Who asks, one or more, with the same tasks; questions go to whoever is free. */
  readonly askers: readonly Asker[]
  /** Who is compared, each once. */
  readonly policies: readonly PolicySpec[]
  /** Whether a task (an index into the askers' tasks) is for a policy, by its label; default all. */
  readonly only?: ((task: number, policy: string) => boolean) | undefined
  /** false: rows of the journal's answers alone, nothing is asked; default true. */
  readonly ask?: boolean | undefined
  /** Answers so far, which are not asked for again; new ones go there, too. */
  readonly journal?: Journal | undefined
  /**
   * Questions that each asker has under way at a time, default 4: their decode steps are one batch.
   * Answers do not depend on it.
   */
  readonly batch?: number | undefined
  /** Aborting rejects with `signal.reason`. */
  readonly signal?: AbortSignal | undefined
  /** Called after each answer, of those that had to be asked for. */
  readonly onProgress?: ((progress: { done: number; total: number }) => void) | undefined
}

/** What was found: a row for each task and policy, a pair for each task and two policies. */
export interface EvalResult {
  /** In the order of tasks, then of policies. */
  readonly rows: readonly EvalRow[]
  /** In the same order. */
  readonly pairs: readonly EvalPair[]
}

/**
 * Asks every policy the same questions of each task, greedily.
 *
 * The numbers do not depend on how many ask, on the batch, or on how often the run was interrupted.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an option out of its range or a policy that is none, with what
 * a question rejects with, and with `signal.reason` when aborted.
 */
export async function evaluate(options: Evaluation): Promise<EvalResult> {
  checkObject('options', options)
  const { askers, policies, journal, signal, onProgress, only = () => true } = options
  const batch = checkInteger('batch', options.batch ?? 4, 1, 1024)
  checkList('policies', policies, 'policy')
  for (const policy of policies) resolvePolicy(policy)
  const labels = policies.map(policyLabel)
  check('policies', new Set(labels).size === labels.length, 'has one twice, expected each once')
  checkList('askers', askers, 'asker')
  for (const [i, asker] of askers.entries()) {
    checkMethods(`askers[${i}]`, asker, 'ask')
    check(`askers[${i}]`, Array.isArray(asker.tasks), 'has no list of tasks')
    for (const task of asker.tasks) checkObject(`askers[${i}].tasks`, task)
  }
  checkSignal(signal)
  const [{ tasks }] = askers as readonly [Asker]
  const keys = tasks.map(({ key }) => key)
  check('tasks', new Set(keys).size === keys.length, 'has one twice, expected each once')

  const wanted = new Set(labels)
  const usable = (journal?.answers ?? []).filter(({ task, policy, question }) => {
    const index = keys.indexOf(task)
    return wanted.has(policy) && question < (tasks[index]?.count ?? 0) && only(index, policy)
  })
  // Two runs at a time on one journal may ask the same.
  const answers = [...new Map(usable.map((answer) => [answerId(answer), answer])).values()]
  const units = options.ask === false ? [] : missingUnits(tasks, policies, answers, only)
  const total = units.reduce((sum, unit) => sum + unit.policies.length, 0)
  let done = 0
  const onAnswer = async (answer: Answer) => {
    await journal?.append(answer)
    answers.push(answer)
    onProgress?.({ done: ++done, total })
  }
  await askAll(askers, units, batch, onAnswer, signal)
  const rows = rowsOf(tasks, policies, answers)
  return { rows, pairs: pairsOf(tasks, labels, answers) }
}

/** A unit for each question that some policy has not answered. */
function missingUnits(
  tasks: readonly TaskFacts[],
  policies: readonly PolicySpec[],
  answers: readonly Answer[],
  only: (task: number, policy: string) => boolean,
): Unit[] {
  const known = new Set(answers.map(answerId))
  const units: Unit[] = []
  for (const [task, { key, count }] of tasks.entries()) {
    for (let question = 0; question < count; question++) {
      const missing = policies.filter((spec) => {
        const policy = policyLabel(spec)
        return only(task, policy) && !known.has(answerId({ task: key, question, policy }))
      })
      if (missing.length > 0) units.push({ task, question, policies: missing })
    }
  }
  return units
}

const answerId = ({ task, question, policy }: Pick<Answer, 'task' | 'question' | 'policy'>) =>
  JSON.stringify([task, question, policy])

/** Keeps `batch` units of every asker under way; the first failure ends the others. */
async function askAll(
  askers: readonly Asker[],
  units: readonly Unit[],
  batch: number,
  onAnswer: (answer: Answer) => Promise<void>,
  signal: AbortSignal | undefined,
): Promise<void> {
  signal?.throwIfAborted()
  const failed = new AbortController()
  const abort = () => failed.abort(signal?.reason)
  signal?.addEventListener('abort', abort, { once: true })
  const left = units.values()
  const lane = async (asker: Asker) => {
    for (const unit of left) {
      if (failed.signal.aborted) return
      await asker.ask(unit, onAnswer, failed.signal)
    }
  }
  const lanes = Array.from({ length: batch }, () => askers.map(lane)).flat()
  for (const each of lanes) each.catch((error) => failed.abort(error))
  try {
    await Promise.allSettled(lanes)
    if (failed.signal.aborted) throw failed.signal.reason
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}
