/** The value below which the share `q` of some numbers lies, interpolated; `values` not empty. */
export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b)
  const at = q * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.ceil(at)
  return sorted[below] + (at - below) * (sorted[above] - sorted[below])
}

export function median(values) {
  return quantile(values, 0.5)
}

/** Median, range and count. */
export function spread(values) {
  return {
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    n: values.length,
  }
}
