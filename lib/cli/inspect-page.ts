import type { SaliencyReport, SaliencyShares } from '../eval/inspect.js'
import { formatPage, section, tableSection } from './page.js'
import { escapeHtml, type HeatRow, heatmap } from './plots.js'
import { formatPercent, left, right, type TitledTable } from './table.js'

/** Tokens of the prompt that the page shows one by one. */
const kMostTokens = 20_000

/** A report as one page: heatmaps over positions and classes, and the prompt itself. */
export function formatInspectPage(report: SaliencyReport): string {
  const { layers } = report
  const byPosition = layers.flatMap((heads, layer) =>
    heads.map((shares, head): HeatRow => {
      const values = shares.byPosition.map((share) => share ?? 0)
      return { label: `layer ${layer}.${head}`, values }
    }),
  )
  return formatPage('zipcache inspect', inspectPairs(report), [
    section(
      'Share of salient tokens by position',
      `<p>A row for each layer and KV head; the fuller a field, the larger the share.</p>${heatmap(
        'Share of salient tokens by position',
        byPosition,
        `position, in ${report.all.byPosition.length} parts of ${report.compressed} tokens`,
      )}`,
    ),
    ...inspectTables(report).map(tableSection),
    section('The prompt', promptOf(report)),
  ])
}

/** What was looked at, as pairs of a name and a text. */
export function inspectPairs(report: SaliencyReport): [string, string][] {
  const { policy, tokens, compressed, all } = report
  return [
    ['policy', policy],
    ['tokens', `${tokens}, of which ${compressed} are compressed`],
    ['salient', formatPercent(100 * all.salient)],
    [
      'bias',
      'P(a salient token has more of it) - P(less): 0 is none, above 0 for late or frequent',
    ],
  ]
}

/** Shares of salient tokens, over all layers and KV heads and in each. */
export function inspectTables(report: SaliencyReport): TitledTable[] {
  const { all, layers, tokenClasses, contentClasses } = report
  const heads = layers.flatMap((own, layer) =>
    own.map((shares, head): [string, SaliencyShares] => [`${layer}.${head}`, shares]),
  )
  const everyone: [string, SaliencyShares][] = [['all', all], ...heads]
  const tables = [
    classTable('Share of salient tokens by kind of token', everyone, tokenClasses, 'byTokenClass'),
    classTable('Share of salient tokens by content', everyone, contentClasses, 'byContentClass'),
    {
      title: 'Bias of being salient',
      columns: [left('layer.head'), right('salient'), right('position'), right('frequency')],
      rows: everyone.map(([name, { salient, bias }]) => [
        ...[name, formatPercent(100 * salient)],
        ...[bias.position.toFixed(3), bias.frequency.toFixed(3)],
      ]),
    },
  ]
  return tables.filter(({ columns }) => columns.length > 1)
}

function classTable(
  title: string,
  rows: readonly (readonly [string, SaliencyShares])[],
  counts: Readonly<Record<string, number>>,
  key: 'byTokenClass' | 'byContentClass',
): TitledTable {
  const names = Object.keys(counts)
  return {
    title,
    columns: [left('layer.head'), ...names.map((name) => right(`${name} (${counts[name]})`))],
    rows: rows.map(([row, shares]) => [
      row,
      ...names.map((name) => {
        const share = shares[key][name]
        return share === undefined ? '-' : formatPercent(100 * share)
      }),
    ]),
  }
}

function promptOf({ text, compressed }: SaliencyReport): string {
  const shown = text.slice(0, kMostTokens).map(({ text: piece, share }, i) => {
    const words = escapeHtml(piece)
    if (i >= compressed) return words
    const paint = `background:color-mix(in srgb,var(--c0) ${Math.round(60 * share)}%,transparent)`
    return `<span style="${paint}" title="${formatPercent(100 * share)}">${words}</span>`
  })
  const rest = text.length > kMostTokens ? `<p>${text.length - kMostTokens} more tokens.</p>` : ''
  const legend = '<p>The deeper a token is coloured, the more layers and KV heads keep it.</p>'
  return `${legend}<p style="white-space:pre-wrap">${shown.join('')}</p>${rest}`
}
