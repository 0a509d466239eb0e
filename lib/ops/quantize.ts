import { argumentError, show } from '../errors.js'
import { loadAddon } from '../native/load.js'
import { checkArguments, checkSize } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/**
 * What shares one scale and zero: a channel, a token (row), a group of channels of a row, or a row
 * after CST.
 */
export const QUANT_SCHEMES = ['channelwise', 'tokenwise', 'groupwise', 'cst'] as const

/** One of `QUANT_SCHEMES`. */
export type QuantScheme = (typeof QUANT_SCHEMES)[number]

/**
 * How the range of a group is found: its minimum and maximum, or the one of seven ranges shrunk
 * about their middle (1, 0.9 … 0.4) that minimises the sum of |error|^norm.
 */
export type QuantRange =
  | 'minmax'
  | {
      /** The exponent of |error| in the sum that the search minimises. */
      norm: 2 | 3 | 4 | 5 | 6
    }

/** Bits of a code. */
export type CodeBits = 2 | 3 | 4 | 8

/**
 * @internal The native form of a range: 0, or the norm, which the addon checks.
 *
 * Throws `ERR_ZC_ARGUMENT` for what is neither.
 */
export function rangeNorm(argument: string, range: QuantRange = 'minmax'): number {
  if (range === 'minmax') return 0
  checkArguments(range, argument)
  return range.norm
}

/**
 * Bytes of one row of codes: 3 bits are a 2-bit plane followed by a 1-bit plane.
 *
 * - `channels`: elements of a row, 0 or more
 *
 * Throws `ERR_ZC_ARGUMENT`.
 */
export function codeBytesPerRow(channels: number, bits: CodeBits): number {
  checkSize('channels', channels)
  checkSize('bits', bits)
  if (bits === 3) return Math.ceil((channels * 2) / 8) + Math.ceil(channels / 8)
  return Math.ceil((channels * bits) / 8)
}

/** Arguments of `quantize`. */
export interface QuantizeArgs {
  /** (rows, channels) f32, f16 or bf16. */
  x: Tensor
  /** (rows, codeBytesPerRow(channels, bits)) u8, out: element c at bit c * bits, little endian. */
  codes: Tensor
  /**
   * f16, out: (channels) channelwise; (rows) tokenwise and cst; (rows, channels / groupSize)
   * groupwise.
   */
  scale: Tensor
  /** f16, out, shaped as `scale`: the minimum of the grid. */
  zero: Tensor
  /**
   * (channels) f16, out, with `cst` only: c = sqrt(max |x_c|), by which the row is divided before
   * it is quantized.
   */
  channel?: Tensor | undefined
  /** What shares one scale and zero. */
  scheme: QuantScheme
  /** Of a code. */
  bits: CodeBits
  /** With `groupwise` only: channels of a group, a divisor of `channels`. */
  groupSize?: number | undefined
  /** How the range of a group is found; default `minmax`. */
  range?: QuantRange | undefined
}

/** Arguments of `dequantize`. */
export interface DequantizeArgs {
  /** (rows, codeBytesPerRow(channels, bits)) u8: element c at bit c * bits, little endian. */
  codes: Tensor
  /**
   * f16: (channels) channelwise; (rows) tokenwise and cst; (rows, channels / groupSize) groupwise.
   */
  scale: Tensor
  /** f16, shaped as `scale`: the minimum of the grid. */
  zero: Tensor
  /** (channels) f16, with `cst` only: c, by which a row is multiplied. */
  channel?: Tensor | undefined
  /** (rows, channels) f32, f16 or bf16, out. */
  out: Tensor
  /** What shares one scale and zero. */
  scheme: QuantScheme
  /** Of a code. */
  bits: CodeBits
  /** With `groupwise` only: channels of a group, a divisor of `channels`. */
  groupSize?: number | undefined
}

/**
 * Uniform asymmetric quantization, code = clamp(round((x - zero) / scale), 0, 2^bits - 1), ties to
 * even, really packed.
 *
 * The minimum is stored instead of the paper's integer zero point, as the authors' code does, but
 * rounded down, and the scale rounded up, so that the stored grid covers the range; codes are
 * computed from the stored values and are bit-equal on every backend. A constant group gets scale
 * 0. NaN gets code 0.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`. Source: ZipCache (arXiv 2405.14256)
 * §3.2 Eq. 5, §4.1 Eq. 6, Alg. 1.
 */
export function quantize(args: QuantizeArgs): void {
  checkArguments(args)
  loadAddon().quantize(
    handleOf(args.x),
    handleOf(args.codes),
    handleOf(args.scale),
    handleOf(args.zero),
    handleOf(args.channel),
    schemeIndex(args.scheme),
    args.bits,
    args.groupSize ?? 0,
    rangeNorm('range', args.range),
  )
}

/**
 * The inverse of `quantize`: x^ = code * scale + zero, times the channel's c with cst.
 *
 * Throws as `quantize`.
 */
export function dequantize(args: DequantizeArgs): void {
  checkArguments(args)
  loadAddon().dequantize(
    handleOf(args.codes),
    handleOf(args.scale),
    handleOf(args.zero),
    handleOf(args.channel),
    handleOf(args.out),
    schemeIndex(args.scheme),
    args.bits,
    args.groupSize ?? 0,
  )
}

function schemeIndex(scheme: QuantScheme): number {
  const index = QUANT_SCHEMES.indexOf(scheme)
  if (index >= 0) return index
  throw argumentError('scheme', `is ${show(scheme)}, expected one of ${QUANT_SCHEMES.join(', ')}`)
}
