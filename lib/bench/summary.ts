/** What some measurements of one thing say together. Of times: all in one unit. */
export interface Summary {
  /** How many there are, at least one. */
  readonly samples: number
  readonly min: number
  readonly p10: number
  readonly median: number
  readonly p90: number
  readonly p99: number
  readonly max: number
}

export function summarize(values: readonly number[]): Summary {
  const sorted = [...values].sort((a, b) => a - b)
  return {
    samples: sorted.length,
    min: quantile(sorted, 0),
    p10: quantile(sorted, 0.1),
    median: quantile(sorted, 0.5),
    p90: quantile(sorted, 0.9),
    p99: quantile(sorted, 0.99),
    max: quantile(sorted, 1),
  }
}

/**
 * The q-quantile of ascending values, at least one: linear between the two neighbours of
 * (n - 1) q, so that the median of an even number is the mean of the middle two.
 */
export function quantile(sorted: readonly number[], q: number): number {
  const place = (sorted.length - 1) * q
  const low = sorted[Math.floor(place)] as number
  const high = sorted[Math.ceil(place)] as number
  return low + (high - low) * (place - Math.floor(place))
}

/** How many values lie between edges, `counts[i]` of them in [edges[i], edges[i + 1]). */
export interface Histogram {
  /** One more than counts; the last bin holds its upper edge too. */
  readonly edges: readonly number[]
  readonly counts: readonly number[]
}

/**
 * Counts positive values in bins of equal ratio, so that the few slow steps of a stream do not
 * squeeze the others into one bin.
 */
export function histogram(values: readonly number[], bins: number): Histogram {
  const low = Math.min(...values)
  const high = Math.max(...values)
  const ratio = high > low ? Math.log(high / low) : 1
  const counts = new Array<number>(bins).fill(0)
  for (const value of values) {
    const bin = Math.min(bins - 1, Math.floor((Math.log(value / low) / ratio) * bins))
    counts[bin] = (counts[bin] as number) + 1
  }
  const edges = Array.from({ length: bins + 1 }, (_, i) => low * Math.exp((ratio * i) / bins))
  return { edges, counts }
}
