/** A column of `formatTable`. */
export interface Column {
  readonly title: string
  /** Numbers stand to the right, words to the left. */
  readonly align: 'left' | 'right'
}

/** A column of numbers. */
export const right = (title: string): Column => ({ title, align: 'right' })

/** A column of words. */
export const left = (title: string): Column => ({ title, align: 'left' })

/** A table of a report, for a terminal, a page or a Markdown file. */
export interface TitledTable {
  readonly title: string
  readonly columns: readonly Column[]
  readonly rows: readonly (readonly string[])[]
}

/** A table in Markdown, without its title. */
export function formatMarkdownTable({ columns, rows }: TitledTable): string {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
  const titles = line(columns.map(({ title }) => title))
  const rule = line(columns.map(({ align }) => (align === 'right' ? '---:' : '---')))
  return `${[titles, rule, ...rows.map(line)].join('\n')}\n`
}

/** Lines of a table: titles, a rule, rows; columns two spaces apart, no space at a line's end. */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  const widths = columns.map(({ title }, c) =>
    Math.max(title.length, ...rows.map((row) => row[c]?.length ?? 0)),
  )
  const line = (cells: readonly string[]) =>
    columns
      .map(({ align }, c) => {
        const cell = cells[c] ?? ''
        const width = widths[c] ?? 0
        return align === 'left' ? cell.padEnd(width) : cell.padStart(width)
      })
      .join('  ')
      .trimEnd()
  const titles = columns.map(({ title }) => title)
  const rule = widths.map((width) => '-'.repeat(width))
  return `${[titles, rule, ...rows].map(line).join('\n')}\n`
}

/** A table below its title, for a terminal. */
export function formatTitledTable({ title, columns, rows }: TitledTable): string {
  return `${title}\n\n${formatTable(columns, rows)}`
}

/** Pairs as aligned lines, `name  value`. */
export function formatPairs(pairs: readonly (readonly [string, string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length))
  return `${pairs.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')}\n`
}

/** `1234567` as `1.18 MiB`: three digits that count, binary units. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  if (unit === 0) return `${Math.round(value)} B`
  const decimals = value < 10 ? 2 : value < 100 ? 1 : 0
  return `${value.toFixed(decimals)} ${units[unit]}`
}

/** `5.08` as `5.08x`. */
export function formatRatio(ratio: number): string {
  return `${ratio.toFixed(2)}x`
}

/** Milliseconds without their unit, three digits that count: `0.812`, `12.3`, `1234`. */
export function formatMs(milliseconds: number): string {
  const decimals = milliseconds < 1 ? 3 : milliseconds < 10 ? 2 : milliseconds < 100 ? 1 : 0
  return milliseconds.toFixed(decimals)
}

/** `99.0` percent. */
export function formatPercent(percent: number): string {
  return `${percent.toFixed(1)}%`
}
