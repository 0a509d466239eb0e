import type { Command } from 'commander'
import { type Demo, runDemo } from '../eval/demo.js'
import { exampleModel } from '../model/example-model.js'
import type { PolicySpec } from '../policy/index.js'
import { addModelOptions, integer, type ModelOptions, policySpec, seed } from './options.js'
import { print, printJson, withProgress } from './output.js'
import {
  formatBytes,
  formatMs,
  formatPairs,
  formatRatio,
  formatTable,
  left,
  right,
} from './table.js'
import { withModel } from './with-model.js'

interface DemoCommandOptions extends ModelOptions {
  readonly model: string
  readonly lines: number
  readonly seed: number
  readonly policy: PolicySpec
}

/** `zipcache demo`: one long-context question, from a 16-bit cache and from a compressed one. */
export function addDemoCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('demo')
    .description('answer a question over a long context from a 16-bit and from a compressed cache')
    .option('--model <dir>', 'model folder (default: the one that comes with the package)')
    .option('--lines <n>', 'lines to look through, about 17 tokens each', integer(1, 4096), 200)
    .option('--seed <n>', 'makes another prompt', seed, 1)
    .option(
      '--policy <spec>',
      'compare the 16-bit cache with this one: a name, or a JSON object',
      policySpec,
      'zipcache',
    )
  addModelOptions(command).action(async (options: DemoCommandOptions) => {
    const { model: dir = exampleModel(), lines, seed, policy, json = false } = options
    const demo = await withModel(dir, options, signal, (model) =>
      withProgress('demo', !json, (onProgress) => {
        const policies = policy === 'fp16' ? [policy] : ['fp16', policy]
        return runDemo({ model, lines, seed, policies, signal, onProgress })
      }),
    )
    if (json) printJson({ schema: 'zipcache-demo-1', model: dir, ...demo })
    else print(formatDemo(dir, lines, demo))
  })
}

function formatDemo(dir: string, lines: number, demo: Demo): string {
  const facts = formatPairs([
    ['model', dir],
    ['prompt', `${demo.promptTokens} tokens: ${lines} lines, and then`],
    ['question', demo.question],
    ['expected', demo.expected],
  ])
  const table = formatTable(
    [
      ...['cache', 'answer', ''].map(left),
      ...['bytes', 'ratio', 'peak', 'prefill ms', 'decode ms/token'].map(right),
    ],
    demo.results.map((result) => [
      result.policy,
      result.answer ?? '(none)',
      result.correct ? 'right' : 'wrong',
      formatBytes(result.bytes.resident),
      formatRatio(result.ratio),
      formatBytes(result.bytes.peak),
      formatMs(result.prefillMs),
      formatMs(result.decodeMsPerToken),
    ]),
  )
  return `${facts}\n${table}`
}
