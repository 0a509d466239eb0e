/** Plots as inline SVG. Colours are CSS variables of the page: `--ink`, `--faint`, `--c0` to `--c9`. */

const kWidth = 760
const kColors = 10

/** Text inside of an element or of an attribute. */
export function escapeHtml(text: string): string {
  const entities: Record<string, string> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
    "'": '&#39;',
  }
  return text.replace(/[&<>"']/g, (character) => entities[character] as string)
}

/** The colour of the i-th series. */
export function color(series: number): string {
  return `var(--c${series % kColors})`
}

/** One bar of `barPlot`. */
export interface Bar {
  readonly label: string
  /** 1 is the full width. */
  readonly share: number
  readonly value: string
  readonly series: number
}

/** Horizontal bars; a line stands at 100%, and what goes beyond is cut off at 125%. */
export function barPlot(title: string, bars: readonly Bar[]): string {
  const [labels, row, top, values] = [345, 18, 8, 120]
  const full = (kWidth - labels - values) / 1.25
  const height = top + bars.length * row + 8
  const rows = bars.map(({ label, share, value, series }, i) => {
    const y = top + i * row
    const width = full * Math.min(share, 1.25)
    return (
      text(labels - 8, y + 12, label, 'end') +
      `<rect x="${labels}" y="${y + 2}" width="${fix(width)}" height="${row - 5}" fill="${color(series)}"/>` +
      text(labels + width + 6, y + 12, value)
    )
  })
  const roof = line(labels + full, top, labels + full, height - 8)
  return svg(title, height, rows.join('') + roof)
}

/** Points of one line of `linePlot`, ascending by x; all numbers above 0. */
export interface Series {
  readonly label: string
  readonly points: readonly (readonly [x: number, y: number])[]
}

/** What the axes mean; `most`: where y ends, instead of above the highest point. */
export interface Units {
  readonly x: string
  readonly y: string
  readonly most?: number
}

/** Lines over a logarithmic x axis; y begins at 0. */
export function linePlot(title: string, series: readonly Series[], units: Units): string {
  const xs = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort(ascending)
  const highest = Math.max(...series.flatMap(({ points }) => points.map(([, y]) => y)))
  const most = units.most ?? niceAbove(highest)
  const area = {
    left: 60,
    right: kWidth - 190,
    top: 16,
    bottom: Math.max(250, 30 + 20 * series.length),
  }
  const [low, high] = [Math.log(xs[0] as number), Math.log(xs.at(-1) as number)]
  const toX = (x: number) =>
    high > low
      ? area.left + ((Math.log(x) - low) / (high - low)) * (area.right - area.left)
      : (area.left + area.right) / 2
  const toY = (y: number) => area.bottom - (y / most) * (area.bottom - area.top)
  const lines = series.map(({ points }, s) => {
    const at = points.map(([x, y]) => `${fix(toX(x))},${fix(toY(y))}`)
    const dots = points.map(
      ([x, y]) => `<circle cx="${fix(toX(x))}" cy="${fix(toY(y))}" r="3.5" fill="${color(s)}"/>`,
    )
    return `<polyline points="${at.join(' ')}" fill="none" stroke="${color(s)}" stroke-width="2"/>${dots.join('')}`
  })
  const ticks = xs.map((x) => text(toX(x), area.bottom + 18, String(x), 'middle'))
  const axis = text((area.left + area.right) / 2, area.bottom + 38, units.x, 'middle')
  const content = [yGrid(area, most, units.y), ...ticks, axis, ...lines, legend(series, area.right)]
  return svg(title, area.bottom + 46, content.join(''))
}

/** A point of `scatterPlot`, with the interval of its y. */
export interface ScatterPoint {
  readonly label: string
  readonly x: number
  readonly y: number
  readonly low: number
  readonly high: number
  readonly series: number
}

/** Numbered points with the intervals of y over an x axis that begins at 0; the list says who is who. */
export function scatterPlot(title: string, points: readonly ScatterPoint[], units: Units): string {
  const bottom = Math.max(300, 40 + 16 * points.length)
  const area = { left: 60, right: kWidth - 250, top: 16, bottom }
  const mostX = niceAbove(Math.max(...points.map(({ x }) => x)))
  const mostY = units.most ?? niceAbove(Math.max(...points.map(({ high }) => high)))
  const toX = (x: number) => area.left + (x / mostX) * (area.right - area.left)
  const toY = (y: number) => area.bottom - (Math.min(y, mostY) / mostY) * (area.bottom - area.top)
  const intervals = points.map(({ x, low, high, series }) => {
    const at = fix(toX(x))
    return `<line x1="${at}" y1="${fix(toY(low))}" x2="${at}" y2="${fix(toY(high))}" stroke="${color(series)}"/>`
  })
  const dots = points.map(({ label, x, y, series }, i) => {
    const center = `cx="${fix(toX(x))}" cy="${fix(toY(y))}"`
    const dot = `<circle ${center} r="7" fill="var(--paper)" stroke="${color(series)}" stroke-width="2"/>`
    const what = `<title>${escapeHtml(`${label}: ${fix(x)} ${units.x}, ${fix(y)} ${units.y}`)}</title>`
    return `<g>${what}${dot}${text(toX(x), toY(y) + 4, String(i + 1), 'middle')}</g>`
  })
  const list = points.map(({ label, series }, i) => {
    const y = 24 + 16 * i
    const mark = `<rect x="${area.right + 14}" y="${y - 9}" width="10" height="10" fill="${color(series)}"/>`
    return mark + text(area.right + 30, y, `${i + 1} ${label}`)
  })
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) =>
    text(toX(part * mostX), area.bottom + 18, fix(part * mostX), 'middle'),
  )
  const axis = text((area.left + area.right) / 2, area.bottom + 38, units.x, 'middle')
  const content = [yGrid(area, mostY, units.y), ...ticks, axis, ...intervals, ...dots, ...list]
  return svg(title, area.bottom + 46, content.join(''))
}

/** A row of `heatmap`: shares of [0, 1]. */
export interface HeatRow {
  readonly label: string
  readonly values: readonly number[]
}

/** Rows of shares as fields, the fuller the darker. */
export function heatmap(title: string, rows: readonly HeatRow[], xUnit: string): string {
  const longest = Math.max(...rows.map(({ label }) => label.length))
  const [left, top, row] = [20 + 6 * longest, 8, 16] // 6: of a letter of 11 pixels
  const columns = Math.max(...rows.map(({ values }) => values.length))
  const width = (kWidth - left - 20) / columns
  const fields = rows.map(({ label, values }, r) => {
    const y = top + r * row
    const own = values.map((value, c) => {
      const what = `<title>${escapeHtml(`${label}, ${c + 1} of ${columns}: ${fix(100 * value)}%`)}</title>`
      const place = `x="${fix(left + c * width)}" y="${y}" width="${fix(width)}" height="${row - 2}"`
      return `<rect ${place} fill="var(--c0)" fill-opacity="${fix(Math.min(1, value))}">${what}</rect>`
    })
    return text(left - 8, y + 11, label, 'end') + own.join('')
  })
  const bottom = top + rows.length * row
  const frame = `<rect x="${left}" y="${top}" width="${kWidth - left - 20}" height="${bottom - top}" fill="none" stroke="var(--faint)"/>`
  const axis = text((left + kWidth - 20) / 2, bottom + 16, xUnit, 'middle')
  return svg(title, bottom + 24, fields.join('') + frame + axis)
}

/** How many values lie in [edges[i], edges[i + 1]). */
export interface Counts {
  readonly label: string
  readonly edges: readonly number[]
  readonly counts: readonly number[]
}

/** Histograms as steps over one logarithmic x axis; heights are shares of a series' values. */
export function histogramPlot(
  title: string,
  series: readonly Counts[],
  units: { readonly x: string; readonly y: string },
): string {
  const area = { left: 60, right: kWidth - 150, top: 16, bottom: 220 }
  const edges = series.flatMap((one) => one.edges)
  const [low, high] = [Math.log(Math.min(...edges)), Math.log(Math.max(...edges))]
  const toX = (x: number) =>
    area.left + ((Math.log(x) - low) / (high - low)) * (area.right - area.left)
  const sharesOf = ({ counts }: Counts) => {
    const all = counts.reduce((sum, count) => sum + count, 0)
    return counts.map((count) => (100 * count) / all)
  }
  const most = niceAbove(Math.max(...series.flatMap(sharesOf)))
  const toY = (share: number) => area.bottom - (share / most) * (area.bottom - area.top)
  const steps = series.map((one, s) => {
    const path = sharesOf(one).map((share, i) => {
      const x = fix(toX(one.edges[i] as number))
      return `${i === 0 ? `M${x},${area.bottom}` : `H${x}`}V${fix(toY(share))}`
    })
    const end = `H${fix(toX(one.edges.at(-1) as number))}V${area.bottom}`
    return `<path d="${path.join('')}${end}" fill="${color(s)}" fill-opacity="0.12" stroke="${color(s)}" stroke-width="1.5"/>`
  })
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const value = Math.exp(low + part * (high - low))
    return text(toX(value), area.bottom + 18, value.toPrecision(3), 'middle')
  })
  const axis = text((area.left + area.right) / 2, area.bottom + 38, units.x, 'middle')
  const content = [yGrid(area, most, units.y), ...ticks, axis, ...steps, legend(series, area.right)]
  return svg(title, area.bottom + 46, content.join(''))
}

interface Area {
  readonly left: number
  readonly right: number
  readonly top: number
  readonly bottom: number
}

function yGrid({ left, right, top, bottom }: Area, most: number, unit: string): string {
  const lines = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const y = bottom - part * (bottom - top)
    return line(left, y, right, y) + text(left - 8, y + 4, fix(part * most), 'end')
  })
  return lines.join('') + text(left, top - 5, unit)
}

function legend(series: readonly { readonly label: string }[], right: number): string {
  return series
    .map(({ label }, s) => {
      const y = 24 + 20 * s
      const mark = `<rect x="${right + 16}" y="${y - 9}" width="10" height="10" fill="${color(s)}"/>`
      return mark + text(right + 32, y, label)
    })
    .join('')
}

/** 1, 2, 4 or 8 times a power of ten, not below a number above 0: a quarter of it is round, too. */
function niceAbove(value: number): number {
  const unit = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 4, 8].find((factor) => factor * unit >= value) ?? 10) * unit
}

function svg(title: string, height: number, content: string): string {
  const label = escapeHtml(title)
  return `<svg viewBox="0 0 ${kWidth} ${height}" role="img" aria-label="${label}"><title>${label}</title>${content}</svg>`
}

function text(x: number, y: number, content: string, anchor = 'start'): string {
  return `<text x="${fix(x)}" y="${fix(y)}" text-anchor="${anchor}">${escapeHtml(content)}</text>`
}

function line(x1: number, y1: number, x2: number, y2: number): string {
  const ends = `x1="${fix(x1)}" y1="${fix(y1)}" x2="${fix(x2)}" y2="${fix(y2)}"`
  return `<line ${ends} stroke="var(--faint)"/>`
}

const ascending = (a: number, b: number) => a - b

/** Two decimals at most. */
function fix(value: number): string {
  return String(Math.round(100 * value) / 100)
}
