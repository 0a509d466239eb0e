/** What a comparison says when it fails, and how strict it is. */
export interface Comparison {
  /** what is compared, e.g. `out` */
  name: string
  shape: readonly number[]
  /** largest max |difference| / max |reference| of a row */
  tolerance: number
  /** seed of the inputs, printed */
  seed?: number
  /** elements that share one magnitude; default the last extent of the shape */
  rowLength?: number
  /**
   * rows whose reference is smaller than this are measured against it (default 0: a zero row must
   * be zero)
   */
  floor?: number
}

/** Where two arrays differ most. */
export interface Worst {
  /** max |difference| / max |reference| of the worst row; infinite where only one side is finite */
  relative: number
  /** flat index of the worst element; -1 for empty arrays */
  index: number
}

/**
 * The largest relative difference over all rows. Values that are not finite must be identical (NaN
 * to NaN).
 */
export function worstDifference(
  actual: ArrayLike<number>,
  reference: ArrayLike<number>,
  rowLength: number,
  floor = 0,
): Worst {
  let worst: Worst = { relative: 0, index: -1 }
  for (let row = 0; row < reference.length; row += rowLength) {
    const end = Math.min(row + rowLength, reference.length)
    let magnitude = floor
    for (let i = row; i < end; i++) {
      if (Number.isFinite(reference[i])) magnitude = Math.max(magnitude, Math.abs(reference[i]))
    }
    for (let i = row; i < end; i++) {
      const relative = relativeDifference(actual[i], reference[i], magnitude)
      if (worst.index === -1 || relative > worst.relative) worst = { relative, index: i }
    }
  }
  return worst
}

function relativeDifference(actual: number, reference: number, magnitude: number): number {
  if (actual === reference || (Number.isNaN(actual) && Number.isNaN(reference))) return 0
  const relative = Math.abs(actual - reference) / magnitude
  return Number.isNaN(relative) ? Number.POSITIVE_INFINITY : relative
}

/**
 * Throws, naming shape, seed, worst index and both values, unless every row is within the
 * tolerance.
 */
export function expectClose(
  actual: ArrayLike<number>,
  reference: ArrayLike<number>,
  comparison: Comparison,
): void {
  const { name, shape, tolerance, seed, floor } = comparison
  if (actual.length !== reference.length) {
    throw new Error(`${name}: has ${actual.length} elements, expected ${reference.length}`)
  }
  const rowLength = Math.max(1, comparison.rowLength ?? shape.at(-1) ?? 1)
  const { relative, index } = worstDifference(actual, reference, rowLength, floor)
  if (relative <= tolerance) return
  throw new Error(
    [
      `${name}: differs by ${relative.toExponential(3)} of its row, allowed ${tolerance}`,
      `  shape     [${shape.join(', ')}]${seed === undefined ? '' : `, seed ${seed}`}`,
      `  worst at  [${unravel(index, shape).join(', ')}] (flat ${index})`,
      `  actual    ${actual[index]}`,
      `  reference ${reference[index]}`,
    ].join('\n'),
  )
}

/**
 * Throws, naming shape, seed, first differing index, both values and how many differ, unless all
 * are equal.
 */
export function expectIdentical(
  actual: ArrayLike<number>,
  reference: ArrayLike<number>,
  comparison: Pick<Comparison, 'name' | 'shape' | 'seed'>,
): void {
  const { name, shape, seed } = comparison
  if (actual.length !== reference.length) {
    throw new Error(`${name}: has ${actual.length} elements, expected ${reference.length}`)
  }
  const differing = []
  for (let i = 0; i < reference.length; i++) {
    if (!Object.is(actual[i], reference[i])) differing.push(i)
  }
  if (differing.length === 0) return
  const [first] = differing
  throw new Error(
    [
      `${name}: ${differing.length} of ${reference.length} elements differ`,
      `  shape     [${shape.join(', ')}]${seed === undefined ? '' : `, seed ${seed}`}`,
      `  first at  [${unravel(first, shape).join(', ')}] (flat ${first})`,
      `  actual    ${actual[first]}`,
      `  reference ${reference[first]}`,
    ].join('\n'),
  )
}

/** A flat index as one index per extent. */
function unravel(index: number, shape: readonly number[]): number[] {
  const indices: number[] = []
  let rest = index
  for (const extent of shape.toReversed()) {
    indices.unshift(rest % extent)
    rest = Math.floor(rest / extent)
  }
  return indices
}
