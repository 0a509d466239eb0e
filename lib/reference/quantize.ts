import { ZipCacheError } from '../errors.js'
import { f16ToF32, f32ToF16, f32ToF16Down, f32ToF16Up, roundHalfEven } from './float16.js'
import { type Bits, packCodes } from './pack-codes.js'

/**
 * Which elements share one scale and zero: all rows of a channel, a row (token), `groupSize`
 * consecutive channels of a row, or a row after each channel was divided by its own c
 * (channel-separable tokenwise).
 */
export type QuantizeScheme = 'channelwise' | 'tokenwise' | 'groupwise' | 'cst'

/**
 * How the range [lo, hi] of a group is found: its min and max, or the search described at
 * `quantize`.
 */
export type QuantizeRange =
  | 'minmax'
  | {
      /** The exponent of |error| in the sum that the search minimises. */
      norm: 2 | 3 | 4 | 5 | 6
    }

/** Arguments of `quantize`. */
export interface QuantizeOptions {
  /** (rows, channels), float32 values (others are rounded to float32 first) */
  x: ArrayLike<number>
  /** Rows of x: tokens. */
  rows: number
  /** Columns of x. */
  channels: number
  /** Of a code. */
  bits: Bits
  /** What shares one scale and zero. */
  scheme: QuantizeScheme
  /** for 'groupwise': channels per group, a divisor of `channels` */
  groupSize?: number
  /** default 'minmax' */
  range?: QuantizeRange
}

/** Packed codes and their parameters. */
export interface Quantized {
  /** (rows, packedRowBytes(channels, bits)) u8, see `packCodes` */
  codes: Uint8Array
  /**
   * f16 values; channelwise (channels), tokenwise and cst (rows),
   * groupwise (rows, channels / groupSize)
   */
  scale: Float64Array
  /** f16 values, shaped as `scale` */
  zero: Float64Array
  /** f16 values (channels) for cst, else empty */
  channel: Float64Array
}

/** Every operation below is rounded to float32 by itself, as in a kernel without contraction. */
const f32 = Math.fround

const MAX_F32 = 3.4028234663852886e38

/** Shares of the full range that the search tries, widest first: ties go to the wider. */
const SEARCH_FACTORS = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4].map(f32)

/**
 * Uniform asymmetric quantization, packed. Per group with extremes [lo, hi] and L = 2^bits - 1:
 *
 *     zero  = the largest f16 <= lo
 *     scale = the smallest f16 >= (hi - zero) / L
 *     code  = clamp(round_half_even((x - zero) / scale), 0, L)        x^ = code * scale + zero
 *
 * CST first divides each channel by c = f16(sqrt(max |x_channel|)), then goes tokenwise, and
 * x^ = c (code * scale + zero).
 *
 * Every step is rounded to float32, because the codes must be equal bit for bit on every backend.
 * NaN counts for no range and gets code 0; an infinity counts as the largest float32. Parameters
 * are saturated to +-65504. A group without spread has scale 0 and codes 0.
 *
 * Range search (`range: { norm: p }`): of seven ranges around the middle of [min, max], 100 % down
 * to 40 % of its width, the one with the smallest sum over the group of |x - x^|^p wins, ties to
 * the widest. The summands are rounded to integers, so that the order of summation cannot matter. A
 * width past float32's range is not searched.
 *
 * Departures from the paper: it stores an integer zero point -round(min / s), as eq. 5 has it; we
 * store the minimum itself (as the authors' code does), rounded down, and compute codes from the
 * stored, rounded parameters, which keeps every x inside the representable range. The range search
 * is not in the paper.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown width or scheme, `ERR_ZC_SHAPE` if groupSize does not
 * divide channels.
 *
 * Source: ZipCache (arXiv 2405.14256) §3.2 eq. 5 and §4.1 eq. 6, alg. 1.
 */
export function quantize(options: QuantizeOptions): Quantized {
  const { rows, channels, bits, scheme, groupSize } = options
  const range = options.range ?? 'minmax'
  let x: Float64Array = Float64Array.from(options.x, finiteF32)
  let channel: Float64Array = new Float64Array(0)
  if (scheme === 'cst') {
    channel = channelNormalizers(x, rows, channels)
    const inverse = channel.map((c) => f32(1 / c))
    x = x.map((value, i) => f32(value * inverse[i % channels]))
  }

  const groups = groupsOf(scheme, rows, channels, groupSize)
  const codes = new Uint8Array(rows * channels)
  const scale = new Float64Array(groups.length)
  const zero = new Float64Array(groups.length)
  groups.forEach((group, g) => {
    const values = new Float64Array(group.count)
    for (let i = 0; i < group.count; i++) values[i] = x[group.start + i * group.stride]
    const parameters = chooseParameters(values, bits, range)
    scale[g] = parameters.scale
    zero[g] = parameters.zero
    for (let i = 0; i < group.count; i++) {
      codes[group.start + i * group.stride] = encode(values[i], parameters, bits)
    }
  })
  return { codes: packCodes({ codes, rows, channels, bits }), scale, zero, channel }
}

/** The elements start, start + stride, … of a matrix, which share a scale and a zero. */
export interface QuantizeGroup {
  /** Index of its first element. */
  start: number
  /** Elements. */
  count: number
  /** From one element to the next. */
  stride: number
}

/**
 * The groups of a scheme, in the order of its `scale` and `zero` tensors.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown scheme, `ERR_ZC_SHAPE` if groupSize does not divide
 * channels.
 */
export function groupsOf(
  scheme: QuantizeScheme,
  rows: number,
  channels: number,
  groupSize = channels,
): QuantizeGroup[] {
  switch (scheme) {
    case 'channelwise':
      return Array.from({ length: channels }, (_, c) => ({
        start: c,
        count: rows,
        stride: channels,
      }))
    case 'tokenwise':
    case 'cst':
      return Array.from({ length: rows }, (_, row) => ({
        start: row * channels,
        count: channels,
        stride: 1,
      }))
    case 'groupwise':
      if (groupSize < 1 || channels % groupSize !== 0) {
        throw new ZipCacheError(
          'ERR_ZC_SHAPE',
          `groupSize: is ${groupSize}, expected a divisor of channels = ${channels}`,
          { op: 'quantize', argument: 'groupSize' },
        )
      }
      return Array.from({ length: (rows * channels) / groupSize }, (_, g) => ({
        start: g * groupSize,
        count: groupSize,
        stride: 1,
      }))
    default:
      throw new ZipCacheError('ERR_ZC_ARGUMENT', `scheme: is ${scheme}, expected a known scheme`, {
        op: 'quantize',
        argument: 'scheme',
      })
  }
}

/** float32(x), infinities as the largest finite float32. Keeps NaN. */
function finiteF32(x: number): number {
  return Math.min(Math.max(f32(x), -MAX_F32), MAX_F32)
}

/** c of eq. 6 per channel: f16 nearest to sqrt(max |x|), saturated; 1 where that is 0. */
function channelNormalizers(x: Float64Array, rows: number, channels: number): Float64Array {
  const normalizers = new Float64Array(channels)
  for (let c = 0; c < channels; c++) {
    let max = 0
    for (let row = 0; row < rows; row++) {
      const magnitude = Math.abs(x[row * channels + c])
      if (magnitude > max) max = magnitude // false for NaN
    }
    const root = Math.min(f32(Math.sqrt(max)), 65504)
    normalizers[c] = f16ToF32(f32ToF16(root)) || 1
  }
  return normalizers
}

interface Parameters {
  scale: number
  zero: number
}

/** Scale and zero of a group, from its min and max or by the search. */
function chooseParameters(values: Float64Array, bits: Bits, range: QuantizeRange): Parameters {
  const [min, max] = extremes(values)
  const widest = parametersOf(min, max, bits)
  const width = f32(max - min)
  if (range === 'minmax' || !Number.isFinite(width)) return widest

  const half = f32(width * 0.5)
  const middle = f32(min + half)
  const unit = widest.scale > 0 ? f32(1 / widest.scale) : 0 // errors in steps of the widest range
  let best = widest
  let bestError = sumOfErrors(values, widest, bits, unit, range.norm)
  for (const factor of SEARCH_FACTORS.slice(1)) {
    const lo = f32(middle - f32(half * factor))
    const hi = f32(middle + f32(half * factor))
    const candidate = parametersOf(lo, hi, bits)
    const error = sumOfErrors(values, candidate, bits, unit, range.norm)
    if (error < bestError) {
      best = candidate
      bestError = error
    }
  }
  return best
}

/** Smallest and largest value, NaN left out; [0, 0] if nothing remains. */
function extremes(values: Float64Array): [min: number, max: number] {
  let min = Number.POSITIVE_INFINITY
  let max = Number.NEGATIVE_INFINITY
  for (const value of values) {
    if (value < min) min = value
    if (value > max) max = value
  }
  return min <= max ? [min, max] : [0, 0]
}

/** zero = f16_down(lo); scale = f16_up((hi - zero) / L), 0 when hi is not above zero. */
function parametersOf(lo: number, hi: number, bits: Bits): Parameters {
  const zero = f16ToF32(f32ToF16Down(lo))
  const step = f32(f32(hi - zero) / (2 ** bits - 1))
  // Not above zero: no spread, or the whole group lies under the saturated zero.
  return { zero, scale: step > 0 ? f16ToF32(f32ToF16Up(step)) : 0 }
}

/** clamp(round_half_even((x - zero) * (1 / scale)), 0, L); NaN -> 0. */
function encode(x: number, { scale, zero }: Parameters, bits: Bits): number {
  const inverse = scale > 0 ? f32(1 / scale) : 0
  const code = roundHalfEven(f32(f32(x - zero) * inverse))
  return Number.isNaN(code) ? 0 : Math.min(Math.max(code, 0), 2 ** bits - 1)
}

/** Fixed point of the search: errors^p are counted in 2^-20, at most 2^42 of them an element. */
const ERROR_ONE = 2 ** 20
const ERROR_MAX = 2 ** 42

/**
 * Sum over the group of trunc(min((|x - x^| * unit)^p * 2^20, 2^42)), NaN counting 0: an exact
 * integer.
 */
function sumOfErrors(
  values: Float64Array,
  parameters: Parameters,
  bits: Bits,
  unit: number,
  norm: number,
): bigint {
  const { scale, zero } = parameters
  let sum = 0n
  let partial = 0 // exact while below 2^53: 1024 summands of at most 2^42
  for (let i = 0; i < values.length; i++) {
    const code = encode(values[i], parameters, bits)
    const restored = f32(f32(code * scale) + zero)
    const error = f32(Math.abs(f32(values[i] - restored)) * unit)
    let power = error
    for (let factors = 1; factors < norm; factors++) power = f32(power * error)
    const counted = Math.min(f32(power * ERROR_ONE), ERROR_MAX)
    partial += Number.isNaN(counted) ? 0 : Math.trunc(counted)
    if (i % 1024 === 1023) {
      sum += BigInt(partial)
      partial = 0
    }
  }
  return sum + BigInt(partial)
}
