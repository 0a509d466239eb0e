/** The outliers of a matrix, as `restoreOutliers` takes them. */
export interface Outliers {
  /** (n_lines, perLine) */
  readonly values: Float32Array
  /** (n_lines, perLine, 2): places in a line, the low byte first. */
  readonly places: Uint8Array
}

/** How many of a line of `length` are outliers, as many at either end. */
export function outliersPerLine(share: number, length: number): number {
  return 2 * Math.min(Math.round((share / 2) * length), length >> 1)
}

/**
 * Takes the smallest and the largest elements out of every line of a matrix, and puts the line's
 * mean in their place. A line is a channel of at most 65,536 rows, or a row.
 *
 * - `x` (rows, channels): changed
 *
 * Source: GEAR (arXiv 2403.05527) §3; the authors' code fills by the mean, too.
 */
export function takeOutliers(
  x: Float32Array,
  channels: number,
  scheme: 'channelwise' | 'tokenwise',
  share: number,
): Outliers {
  const rows = x.length / channels
  const [nLines, length] = scheme === 'channelwise' ? [channels, rows] : [rows, channels]
  const [lineStep, step] = scheme === 'channelwise' ? [1, channels] : [channels, 1]
  const perLine = outliersPerLine(share, length)
  const values = new Float32Array(nLines * perLine)
  const places = new Uint8Array(nLines * perLine * 2)
  const line = new Float32Array(length)
  for (let index = 0; index < nLines; index++) {
    let sum = 0
    for (let i = 0; i < length; i++) {
      const value = x[index * lineStep + i * step] as number
      line[i] = Number.isNaN(value) ? Number.POSITIVE_INFINITY : value
      sum += value
    }
    let at = index * perLine
    for (const place of extremes(line, perLine / 2)) {
      values[at] = x[index * lineStep + place * step] as number
      places[2 * at] = place & 255
      places[2 * at + 1] = place >> 8
      x[index * lineStep + place * step] = sum / length
      at++
    }
  }
  return { values, places }
}

/** Where the `count` smallest and the `count` largest elements are; of equal ones, the first. */
function extremes(line: Float32Array, count: number): number[] {
  if (count === 0) return []
  const sorted = line.slice().sort()
  const [low, high] = [sorted[count - 1] as number, sorted[line.length - count] as number]
  const places: number[] = []
  const isTaken = new Uint8Array(line.length)
  /** Takes up to `left` elements, and returns how many are still to be taken. */
  const take = (left: number, isWanted: (value: number) => boolean) => {
    for (let i = 0; i < line.length && left > 0; i++) {
      if (isTaken[i] || !isWanted(line[i] as number)) continue
      isTaken[i] = 1
      places.push(i)
      left--
    }
    return left
  }
  take(
    take(count, (value) => value < low),
    (value) => value === low,
  )
  take(
    take(count, (value) => value > high),
    (value) => value === high,
  )
  return places
}
