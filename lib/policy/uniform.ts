import { PolicyOptions } from './options.js'
import type { CachePolicy, CodeBits, PrecisionClass, QuantRange } from './policy.js'
import { CODE_BITS, readRange } from './precision.js'

/** Options of `uniform`. */
export interface UniformOptions {
  name: 'uniform'
  /** Bits of every token's K and V: 2, 3, 4 or 8; default 4. */
  bits?: CodeBits
  /** Bits of K alone. */
  keyBits?: CodeBits
  /** Bits of V alone. */
  valueBits?: CodeBits
  /** How the range of K's channels is found; default `minmax`. */
  keyRange?: QuantRange
  /** How the range of V's tokens is found; default `minmax`. */
  valueRange?: QuantRange
  /** New tokens kept in 16 bits before they are compressed together; default 100. */
  window?: number
}

/**
 * Every token at the same bits, K channelwise and V channel-separable tokenwise: what mixed
 * precision is measured against.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: ZipCache (arXiv
 * 2405.14256) §4.1, Table 1, last row.
 */
export function uniform(given: UniformOptions): CachePolicy {
  const options = new PolicyOptions('uniform', given)
  const bits = options.choice('bits', 4, CODE_BITS)
  const precision: PrecisionClass = {
    keyBits: options.choice('keyBits', bits, CODE_BITS),
    valueBits: options.choice('valueBits', bits, CODE_BITS),
    keyRange: readRange(options, 'keyRange'),
    valueRange: readRange(options, 'valueRange'),
  }
  const window = options.number('window', 100, 1, 65536, true)
  options.done()
  return {
    name: `uniform${bits}`,
    tail: 'f16',
    attention: 'packed',
    compression: {
      window,
      high: precision,
      low: precision,
      metric: 'normalized',
      windowMetric: 'normalized',
      usesSpecialTokens: false,
      nSalient: (nTokens) => nTokens,
      promptProbes: () => new Int32Array(0),
      windowProbes: () => new Int32Array(0),
    },
  }
}
