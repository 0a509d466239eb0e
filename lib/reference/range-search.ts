import { roundHalfEven } from './float16.js'
import type { Bits } from './pack-codes.js'

/** The ends of a range. */
export interface Range {
  /** The lower end. */
  lo: number
  /** The upper end. */
  hi: number
}

const f32 = Math.fround

/** Shares of the full range that are tried, widest first: ties go to the wider. */
const FACTORS = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4].map(f32)

/** Places in a range are rounded to so many parts of its width. */
const PLACES = 2 ** 12

/** The largest integer that an element's error becomes. */
const MOST = 2 ** 22

/**
 * The range of a group that quantization loses least in: of seven around the middle of [lo, hi],
 * 100 % down to 40 % of its width, the one with the smallest sum over the group of |x - x^|^norm,
 * ties to the widest. A narrower one has finer steps and cuts the ends off.
 *
 * An element counts by its place in [lo, hi], rounded to 2^-12 of the width, and x^ is the nearest
 * of the 2^bits equidistant points of a range whose ends are not rounded. With L = 2^bits - 1, a
 * candidate of share f has its steps L / f to the width, rounded to 12 bits; an error is counted in
 * steps, raised to the power, and rounded to an integer of at most 2^22, so that the order of
 * summation cannot matter.
 *
 * NaN counts for nothing. A range without spread, or with ends that float16 does not hold, is not
 * searched. `values` are float32 values of any number, `norm` is 2 to 6.
 *
 * The range search is not in the paper.
 */
export function searchRange(values: Float64Array, full: Range, bits: Bits, norm: number): Range {
  const { lo, hi } = full
  const width = f32(hi - lo)
  if (!(width >= f32(1e-37) && lo >= -65504 && hi <= 65504)) return full

  const inverse = f32(1 / width)
  const places = values
    .filter((value) => !Number.isNaN(value))
    .map((value) => {
      const share = Math.min(Math.max(f32(f32(value - lo) * inverse), 0), 1)
      return Math.abs(roundHalfEven(share * PLACES) / PLACES - 0.5)
    })
  let factor = FACTORS[0]
  let least = errorOf(places, factor, bits, norm)
  for (const narrower of FACTORS.slice(1)) {
    const error = errorOf(places, narrower, bits, norm)
    if (error < least) {
      factor = narrower
      least = error
    }
  }
  if (factor === 1) return full
  const half = f32(width * 0.5)
  const middle = f32(lo + half)
  return { lo: f32(middle - f32(half * factor)), hi: f32(middle + f32(half * factor)) }
}

/** Sum over a group of error^norm in steps of the unshrunk range, of distances from its middle. */
function errorOf(places: Float64Array, factor: number, bits: Bits, norm: number): number {
  const levels = 2 ** bits - 1
  const fraction = 2 ** (10 - bits)
  const spread = roundHalfEven(f32(levels * f32(1 / factor)) * fraction) / fraction
  const last = 2 ** (bits - 1) - 1 // codes are counted from the middle
  const most = 2 ** Math.max(-1, Math.ceil(Math.log2((spread - levels) / 2))) // steps of error
  const unit = MOST / most ** norm

  let sum = 0n
  for (const place of places) {
    const code = place * spread - 0.5
    const error = Math.abs(code - Math.min(roundHalfEven(code), last))
    sum += BigInt(roundHalfEven(powerOf(error, norm) * unit))
  }
  let weight = 1 / unit
  for (let factors = 0; factors < norm; factors++) weight *= factor
  return Number(sum) * weight
}

/** error^norm, each product rounded to float32, in the order of the kernels. */
function powerOf(error: number, norm: number): number {
  const square = f32(error * error)
  const fourth = f32(square * square)
  const even = norm < 4 ? square : norm < 6 ? fourth : f32(fourth * square)
  return norm % 2 === 0 ? even : f32(even * error)
}
