import type { Command } from 'commander'
import {
  type AskMode,
  evaluateLineRetrieval,
  type LineRetrievalRow,
} from '../eval/line-retrieval.js'
import { exampleModel } from '../model/example-model.js'
import {
  addModelOptions,
  choice,
  distinctList,
  integer,
  type ModelOptions,
  policyName,
  seed,
} from './options.js'
import { print, printJson, withProgress } from './output.js'
import { formatBytes, formatPercent, formatRatio, formatTable } from './table.js'
import { withModel } from './with-model.js'

interface LineRetrievalCommandOptions extends ModelOptions {
  readonly model: string
  readonly lines: number[]
  readonly questions: number
  readonly seed: number
  readonly policy: string[]
  readonly ask: AskMode
}

/** `zipcache eval line-retrieval`: accuracy and bytes of cache policies on the same questions. */
export function addEvalCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('eval')
    .description('measure what a compressed cache does to answers')
    .helpCommand(false)
    .command('line-retrieval')
    .description('ask for the number in one of many lines; every policy gets the same questions')
    .option('--model <dir>', 'model folder (default: the one that comes with the package)')
    .option(
      '--lines <list>',
      'lines of the prompts',
      distinctList(integer(1, 4096)),
      [50, 100, 200],
    )
    .option('--questions <n>', 'questions for each number of lines', integer(1), 20)
    .option('--seed <n>', 'makes other questions', seed, 1)
    .option('--policy <list>', 'cache policies', distinctList(policyName), [
      'fp16',
      'zipcache',
      'uniform4',
      'uniform2',
    ])
    .option(
      '--ask <when>',
      'ask inside the prompt, as the paper does, or after it was compressed',
      choice('inside', 'after'),
      'inside',
    )
  addModelOptions(command).action(async (options: LineRetrievalCommandOptions) => {
    const {
      model: dir = exampleModel(),
      lines,
      questions,
      seed,
      policy,
      ask,
      json = false,
    } = options
    const result = await withModel(dir, options, signal, (model) =>
      withProgress('eval', !json, (onProgress) =>
        evaluateLineRetrieval({
          model,
          lines,
          questions,
          seed,
          policies: policy,
          ask,
          signal,
          onProgress,
        }),
      ),
    )
    if (json) printJson(result)
    else print(formatRows(result.rows))
  })
}

function formatRows(rows: readonly LineRetrievalRow[]): string {
  return formatTable(
    [
      { title: 'lines', align: 'right' },
      { title: 'asked', align: 'left' },
      { title: 'policy', align: 'left' },
      { title: 'questions', align: 'right' },
      { title: 'accuracy', align: 'right' },
      { title: 'ratio', align: 'right' },
      { title: 'bytes', align: 'right' },
    ],
    rows.map((row) => [
      String(row.lines),
      row.ask,
      row.policy,
      String(row.questions),
      formatPercent(row.accuracy),
      formatRatio(row.ratio),
      formatBytes(row.bytes),
    ]),
  )
}
