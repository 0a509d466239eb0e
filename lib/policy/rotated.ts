import { PolicyOptions } from './options.js'
import type { CachePolicy, CodeBits, QuantRange, RowCodec } from './policy.js'
import { CODE_BITS, readRange } from './precision.js'
import { windowed } from './uniform.js'

/** Options of `rotated`. */
export interface RotatedOptions {
  /** Which policy this is. */
  name: 'rotated'
  /** 2, 3, 4 or 8; default 4. */
  bits?: CodeBits | undefined
  /** Channels of a token that share a scale and zero: 16 to 256; default all of a head. */
  groupSize?: number | undefined
  /** How the ranges of groups are found; default `minmax`. */
  range?: QuantRange | undefined
  /** New tokens kept in 16 bits before they are quantized together; default 100. */
  window?: number | undefined
}

/**
 * K and V rotated by a Hadamard matrix, head by head, then every token quantized in groups of
 * channels: the rotation spreads outlying channels over all. llama.cpp does as much for its Q4_0
 * cache, in groups of 32 with a scale and no zero. They are rotated back after they were
 * dequantized, which is the same as to rotate Q and the output.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: QuaRot (arXiv
 * 2404.00456) §4.
 */
export function rotated(given: RotatedOptions): CachePolicy {
  const options = new PolicyOptions('rotated', given)
  const bits = options.choice('bits', 4, CODE_BITS)
  const groupSize = options.choice('groupSize', 0, [16, 32, 64, 128, 256])
  const range = readRange(options, 'range')
  const window = options.number('window', 100, 1, 65536, true)
  options.done()
  const codec: RowCodec = {
    scheme: 'groupwise',
    bits,
    range,
    groupSize,
    tokenGroup: 0,
    rotated: true,
    correction: null,
    nQuantized: windowed(window),
  }
  return {
    name: `rotated${bits}`,
    tail: 'f16',
    attention: 'dequantized',
    compression: null,
    rows: { kind: 'quantized', key: codec, value: codec },
  }
}
