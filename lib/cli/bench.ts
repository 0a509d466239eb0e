import { arch, availableParallelism, cpus, platform, release, totalmem } from 'node:os'
import type { Command } from 'commander'
import type { Model } from '../engine/model.js'
import { benchDecode, benchPositions, type DecodeBenchRow } from '../eval/decode-bench.js'
import { withLongerContext } from './longer-context.js'
import {
  addModelOptions,
  distinctList,
  integer,
  kShippedModel,
  type ModelOptions,
  policyName,
  seed,
} from './options.js'
import { print, printJson, withProgress } from './output.js'
import { formatBytes, formatMs, formatRatio, formatTable } from './table.js'
import { withModel } from './with-model.js'

interface DecodeCommandOptions extends ModelOptions {
  readonly model?: string
  readonly context: number[]
  readonly policy: string[]
  readonly tokens: number
  readonly repeats: number
  readonly seed: number
}

/** `zipcache bench decode`: milliseconds per decoded token and cache bytes over long contexts. */
export function addBenchCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('bench')
    .description('measure time and memory')
    .helpCommand(false)
    .command('decode')
    .description(
      'time decoding over long contexts; without --model, the one that comes with the package is ' +
        'taken beyond the positions it was trained on where a context asks for it',
    )
    .option('--model <dir>', 'model folder (default: the one that comes with the package)')
    .option('--context <list>', 'prompt lengths in tokens', distinctList(integer(1)), [1024, 4096])
    .option('--policy <list>', 'cache policies', distinctList(policyName), ['fp16', 'zipcache'])
    .option('--tokens <n>', 'decoded tokens of one measurement', integer(1), 64)
    .option('--repeats <n>', 'measurements for each row', integer(1), 5)
    .option('--seed <n>', 'makes other prompts', seed, 0)
  addModelOptions(command).action(async (options: DecodeCommandOptions) => {
    const { context, policy, tokens, repeats, json = false } = options
    const bench = (dir: string) =>
      withModel(dir, options, signal, (model) =>
        withProgress('bench', !json, async (onProgress) => {
          const { rows } = await benchDecode({
            model,
            contexts: context,
            policies: policy,
            tokens,
            repeats,
            seed: options.seed,
            signal,
            onProgress,
          })
          return { rows, machine: machineOf(model) }
        }),
      )
    const positions = benchPositions(Math.max(...context), tokens, repeats)
    const result =
      options.model === undefined
        ? await withLongerContext(kShippedModel, positions, bench)
        : await bench(options.model)
    if (json) printJson(result)
    else print(formatRows(result.rows, result.machine))
  })
}

type Machine = ReturnType<typeof machineOf>

function machineOf(model: Model) {
  const { isa, nThreads } = model.device.info
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    os: `${platform()} ${release()} ${arch()}`,
    node: process.version,
    device: model.device.info.name,
    isa,
    threads: nThreads,
    dtype: model.dtype,
  }
}

function formatRows(rows: readonly DecodeBenchRow[], machine: Machine): string {
  const table = formatTable(
    [
      { title: 'context', align: 'right' },
      { title: 'policy', align: 'left' },
      { title: 'decode ms/token', align: 'right' },
      { title: 'min', align: 'right' },
      { title: 'max', align: 'right' },
      { title: 'bytes', align: 'right' },
      { title: 'ratio', align: 'right' },
      { title: 'prefill ms', align: 'right' },
    ],
    rows.map(({ context, policy, decodeMsPerToken, bytes, ratio, prefillMs }) => [
      String(context),
      policy,
      formatMs(decodeMsPerToken.median),
      formatMs(decodeMsPerToken.min),
      formatMs(decodeMsPerToken.max),
      formatBytes(bytes),
      formatRatio(ratio),
      formatMs(prefillMs),
    ]),
  )
  const { cpu, cores, device, isa, threads, dtype, node } = machine
  return `${cpu}, ${cores} cores; ${device} (${isa}), ${threads} threads, ${dtype}; Node ${node}\n\n${table}`
}
