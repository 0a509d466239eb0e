import { ZipCacheError } from '../errors.js'

/**
 * The largest difference from the reference that a result may have and still be timed, relative to
 * the largest value of its row. The same as in the tests of the ops, where the reasons are.
 */
export const kTolerance = {
  f32Attention: 2e-5,
  f16Attention: 2e-3,
  mixedAttention: 2e-3,
  lse: 2e-5,
  probeScores: 1e-4,
  f32Linear: 1e-5,
  i8Linear: 1e-4,
  f16Output: 6e-4,
  causalConv: 1e-6,
  gatedDelta: 3e-6,
  selectiveScan: 1e-5,
  f32Norm: 3e-6,
  f32Activation: 2e-6,
  f32Rope: 5e-7,
  logprob: 2e-5,
  multiplyAdd: 2e-6,
} as const

/** What is compared, and how strictly. */
export interface Comparison {
  /** What a message calls it, e.g. `linear m=1: out`. */
  readonly name: string
  /** 0: equal bit by bit. */
  readonly tolerance: number
  /** Elements that share one magnitude; default all. */
  readonly rowLength?: number
  /** The least magnitude of a row; default 0. */
  readonly floor?: number
}

/**
 * Throws `ERR_ZC_INTERNAL`, naming the worst element and both values, unless `actual` is as near to
 * `expected` as it must be. A number that is not finite is near nothing but itself.
 */
export function checkClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { name, tolerance, rowLength = expected.length, floor = 0 }: Comparison,
): void {
  if (actual.length !== expected.length || expected.length === 0) {
    throw mismatch(`${name}: has ${actual.length} elements, expected ${expected.length}, above 0`)
  }
  for (let row = 0; row < expected.length; row += rowLength) {
    const end = Math.min(row + rowLength, expected.length)
    let magnitude = floor
    for (let i = row; i < end; i++) {
      const size = Math.abs(expected[i] as number)
      if (Number.isFinite(size) && size > magnitude) magnitude = size
    }
    for (let i = row; i < end; i++) {
      const [is, must] = [actual[i] as number, expected[i] as number]
      if (Object.is(is, must) || Math.abs(is - must) <= tolerance * magnitude) continue
      throw mismatch(
        `${name}: element ${i} is ${is}, expected ${must} within ${tolerance} of ${magnitude}; ` +
          'a wrong result is not timed',
      )
    }
  }
}

function mismatch(message: string): ZipCacheError {
  return new ZipCacheError('ERR_ZC_INTERNAL', message)
}
