import { basename } from 'node:path'
import { Argument, type Command } from 'commander'
import { BENCH_PARTS, type BenchPart, runBench } from '../bench/run-bench.js'
import { exampleModel } from '../model/example-model.js'
import type { ComputeDtype, WeightFormat } from '../model/weights.js'
import type { PolicySpec } from '../policy/index.js'
import { formatBenchPage } from './bench-page.js'
import { formatBenchReport } from './bench-tables.js'
import {
  addReportOptions,
  computeDtype,
  distinctList,
  dtypeOption,
  integer,
  kPackageRoot,
  policySpecs,
  regularExpression,
  seed,
  weightFormat,
  weightsOption,
} from './options.js'
import { expectReportFiles, type ReportOptions, withProgress, writeReport } from './output.js'

interface BenchCommandOptions extends ReportOptions {
  readonly device: string
  readonly threads?: number
  readonly dtype?: ComputeDtype
  readonly weights: WeightFormat
  readonly filter?: RegExp
  readonly full?: boolean
  readonly model?: string
  readonly context?: number[]
  readonly generated?: boolean
  readonly policy: PolicySpec[]
  readonly tokens: number
  readonly seed: number
}

const kContexts = [1024, 4096]
const kFullContexts = [...kContexts, 8192, 16384]

/** `zipcache bench`: ops and whole steps, each against the roofs of the machine. */
export function addBenchCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('bench')
    .description(
      'time ops and whole steps and hold them against the roofs of the machine, measured in the ' +
        'same run; ops are checked before they are timed',
    )
    .addArgument(
      new Argument('[part]', 'ops, prefill or decode alone (default: all)').choices(BENCH_PARTS),
    )
    .option(
      '--filter <regex>',
      'rows whose name it finds, as "linear m=1 .* f16"',
      regularExpression,
    )
    .option('--full', 'more shapes, longer contexts, more samples: several times as long')
    .option(
      '--model <dir>',
      'model folder (default: one with random weights and 25M parameters, and the one that comes ' +
        'with the package, which is taken beyond its positions where a context asks for it)',
    )
    .option(
      '--context <list>',
      `prompt lengths in tokens (default: ${kContexts}; with --full ${kFullContexts})`,
      distinctList(integer(1)),
    )
    .option('--generated', 'contexts of decode steps are decoded, too, as behind a long answer')
    .option('--policy <list>', 'cache policies: names, or JSON objects with options', policySpecs, [
      'fp16',
      'uniform4',
      'zipcache',
    ])
    .option('--tokens <n>', 'decoded tokens of each row', integer(1), 208)
    .option('--seed <n>', 'makes other prompts', seed, 0)
    .option('--device <name>', 'device that computes', 'cpu')
    .option(...dtypeOption, computeDtype)
    .option(...weightsOption, weightFormat, 'stored')
    .option('--threads <n>', 'threads that compute (default: one a core)', integer(1, 1024))
  addReportOptions(command, 'plots').action(
    async (part: BenchPart | undefined, options: BenchCommandOptions) => {
      const { json = false, filter, full = false, model, context, policy } = options
      const { device, threads, dtype, weights, tokens, generated } = options
      await expectReportFiles(options)
      const report = await withProgress('bench', !json, (onProgress) =>
        runBench({
          ...{ device, threads, dtype, weights, tokens, full, filter, signal, onProgress },
          parts: part === undefined ? BENCH_PARTS : [part],
          models: modelsOf(model),
          contexts: context ?? (full ? kFullContexts : kContexts),
          generated,
          policies: policy,
          seed: options.seed,
          root: kPackageRoot,
        }),
      )
      await writeReport(options, {
        document: report,
        page: () => formatBenchPage(report),
        tables: () => formatBenchReport(report),
      })
    },
  )
}

function modelsOf(dir: string | undefined) {
  if (dir !== undefined) return [{ name: basename(dir), dir, stretch: false }]
  return [
    { name: 'random-25m', dir: null, stretch: false },
    { name: 'line-retrieval', dir: exampleModel(), stretch: true },
  ]
}
