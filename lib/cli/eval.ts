import type { Command } from 'commander'
import type { EvalReport } from '../eval/report.js'
import type { EvalRow } from '../eval/rows.js'
import type { PolicySpec } from '../policy/index.js'
import { formatEvalPage } from './eval-page.js'
import { addPaperCommand } from './eval-paper.js'
import { addEvalOptions, type EvalOptions, runEval } from './eval-run.js'
import { formatEvalReport } from './eval-tables.js'
import { kTaskCommands } from './eval-tasks.js'
import { policySpecs } from './options.js'
import { writeReport } from './output.js'

const kPolicies = ['fp16', 'zipcache', 'uniform4', 'uniform2']
const kQuestions = 20

/** `zipcache eval`: what cache policies cost and save, on the same questions. */
export function addEvalCommand(program: Command, signal: AbortSignal): void {
  const evalCommand = program
    .command('eval')
    .description('measure what a compressed cache does to answers')
    .helpCommand(false)
  for (const { name, description, options, tasksOf } of kTaskCommands) {
    const command = evalCommand.command(name).description(description)
    for (const option of options) command.addOption(option)
    command.option(
      '--policy <list>',
      `cache policies: names, or JSON objects with options (default: ${kPolicies})`,
      policySpecs,
    )
    addEvalOptions(command, kQuestions).action(
      async (given: EvalOptions & { policy?: PolicySpec[] }) => {
        const tasks = tasksOf(given)
        const report = await runEval({ tasks, policies: given.policy ?? kPolicies }, given, signal)
        await writeReport(given, {
          document: documentOf(report),
          page: () => formatEvalPage(report),
          tables: () => formatEvalReport(report),
        })
      },
    )
  }
  addPaperCommand(evalCommand, signal)
}

/** The document of `--json`: rows have their task's facts beside the numbers. */
function documentOf(report: EvalReport): object {
  return {
    ...report,
    rows: report.rows.map(documentRow),
    pairs: report.pairs.map(({ task, facts, ...pair }) => ({ task, ...facts, ...pair })),
  }
}

function documentRow(row: EvalRow): object {
  const { task, facts, policy, spec, questions, measure, value, low, high, values, ...costs } = row
  const name = { hits: 'accuracy', score: 'score', loss: 'perplexity' }[measure]
  return {
    ...{ task, ...facts, policy, spec, questions },
    [name]: value,
    interval: [low, high],
    ...values,
    ...costs,
  }
}
