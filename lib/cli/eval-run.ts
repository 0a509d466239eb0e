import { availableParallelism } from 'node:os'
import type { Command } from 'commander'
import { machineOf } from '../bench/machine.js'
import { ZipCacheError } from '../errors.js'
import type { Asker } from '../eval/asker.js'
import { evaluate } from '../eval/evaluate.js'
import { Journal } from '../eval/journal.js'
import { modelAsker } from '../eval/model-asker.js'
import type { EvalReport } from '../eval/report.js'
import type { TaskSpec } from '../eval/task-list.js'
import { workerAsker } from '../eval/worker-asker.js'
import { exampleModel } from '../model/example-model.js'
import type { PolicySpec } from '../policy/index.js'
import {
  addDeviceOptions,
  addReportOptions,
  type DeviceOptions,
  integer,
  kPackageRoot,
  seed,
} from './options.js'
import { expectReportFiles, type ReportOptions, withProgress } from './output.js'

/** What every evaluation takes. */
export interface EvalOptions extends DeviceOptions, ReportOptions {
  readonly model?: string
  readonly questions: number
  readonly seed: number
  readonly jobs: number
  readonly batch: number
  readonly journal?: string
  /** Ask nothing, report what the journal has. */
  readonly onlyJournal?: boolean
}

/** Adds what every evaluation takes to a command. */
export function addEvalOptions(command: Command, questions: number): Command {
  command
    .option('--model <dir>', 'model folder (default: the one that comes with the package)')
    .option('--questions <n>', 'questions of each kind', integer(1), questions)
    .option('--seed <n>', 'makes other questions', seed, 1)
    .option('--jobs <n>', 'threads that each ask a model of their own', integer(1, 256), 1)
    .option('--batch <n>', 'questions that each has under way at a time', integer(1, 1024), 4)
    .option(
      '--journal <file>',
      'keep finished answers in a file, and go on after those that are there',
    )
    .option('--only-journal', 'ask nothing: report the answers that are in the journal')
  return addDeviceOptions(addReportOptions(command, 'plots'))
}

/** What to ask whom. */
export interface Asked {
  readonly tasks: readonly TaskSpec[]
  readonly policies: readonly PolicySpec[]
  /** See `Evaluation.only`. */
  readonly only?: (task: number, policy: string) => boolean
}

/**
 * Loads the model, once for each job, asks, and says what was found.
 *
 * Files that are to be written are tried before anything else.
 */
export async function runEval(
  { tasks, policies, only }: Asked,
  options: EvalOptions,
  signal: AbortSignal,
): Promise<EvalReport> {
  const { model = exampleModel(), questions, batch, json = false } = options
  await expectReportFiles(options)
  if (options.onlyJournal && options.journal === undefined) {
    throw new ZipCacheError('ERR_ZC_ARGUMENT', '--only-journal: is given without --journal', {
      argument: 'journal',
    })
  }
  const askers = await openAskers(tasks, { ...options, model }, signal)
  let journal: Journal | undefined
  try {
    const [first] = askers as [Asker]
    const { version, commit } = machineOf(kPackageRoot)
    const build = commit === null ? version : `${version} (${commit})`
    if (options.journal !== undefined) {
      journal = await Journal.open(options.journal, first.identity, build)
    }
    const { rows, pairs } = await withProgress('eval', !json, (onProgress) =>
      evaluate({
        ...{ askers, policies, only, journal, batch, signal, onProgress },
        ask: options.onlyJournal !== true,
      }),
    )
    return {
      schema: 'zipcache-eval-1',
      command: commandLine(),
      model,
      identity: first.identity,
      questions,
      builds: journal?.builds ?? [build],
      rows,
      pairs,
    }
  } finally {
    await Promise.all([journal?.close(), ...askers.map((asker) => asker.close())])
  }
}

async function openAskers(
  tasks: readonly TaskSpec[],
  {
    model,
    device,
    dtype,
    weights,
    threads,
    questions,
    seed,
    jobs,
  }: EvalOptions & { model: string },
  signal: AbortSignal,
): Promise<Asker[]> {
  const setting = { dir: model, device, dtype, weights, tasks, questions, seed }
  if (jobs === 1) return [await modelAsker({ ...setting, threads }, signal)]
  const share = Math.max(1, Math.floor(availableParallelism() / jobs))
  const started = await Promise.allSettled(
    Array.from({ length: jobs }, () => workerAsker({ ...setting, threads: threads ?? share })),
  )
  const failed = started.find(({ status }) => status === 'rejected')
  const askers = started.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []))
  if (failed === undefined) return askers
  await Promise.all(askers.map((asker) => asker.close()))
  throw (failed as PromiseRejectedResult).reason
}

/** As it was typed, or could have been. */
function commandLine(): string {
  const quoted = process.argv.slice(2).map((argument) => {
    return /^[\w./,=:@%+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`
  })
  return ['zipcache', ...quoted].join(' ')
}
