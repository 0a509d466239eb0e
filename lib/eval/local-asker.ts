import { checkInteger, checkObject } from '../engine/options.js'
import { policyLabel } from '../policy/policy-label.js'
import type { Answer, Asker, Unit } from './asker.js'
import { checkList, checkMethods } from './check.js'
import { requireTokenizer } from './prompt.js'
import type { SubjectModel, SubjectTokenizer } from './subject.js'
import type { Task } from './task.js'
import { makeTask, type TaskSpec } from './task-list.js'

/** Options of `localAsker`. */
export interface LocalAskerOptions {
  /** Who is asked; the caller keeps it. */
  readonly model: SubjectModel
  /** What will be asked. */
  readonly tasks: readonly TaskSpec[]
  /** Questions of each task, or as many as its file has. */
  readonly questions: number
  /** Any integer; the same seed gives the same questions and probes. */
  readonly seed: number
  /** What tells this model and machine from others; see `Asker.identity`. */
  readonly identity?: Readonly<Record<string, string | number>>
  /** Called by `close`. */
  readonly release?: () => Promise<void>
}

/**
 * Asks a model of this thread.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for options out of their range and damaged task files,
 * `ERR_ZC_TOKENIZER` if the model has no tokenizer.
 */
export async function localAsker(options: LocalAskerOptions): Promise<Asker> {
  checkObject('options', options)
  const { model, questions, seed, identity = {}, release } = options
  checkMethods('model', model, 'createSequence')
  checkList('tasks', options.tasks, 'task')
  checkInteger('questions', questions, 1, 2 ** 32 - 1)
  checkInteger('seed', seed, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)
  const tokenizer = requireTokenizer(model)
  const setting = { model, tokenizer, questions, seed }
  const tasks: Task[] = []
  for (const spec of options.tasks) tasks.push(await makeTask(spec, setting))
  return {
    tasks,
    identity: { ...identity, seed },
    ask: (unit, onAnswer, signal) => askUnit({ model, tokenizer, tasks }, unit, onAnswer, signal),
    close: async () => release?.(),
  }
}

async function askUnit(
  subject: { model: SubjectModel; tokenizer: SubjectTokenizer; tasks: readonly Task[] },
  unit: Unit,
  onAnswer: (answer: Answer) => Promise<void>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { model, tokenizer, tasks } = subject
  const task = tasks[unit.task] as Task
  const question = task.question(unit.question)
  let shared: Promise<unknown> | null = null
  const once = <T>(compute: () => Promise<T>): Promise<T> => {
    shared ??= compute()
    return shared as Promise<T>
  }
  for (const policy of unit.policies) {
    signal?.throwIfAborted()
    const sequence = model.createSequence({ policy, seed: question.seed })
    try {
      const outcome = await question.ask({ sequence, model, tokenizer, signal, once })
      const { resident, peak, fp16, ratio, paperRatio } = sequence.bytes
      await onAnswer({
        task: task.key,
        question: unit.question,
        policy: policyLabel(policy),
        score: outcome.score,
        answer: outcome.answer,
        expected: outcome.expected,
        values: outcome.values ?? {},
        bytes: { resident, peak, fp16, ratio, paperRatio },
        tokens: sequence.length,
      })
    } finally {
      sequence.dispose()
    }
  }
}
