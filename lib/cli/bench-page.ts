import type { BenchReport, DecodeRow } from '../bench/report.js'
import { benchTables, machinePairs } from './bench-tables.js'
import { formatPage, section, tableSection } from './page.js'
import { type Bar, barPlot, histogramPlot, linePlot } from './plots.js'

/**
 * A report as one page that needs nothing else: no script, no host, plots drawn in the page; every
 * number of a plot stands in a table, too.
 */
export function formatBenchPage(report: BenchReport): string {
  return formatPage('zipcache bench', machinePairs(report), [
    opPlot(report),
    ...decodePlots(report),
    ...benchTables(report).map(tableSection),
  ])
}

/** How near each op comes to the roof that it would hit first. */
function opPlot({ ops }: BenchReport): string {
  if (ops.length === 0) return ''
  const bars = ops.map(({ op, shape, dtype, share, bound }): Bar => {
    const value = `${(100 * share).toFixed(0)}%`
    return { label: `${op} ${shape} ${dtype}`, share, value, series: bound === 'memory' ? 0 : 1 }
  })
  const key =
    '<p>Share of the nearer roof at the median: <span style="color:var(--c0)">reading memory</span> ' +
    'or <span style="color:var(--c1)">multiplying and adding</span>. The line is the roof.</p>'
  return section('Ops against the roof', key + barPlot('Ops against the roof', bars))
}

/** For each model: a step over the context, and how the steps at the longest are distributed. */
function decodePlots({ decode }: BenchReport): string[] {
  const models = [...new Set(decode.map(({ model }) => model))]
  return models.map((model) => {
    const own = decode.filter((row) => row.model === model)
    const longest = Math.max(...own.map(({ context }) => context))
    const overContext = linePlot(
      `${model}: median decode step over the context`,
      [...groupByPolicy(own)].map(([label, rows]) => ({
        label,
        points: rows
          .map(({ context, ms }): [number, number] => [context, ms.median])
          .sort(([a], [b]) => a - b),
      })),
      { x: 'tokens of context', y: 'ms' },
    )
    const distribution = histogramPlot(
      `${model}: time from token to token after ${longest}`,
      own
        .filter(({ context }) => context === longest)
        .map(({ policy, histogram }) => ({ label: policy, ...histogram })),
      { x: `ms from token to token after ${longest} tokens of context`, y: '% of steps' },
    )
    return section(`Decoding: ${model}`, `${overContext}\n${distribution}`)
  })
}

function groupByPolicy(rows: readonly DecodeRow[]): Map<string, DecodeRow[]> {
  const groups = new Map<string, DecodeRow[]>()
  for (const row of rows) groups.set(row.policy, [...(groups.get(row.policy) ?? []), row])
  return groups
}
