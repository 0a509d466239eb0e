import { type Command, InvalidArgumentError } from 'commander'
import type { Model } from '../engine/model.js'
import { tokenIds } from '../engine/prompt.js'
import { inspectSaliency, type SaliencyReport } from '../eval/inspect.js'
import { exampleModel } from '../model/example-model.js'
import type { PolicySpec } from '../policy/index.js'
import { formatInspectPage, inspectPairs, inspectTables } from './inspect-page.js'
import {
  addDeviceOptions,
  addReportOptions,
  type DeviceOptions,
  integer,
  policySpec,
  regularExpression,
  seed,
} from './options.js'
import { expectReportFiles, type ReportOptions, writeReport } from './output.js'
import { addPromptOptions, type PromptOptions, readPrompt } from './prompt-input.js'
import { formatPairs, formatTitledTable } from './table.js'
import { withModel } from './with-model.js'

interface InspectOptions extends DeviceOptions, PromptOptions, ReportOptions {
  readonly model?: string
  readonly policy: PolicySpec
  readonly seed: number
  readonly bins: number
  readonly class?: Record<string, RegExp>
}

/** `zipcache inspect`: which tokens of a prompt a policy takes for salient. */
export function addInspectCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('inspect')
    .description(
      'show which tokens of a prompt are salient, by layer and KV head; without --prompt, ' +
        '--prompt-file or --ids it is read from stdin',
    )
    .option('--model <dir>', 'model folder (default: the one that comes with the package)')
  addPromptOptions(command)
    .option('--policy <spec>', 'a cache policy: its name, or a JSON object', policySpec, 'zipcache')
    .option('--seed <n>', 'of the probes', seed, 0)
    .option('--bins <n>', 'bins of positions', integer(1, 4096), 20)
    .option(
      '--class <name=regex>',
      'a class of content: tokens of what the expression finds; may be given again',
      contentClass,
    )
  addReportOptions(command, 'heatmaps')
  addDeviceOptions(command).action(async (options: InspectOptions) => {
    const { model: dir = exampleModel() } = options
    await expectReportFiles(options)
    const report = await withModel(dir, options, signal, (model) => inspect(model, options, signal))
    await writeReport(options, {
      document: report,
      page: () => formatInspectPage(report),
      tables: () => formatInspectReport(report),
    })
  })
}

function formatInspectReport(report: SaliencyReport): string {
  const tables = inspectTables(report).map(formatTitledTable)
  return [formatPairs(inspectPairs(report)), ...tables].join('\n')
}

async function inspect(
  model: Model,
  options: InspectOptions,
  signal: AbortSignal,
): Promise<SaliencyReport> {
  const { policy, seed, bins, class: classes = {} } = options
  const prompt = await readPrompt(model, options, signal)
  const ids = tokenIds(prompt, model.tokenizer, model.config.vocabSize)
  return inspectSaliency({ model, ids, policy, seed, bins, classes, signal })
}

function contentClass(value: string, earlier: Record<string, RegExp> = {}): Record<string, RegExp> {
  const [, name, source] = /^([^=]+)=(.+)$/s.exec(value) ?? []
  if (name === undefined || source === undefined) {
    throw new InvalidArgumentError('Expected name=regex.')
  }
  return { ...earlier, [name]: regularExpression(source) }
}
