import type { BenchReport, DecodeRow } from '../bench/report.js'
import { type BenchTable, benchTables, machinePairs } from './bench-tables.js'
import { type Bar, barPlot, escapeHtml, histogramPlot, linePlot } from './plots.js'

const kStyle = `
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --faint: #c9c9ce;
  --c0: #3b6fd4; --c1: #d9822b; --c2: #2e9e5b; --c3: #b3478f; --c4: #7a6ad8; --c5: #8a7a2f }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #18181b; --faint: #4a4a52;
  --c0: #7aa5ff; --c1: #f0a860; --c2: #62c98d; --c3: #e08ac3; --c4: #a99bff; --c5: #cdbb63 } }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 2em auto; padding: 0 1em }
svg { width: 100%; max-width: 760px; display: block } svg text { font-size: 11px; fill: var(--ink) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
.wide { overflow-x: auto } td, th { padding: 2px 10px; text-align: left; white-space: nowrap }
.right { text-align: right } thead { border-bottom: 1px solid var(--ink) }`

/**
 * A report as one page that needs nothing else: no script, no host, plots drawn in the page; every
 * number of a plot stands in a table, too.
 */
export function formatBenchPage(report: BenchReport): string {
  const facts = machinePairs(report).map(
    ([name, value]) => `<tr><th>${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`,
  )
  const plots = [opPlot(report), ...decodePlots(report)]
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>zipcache bench</title>
<style>${kStyle}
</style>
</head>
<body>
<h1>zipcache bench</h1>
<table>${facts.join('\n')}</table>
${plots.join('\n')}
${benchTables(report).map(formatTable).join('\n')}
</body>
</html>
`
}

function section(title: string, content: string): string {
  return `<section><h2>${escapeHtml(title)}</h2>\n${content}</section>`
}

function formatTable({ title, columns, rows }: BenchTable): string {
  const cells = (tag: 'td' | 'th', texts: readonly string[]) =>
    texts
      .map((text, c) => {
        const name = columns[c]?.align === 'right' ? ' class="right"' : ''
        return `<${tag}${name}>${escapeHtml(text)}</${tag}>`
      })
      .join('')
  const head = cells(
    'th',
    columns.map((column) => column.title),
  )
  const body = rows.map((row) => `<tr>${cells('td', row)}</tr>`)
  const table = `<table><thead><tr>${head}</tr></thead>\n<tbody>${body.join('\n')}</tbody></table>`
  return section(title, `<div class="wide">${table}</div>`)
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
