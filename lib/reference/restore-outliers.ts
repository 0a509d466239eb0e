/**
 * Puts single values over a matrix (rows, channels): out[places[line, i] of the line] = values[line,
 * i], a line being a channel, or a row. Returns a copy with them in it.
 *
 * Source: GEAR (arXiv 2403.05527) §3, the sparse matrix S.
 */
export function restoreOutliers(options: {
  /** (rows, channels) */
  x: ArrayLike<number>
  /** Elements of a row. */
  channels: number
  /** (n_lines, perLine) */
  values: ArrayLike<number>
  /** (n_lines, perLine): rows of the channel, or channels of the row */
  places: ArrayLike<number>
  /** Values of a line. */
  perLine: number
  /** What a line is: a channel, or a row. */
  scheme: 'channelwise' | 'tokenwise'
}): Float64Array {
  const { channels, values, places, perLine, scheme } = options
  const out = Float64Array.from(options.x)
  for (let i = 0; i < places.length; i++) {
    const line = Math.floor(i / perLine)
    const [row, channel] = scheme === 'channelwise' ? [places[i], line] : [line, places[i]]
    out[row * channels + channel] = values[i]
  }
  return out
}
