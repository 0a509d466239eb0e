import { toSeed, uniform } from '../random.js'

/** A matrix as left right^T. */
export interface LowRank {
  /** (rows, rank), its columns orthonormal. */
  readonly left: Float32Array
  /** (columns, rank). */
  readonly right: Float32Array
}

const ITERATIONS = 3
const SEED = toSeed(0)

/**
 * The best approximation of a matrix by one of rank `rank`, nearly: three power iterations from the
 * same start each time.
 *
 * - `at(row, column)`: the matrix
 *
 * A departure: columns are made orthonormal in every iteration, where the authors do it in the last
 * alone; it costs nothing and keeps them from all turning to the first direction.
 *
 * Source: GEAR (arXiv 2403.05527) Alg. 2, after Vogels et al., PowerSGD (arXiv 1905.13727).
 */
export function lowRank(
  rows: number,
  columns: number,
  rank: number,
  at: (row: number, column: number) => number,
): LowRank {
  const right = Float32Array.from({ length: columns * rank }, (_, i) => uniform(SEED, i) - 0.5)
  const left = new Float32Array(rows * rank)
  for (let iteration = 0; iteration < ITERATIONS; iteration++) {
    orthonormalize(right, columns, rank)
    multiply(rows, columns, rank, at, right, left)
    orthonormalize(left, rows, rank)
    multiply(columns, rows, rank, (column, row) => at(row, column), left, right)
  }
  return { left, right }
}

/** `out` (rows, rank) = the matrix `at` (rows, columns) times `x` (columns, rank). */
function multiply(
  rows: number,
  columns: number,
  rank: number,
  at: (row: number, column: number) => number,
  x: Float32Array,
  out: Float32Array,
): void {
  out.fill(0)
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const element = at(row, column)
      for (let k = 0; k < rank; k++) {
        add(out, row * rank + k, element * (x[column * rank + k] as number))
      }
    }
  }
}

/** Gram-Schmidt over the columns of x (rows, rank); one that depends on those before becomes zero. */
function orthonormalize(x: Float32Array, rows: number, rank: number): void {
  const dot = (a: number, b: number) => {
    let sum = 0
    for (let row = 0; row < rows; row++) {
      sum += (x[row * rank + a] as number) * (x[row * rank + b] as number)
    }
    return sum
  }
  for (let k = 0; k < rank; k++) {
    const before = Math.sqrt(dot(k, k))
    for (let j = 0; j < k; j++) {
      const shared = dot(j, k)
      for (let row = 0; row < rows; row++) {
        add(x, row * rank + k, -shared * (x[row * rank + j] as number))
      }
    }
    const length = Math.sqrt(dot(k, k))
    // What float32 leaves of a column that lies in the space of the others.
    const scale = length > 1e-5 * before ? 1 / length : 0
    for (let row = 0; row < rows; row++) {
      x[row * rank + k] = scale * (x[row * rank + k] as number)
    }
  }
}

function add(x: Float32Array, index: number, summand: number): void {
  x[index] = (x[index] as number) + summand
}
