import type { Command } from 'commander'
import type { Model } from '../engine/model.js'
import { dominatorsOf } from '../eval/front.js'
import { inspectSaliency, type SaliencyShares } from '../eval/inspect.js'
import { measureMemory } from '../eval/memory.js'
import {
  distinctPolicies,
  kFigure5,
  kFigure6,
  kFront,
  kPaperTables,
  kSaliency,
} from '../eval/paper.js'
import type { PaperReport } from '../eval/paper-report.js'
import type { EvalReport } from '../eval/report.js'
import { makeRetrievalPrompt, resolveForm } from '../eval/retrieval-prompt.js'
import type { TaskSpec } from '../eval/task-list.js'
import { exampleModel } from '../model/example-model.js'
import { policyLabel } from '../policy/policy-label.js'
import { addEvalOptions, type EvalOptions, runEval } from './eval-run.js'
import { distinctList, integer } from './options.js'
import { expectWritable, writeOutput, writeReport } from './output.js'
import { formatPaperMarkdown, formatPaperPage, formatPaperReport } from './paper-page.js'
import { withModel } from './with-model.js'

interface PaperOptions extends EvalOptions {
  readonly lines: number
  readonly figureLines: number[]
  readonly lengths: number[]
  /** GSM8K for the tables. */
  readonly data?: string
  readonly markdown?: string
}

const kQuestions = 60
/** Prompts whose salient tokens are looked at. */
const kSaliencyPrompts = 5

/** `zipcache eval paper`: the paper's tables and figures for a checkpoint. */
export function addPaperCommand(evalCommand: Command, signal: AbortSignal): void {
  const command = evalCommand
    .command('paper')
    .description(
      "the paper's Tables 1, 2, 3 and A, Figure 5 and the memory of Figure 6 for a model, and every " +
        'method as points of accuracy against bytes',
    )
    .option('--lines <n>', 'record lines of the tables and the front', integer(1, 4096), 200)
    .option(
      '--figure-lines <list>',
      'record lines of Figure 5, beside --lines',
      distinctList(integer(1, 4096)),
      [20, 50, 100],
    )
    .option(
      '--lengths <list>',
      'tokens of Figure 6',
      distinctList(integer(1)),
      [1024, 2048, 3072, 4096],
    )
    .option('--data <file>', 'ask the tables at GSM8K, the published JSONL, as the paper does')
    .option('--markdown <file>', 'write the tables as Markdown')
  addEvalOptions(command, kQuestions).action(async (options: PaperOptions) => {
    const { markdown } = options
    if (markdown !== undefined) await expectWritable(markdown, '--markdown')
    const report = await runPaper(options, signal)
    if (markdown !== undefined) {
      await writeOutput(markdown, '--markdown', formatPaperMarkdown(report))
    }
    await writeReport(options, {
      document: report,
      page: () => formatPaperPage(report),
      tables: () => formatPaperReport(report),
    })
  })
}

async function runPaper(options: PaperOptions, signal: AbortSignal): Promise<PaperReport> {
  const { lines, figureLines, data, lengths, seed } = options
  const retrieval = (n: number, ask: 'inside' | 'after') =>
    ({ task: 'line-retrieval', lines: n, ask }) as const
  const tables = kPaperTables.flatMap((table) => table.lines.map(({ policy }) => policy))
  const others = figureLines.filter((n) => n !== lines)
  const front = data === undefined ? [...tables, ...kFront, ...kFigure5] : [...kFront, ...kFigure5]
  const wanted: [TaskSpec, Set<string>][] = [
    [retrieval(lines, 'inside'), labels(front)],
    [retrieval(lines, 'after'), labels(kFront)],
    ...others.map((n): [TaskSpec, Set<string>] => [retrieval(n, 'inside'), labels(kFigure5)]),
  ]
  if (data !== undefined) wanted.unshift([{ task: 'gsm8k', data }, labels(tables)])
  const report = await runEval(
    {
      tasks: wanted.map(([task]) => task),
      policies: distinctPolicies([...kFront, ...tables, ...kFigure5]),
      only: (task, policy) => wanted[task]?.[1].has(policy) ?? false,
    },
    options,
    signal,
  )
  const dir = options.model ?? exampleModel()
  return withModel(dir, options, signal, async (model) => ({
    ...report,
    schema: 'zipcache-paper-1',
    lines,
    tableTask: data === undefined ? 'line-retrieval' : 'gsm8k',
    front: frontOf(report, lines),
    // All pairs would be most of the document.
    pairs: report.pairs.filter(({ a, b }) => kAgainst.has(a) || kAgainst.has(b)),
    memory: await measureMemory({ model, policies: kFigure6, lengths, seed, signal }),
    saliency: await saliencyByPosition(model, lines, seed, signal),
  }))
}

function frontOf({ rows, pairs }: EvalReport, lines: number): PaperReport['front'] {
  const front = labels(kFront)
  return (['inside', 'after'] as const).flatMap((ask) => {
    const own = rows.filter(
      ({ task, facts, policy }) =>
        task === 'line-retrieval' &&
        facts.lines === lines &&
        facts.ask === ask &&
        front.has(policy),
    )
    return own.map((row) => {
      const beatenBy = dominatorsOf(row, own, pairs).map(({ policy }) => policy)
      return { ask, policy: row.policy, beatenBy }
    })
  })
}

const labels = (policies: Parameters<typeof distinctPolicies>[0]) =>
  new Set(policies.map(policyLabel))

const kAgainst = labels([
  ...kPaperTables.map(({ against }) => against),
  ...['fp16', 'zipcache', 'zipcache-plus'],
])

/** Mean share of salient tokens in 20 parts of some prompts, over all layers and KV heads. */
async function saliencyByPosition(model: Model, lines: number, seed: number, signal: AbortSignal) {
  const { tokenizer } = model
  if (tokenizer === null) return []
  const form = resolveForm(tokenizer, 'auto')
  const rows: { policy: string; shares: number[]; position: number; frequency: number }[] = []
  for (const policy of kSaliency) {
    const reports: SaliencyShares[] = []
    for (let i = 0; i < kSaliencyPrompts; i++) {
      const { turns } = makeRetrievalPrompt(tokenizer, form, { lines, seed: seed + i })
      const ids = turns.flat()
      reports.push((await inspectSaliency({ model, ids, policy, seed: i, signal })).all)
    }
    const mean = (pick: (all: SaliencyShares) => number) =>
      reports.reduce((sum, all) => sum + pick(all), 0) / reports.length
    rows.push({
      policy: policyLabel(policy),
      shares: Array.from({ length: 20 }, (_, bin) => mean((all) => all.byPosition[bin] ?? 0)),
      position: mean((all) => all.bias.position),
      frequency: mean((all) => all.bias.frequency),
    })
  }
  return rows
}
