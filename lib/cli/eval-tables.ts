import type { EvalReport } from '../eval/report.js'
import type { EvalPair, EvalRow } from '../eval/rows.js'
import {
  formatBytes,
  formatPercent,
  formatRatio,
  formatTitledTable,
  left,
  right,
  type TitledTable,
} from './table.js'

/** A report for people: a table for each kind of task, then what was told apart. */
export function formatEvalReport(report: EvalReport): string {
  return evalTables(report).map(formatTitledTable).join('\n')
}

/** How it was measured, as pairs of a name and a text. */
export function evalPairs(
  report: Pick<EvalReport, 'command' | 'model' | 'identity' | 'builds'>,
): [string, string][] {
  const { command, model, identity, builds } = report
  const { model: fingerprint, device, dtype, weights, seed } = identity
  const computed = weights === undefined ? dtype : `${dtype}, weights ${weights}`
  return [
    ['command', command],
    ['model', `${model} (${String(fingerprint).slice(0, 12)})`],
    ['computed', `${device}, ${computed}, greedy, seed ${seed}`],
    ['zipcache', builds.join(', ')],
    [
      'intervals',
      '95%: Wilson for hits, bootstrap for means; p: exact McNemar, or paired permutation',
    ],
    [
      'ratio',
      'bytes of a 16-bit cache / bytes that the allocator handed out, means over the questions',
    ],
    ['by formula', "the paper's count for one sequence: codes and 16-bit parameters alone"],
  ]
}

/** The tables that have rows. */
export function evalTables(report: EvalReport): TitledTable[] {
  const tasks = [...new Set(report.rows.map(({ task }) => task))]
  return tasks
    .flatMap((task) => {
      const rows = report.rows.filter((row) => row.task === task)
      return [
        rowTable(task, rows),
        pairTable(
          task,
          report.pairs.filter((pair) => pair.task === task),
        ),
      ]
    })
    .filter(({ rows }) => rows.length > 0)
}

/** What stands for a row's value: `97.0%`, or a perplexity. */
export function formatValue(row: Pick<EvalRow, 'measure'>, value: number): string {
  return row.measure === 'loss' ? value.toFixed(3) : formatPercent(value)
}

/** `91.5 - 99.0`. */
export function formatInterval(row: Pick<EvalRow, 'measure' | 'low' | 'high'>): string {
  const digits = row.measure === 'loss' ? 3 : 1
  return `${row.low.toFixed(digits)} - ${row.high.toFixed(digits)}`
}

function rowTable(task: string, rows: readonly EvalRow[]): TitledTable {
  const [first] = rows
  const facts = Object.keys(first?.facts ?? {})
  const values = Object.keys(first?.values ?? {})
  const measure = { hits: 'accuracy', score: 'score', loss: 'perplexity' }[first?.measure ?? 'hits']
  return {
    title: task,
    columns: [
      ...facts.map((name) => (typeof first?.facts[name] === 'number' ? right(name) : left(name))),
      ...[left('policy'), right('n'), right(measure), right('95%')],
      ...values.map(right),
      ...[right('ratio'), right('by formula'), right('bytes'), right('peak'), left('attention')],
    ],
    rows: rows.map((row) => [
      ...facts.map((name) => String(row.facts[name])),
      ...[row.policy, String(row.questions), formatValue(row, row.value), formatInterval(row)],
      ...values.map((name) => formatNumber(row.values[name]?.value ?? Number.NaN)),
      ...[formatRatio(row.ratio), row.paperRatio === null ? '-' : formatRatio(row.paperRatio)],
      ...[formatBytes(row.bytes), formatBytes(row.peakBytes), row.attention],
    ]),
  }
}

function pairTable(task: string, pairs: readonly EvalPair[]): TitledTable {
  const facts = Object.keys(pairs[0]?.facts ?? {})
  return {
    title: `${task}: pairs on the same questions`,
    columns: [
      ...facts.map((name) =>
        typeof pairs[0]?.facts[name] === 'number' ? right(name) : left(name),
      ),
      ...[left('a'), left('b'), right('n'), right('a better'), right('b better'), right('p')],
    ],
    rows: pairs.map((pair) => [
      ...facts.map((name) => String(pair.facts[name])),
      ...[pair.a, pair.b, String(pair.questions), String(pair.wins), String(pair.losses)],
      formatP(pair.p),
    ]),
  }
}

/** `0.031`, `<0.0001`. */
export function formatP(p: number): string {
  return p < 0.0001 ? '<0.0001' : p.toFixed(p < 0.01 ? 4 : 3)
}

/** Three digits that count. */
function formatNumber(value: number): string {
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)))
}
