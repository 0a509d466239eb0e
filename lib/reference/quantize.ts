import { ZipCacheError } from '../errors.js'
import { f16ToF32, f32ToF16, f32ToF16Down, f32ToF16Up, roundHalfEven } from './float16.js'
import { type Bits, packCodes } from './pack-codes.js'
import { searchRange } from './range-search.js'

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
 * Range search (`range: { norm: p }`): see `range-search.ts`.
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
  if (range === 'minmax') return parametersOf(min, max, bits)
  const { lo, hi } = searchRange(values, { lo: min, hi: max }, bits, range.norm)
  return parametersOf(lo, hi, bits)
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
