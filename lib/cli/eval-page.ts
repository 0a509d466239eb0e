import type { EvalReport } from '../eval/report.js'
import type { EvalRow } from '../eval/rows.js'
import { evalPairs, evalTables } from './eval-tables.js'
import { formatPage, section, tableSection } from './page.js'
import { linePlot, type ScatterPoint, scatterPlot } from './plots.js'

/**
 * A report as one page that needs nothing else. Every number of a plot stands in a table, too.
 */
export function formatEvalPage(report: EvalReport): string {
  return formatPage('zipcache eval', evalPairs(report), [
    ...plotSections(report.rows),
    ...evalTables(report).map(tableSection),
  ])
}

/** For each task, how well policies do against what their caches take, and against the lines. */
function plotSections(rows: readonly EvalRow[]): string[] {
  const cells = groupBy(rows, ({ task, facts }) => cellTitle(task, facts))
  const scatters = [...cells]
    .filter(([, own]) => own.length > 1)
    .map(([title, own]) => section(`Against bytes: ${title}`, accuracyOverBytes(title, own)))
  const groups = groupBy(
    rows.filter(({ facts }) => typeof facts.lines === 'number'),
    ({ task, facts }) => cellTitle(task, without(facts, 'lines')),
  )
  const overLines = [...groups]
    .filter(([, own]) => new Set(own.map(({ facts }) => facts.lines)).size > 1)
    .map(([title, own]) => section(`Against the lines: ${title}`, accuracyOverLines(title, own)))
  return [...scatters, ...overLines]
}

/** `line-retrieval, lines 200, ask inside`. */
function cellTitle(task: string, facts: EvalRow['facts']): string {
  return [task, ...Object.entries(facts).map(([name, value]) => `${name} ${value}`)].join(', ')
}

/** Points of all policies: what the cache takes in KiB, and the value with its interval. */
export function accuracyOverBytes(title: string, rows: readonly EvalRow[]): string {
  const families = [...new Set(rows.map(familyOf))]
  const points = rows.map((row): ScatterPoint => {
    const { policy, bytes, value, low, high } = row
    return {
      label: policy,
      x: bytes / 1024,
      y: value,
      low,
      high,
      series: families.indexOf(familyOf(row)),
    }
  })
  const isPercent = rows.every(({ measure }) => measure !== 'loss')
  const units = { x: 'KiB of cache', y: isPercent ? '%' : 'perplexity' }
  return scatterPlot(title, points, isPercent ? { ...units, most: 100 } : units)
}

/** A line for each policy. */
export function accuracyOverLines(title: string, rows: readonly EvalRow[]): string {
  const series = [...groupBy(rows, ({ policy }) => policy)].map(([label, own]) => ({
    label,
    points: own
      .map((row): [number, number] => [row.facts.lines as number, row.value])
      .sort(([a], [b]) => a - b),
  }))
  return linePlot(title, series, { x: 'lines', y: '%', most: 100 })
}

/** A policy whatever its options: they share a colour. */
const familyOf = ({ policy }: EvalRow) => (policy.split(' ')[0] as string).replace(/\d+$/, '')

function without(facts: EvalRow['facts'], name: string): EvalRow['facts'] {
  return Object.fromEntries(Object.entries(facts).filter(([key]) => key !== name))
}

function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>()
  for (const item of items) {
    const key = keyOf(item)
    groups.set(key, [...(groups.get(key) ?? []), item])
  }
  return groups
}
