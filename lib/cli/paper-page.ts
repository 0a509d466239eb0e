/** `zipcache eval paper` as text, Markdown and a page. */

import { pairOf } from '../eval/front.js'
import { kFigure5, kFront, kPaperTables, type PaperTable } from '../eval/paper.js'
import type { PaperReport } from '../eval/paper-report.js'
import type { EvalRow } from '../eval/rows.js'
import { policyLabel } from '../policy/policy-label.js'
import { accuracyOverBytes, accuracyOverLines } from './eval-page.js'
import { evalPairs, formatInterval, formatP, formatValue } from './eval-tables.js'
import { formatPage, section, tableSection } from './page.js'
import { heatmap } from './plots.js'
import {
  formatBytes,
  formatMarkdownTable,
  formatPairs,
  formatPercent,
  formatRatio,
  formatTitledTable,
  left,
  right,
  type TitledTable,
} from './table.js'

const kNotes = [
  "Paper's ratio: by its formula at its own size (hd = 4096, batch 8, l = 840 or 4096), or quoted.",
  'By formula: the same count for this model and one sequence. Measured: every byte handed out.',
  'p: against the line marked with *, on the same questions.',
]

/** For a terminal. */
export function formatPaperReport(report: PaperReport): string {
  const tables = paperTables(report).map(formatTitledTable)
  return [formatPairs(paperPairs(report)), `${kNotes.join('\n')}\n`, ...tables].join('\n')
}

/** For a repository. */
export function formatPaperMarkdown(report: PaperReport): string {
  const facts = paperPairs(report).map(([name, value]) =>
    name === 'command' ? `\`\`\`sh\n${value}\n\`\`\`\n` : `- ${name}: ${value}`,
  )
  const tables = paperTables(report).map(
    (table) => `## ${table.title}\n\n${formatMarkdownTable(table)}`,
  )
  const notes = kNotes.map((note) => `- ${note}`)
  return `${[`# ${report.model}`, '', ...facts, ...notes, '', ...tables].join('\n')}`
}

/** One page that needs nothing else. */
export function formatPaperPage(report: PaperReport): string {
  const { lines, saliency } = report
  const plots = (['inside', 'after'] as const).map((ask) => {
    const title = `${lines} lines, asked ${ask}`
    return section(
      `Accuracy against the bytes of the cache: ${title}`,
      accuracyOverBytes(title, frontRows(report, ask)),
    )
  })
  const figure5 = section(
    'Figure 5: accuracy against the number of lines',
    accuracyOverLines('Figure 5', figure5Rows(report)),
  )
  const shares = section(
    'Share of salient tokens by position',
    heatmap(
      'Share of salient tokens by position',
      saliency.map(({ policy, shares }) => ({ label: policy, values: shares })),
      'position, in 20 parts of a prompt',
    ),
  )
  return formatPage('zipcache eval paper', paperPairs(report), [
    `<p>${kNotes.join('<br>')}</p>`,
    ...plots,
    figure5,
    ...(saliency.length > 0 ? [shares] : []),
    ...paperTables(report).map(tableSection),
  ])
}

function paperPairs(report: PaperReport): [string, string][] {
  return [...evalPairs(report), ['questions', `${report.questions} of each kind, or what n says`]]
}

function paperTables(report: PaperReport): TitledTable[] {
  const tables = [
    ...kPaperTables.map((table) => paperTable(table, report)),
    figure5Table(report),
    figure6Table(report),
    frontTable(report, 'inside'),
    frontTable(report, 'after'),
    saliencyTable(report),
  ]
  return tables.filter(({ rows }) => rows.length > 0)
}

function paperTable(table: PaperTable, report: PaperReport): TitledTable {
  const own = report.rows.filter(
    ({ task, facts }) =>
      task === report.tableTask &&
      (task === 'gsm8k' || (facts.lines === report.lines && facts.ask === 'inside')),
  )
  const find = (label: string) => own.find(({ policy }) => policy === label)
  const against = find(policyLabel(table.against))
  return {
    title: table.title,
    columns: [
      ...table.columns.map(left),
      ...[right("paper's ratio"), right('by formula'), right('measured'), right('bytes')],
      ...[
        right('peak'),
        right('n'),
        right('accuracy'),
        right('95%'),
        right('p'),
        left('attention'),
      ],
    ],
    rows: table.lines.flatMap(({ cells, policy, printedRatio }) => {
      const row = find(policyLabel(policy))
      if (row === undefined) return []
      return [
        [
          ...cells,
          ...[formatOptional(printedRatio), formatOptional(row.paperRatio), formatRatio(row.ratio)],
          ...[formatBytes(row.bytes), formatBytes(row.peakBytes), String(row.questions)],
          ...[formatValue(row, row.value), formatInterval(row)],
          ...[formatAgainst(row, against, report), row.attention],
        ],
      ]
    }),
  }
}

/** p, or a mark at the line itself. */
function formatAgainst(row: EvalRow, against: EvalRow | undefined, report: PaperReport): string {
  if (against === undefined) return '-'
  if (row === against) return '*'
  const pair = pairOf(row, against, report.pairs)
  return pair === undefined ? '-' : formatP(pair.p)
}

const formatOptional = (ratio: number | null) => (ratio === null ? '-' : formatRatio(ratio))

function figure5Rows({ rows }: PaperReport): EvalRow[] {
  const labels = kFigure5.map(policyLabel)
  return rows.filter(
    ({ task, facts, policy }) =>
      task === 'line-retrieval' && facts.ask === 'inside' && labels.includes(policy),
  )
}

function figure5Table(report: PaperReport): TitledTable {
  const rows = figure5Rows(report)
  const lines = [...new Set(rows.map(({ facts }) => facts.lines as number))].sort((a, b) => a - b)
  return {
    title: 'Figure 5: accuracy by the number of lines, asked inside',
    columns: [left('policy'), ...lines.map((n) => right(`${n} lines`))],
    rows: kFigure5.map(policyLabel).map((policy) => [
      policy,
      ...lines.map((n) => {
        const row = rows.find((own) => own.policy === policy && own.facts.lines === n)
        return row
          ? `${formatValue(row, row.value)} (${formatInterval(row)}; n ${row.questions})`
          : '-'
      }),
    ]),
  }
}

function figure6Table({ memory }: PaperReport): TitledTable {
  return {
    title: 'Figure 6: memory of one sequence after its prompt, and at most on the way',
    columns: [
      ...[left('policy'), right('tokens'), right('cache'), right('ratio'), right('peak')],
      right('peak against MiKV'),
    ],
    rows: memory.map(({ policy, length, resident, ratio, peak }) => {
      const mikv = memory.find((row) => row.policy === 'mikv' && row.length === length)
      const change = mikv === undefined ? '-' : formatPercent(100 * (peak / mikv.peak - 1))
      return [
        ...[policy, String(length), formatBytes(resident), formatRatio(ratio), formatBytes(peak)],
        change,
      ]
    }),
  }
}

/** Smallest caches first. */
function frontRows({ rows, lines }: PaperReport, ask: 'inside' | 'after'): EvalRow[] {
  const labels = new Set(kFront.map(policyLabel))
  return rows
    .filter(
      ({ task, facts, policy }) =>
        task === 'line-retrieval' &&
        facts.lines === lines &&
        facts.ask === ask &&
        labels.has(policy),
    )
    .sort((a, b) => a.bytes - b.bytes)
}

function frontTable(report: PaperReport, ask: 'inside' | 'after'): TitledTable {
  const rows = frontRows(report, ask)
  const zipcache = rows.find(({ policy }) => policy === 'zipcache')
  return {
    title: `Every method: ${report.lines} lines, asked ${ask}, smallest caches first`,
    columns: [
      ...[
        left('policy'),
        right('ratio'),
        right('bytes'),
        right('peak'),
        right('n'),
        right('accuracy'),
      ],
      ...[
        right('95%'),
        right('p (zipcache *)'),
        left('attention'),
        left('beaten at no more bytes by'),
      ],
    ],
    rows: rows.map((row) => [
      ...[row.policy, formatRatio(row.ratio), formatBytes(row.bytes), formatBytes(row.peakBytes)],
      ...[String(row.questions), formatValue(row, row.value), formatInterval(row)],
      ...[formatAgainst(row, zipcache, report), row.attention],
      report.front
        .find((own) => own.ask === ask && own.policy === row.policy)
        ?.beatenBy.join('; ') || '-',
    ]),
  }
}

function saliencyTable({ saliency }: PaperReport): TitledTable {
  return {
    title: 'Share of salient tokens by position, in five parts of a prompt, and bias',
    columns: [
      left('policy'),
      ...['0-20%', '20-40%', '40-60%', '60-80%', '80-100%'].map(right),
      ...[right('position'), right('frequency')],
    ],
    rows: saliency.map(({ policy, shares, position, frequency }) => [
      policy,
      ...Array.from({ length: 5 }, (_, part) => {
        const own = shares.slice(4 * part, 4 * part + 4)
        return formatPercent((100 * own.reduce((sum, share) => sum + share, 0)) / own.length)
      }),
      ...[position.toFixed(3), frequency.toFixed(3)],
    ]),
  }
}
