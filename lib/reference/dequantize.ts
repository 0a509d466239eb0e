import { type Bits, unpackCodes } from './pack-codes.js'
import { groupsOf, type Quantized, type QuantizeScheme } from './quantize.js'

/** Arguments of `dequantize`. */
export interface DequantizeOptions extends Quantized {
  /** Rows of x^. */
  rows: number
  /** Columns of x^. */
  channels: number
  /** Of a code. */
  bits: Bits
  /** What shares one scale and zero. */
  scheme: QuantizeScheme
  /** for 'groupwise': channels per group */
  groupSize?: number
}

/**
 * Restores values from packed codes: x^ = code * scale + zero, for CST times the channel's c.
 *
 * - `codes` (rows, packedRowBytes(channels, bits)) u8; `scale`, `zero`, `channel` as `quantize`
 *   returns them
 * - returns (rows, channels)
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown width or scheme, `ERR_ZC_SHAPE` if groupSize does not
 * divide channels.
 *
 * Source: ZipCache (arXiv 2405.14256) §3.2 eq. 5, alg. 1.
 */
export function dequantize(options: DequantizeOptions): Float64Array {
  const { scale, zero, channel, rows, channels, bits, scheme, groupSize } = options
  const codes = unpackCodes({ packed: options.codes, rows, channels, bits })
  const x = new Float64Array(rows * channels)
  groupsOf(scheme, rows, channels, groupSize).forEach((group, g) => {
    for (let i = 0; i < group.count; i++) {
      const element = group.start + i * group.stride
      x[element] = codes[element] * scale[g] + zero[g]
    }
  })
  return scheme === 'cst' ? x.map((value, i) => value * channel[i % channels]) : x
}
