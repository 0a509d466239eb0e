import { PolicyOptions } from './options.js'
import type { CachePolicy } from './policy.js'

/** Options of `kivi`. */
export interface KiviOptions {
  /** Which policy this is. */
  name: 'kivi'
  /** 2 or 4; default 2. */
  bits?: 2 | 4 | undefined
  /** Tokens, of K, and channels, of V, that share a scale and zero; default 32. */
  groupSize?: number | undefined
  /** Newest tokens in 16 bits; default 128. */
  residual?: number | undefined
}

/**
 * KIVI: K for each channel over groups of tokens, V for each token over groups of channels; K is
 * quantized whenever `residual` tokens have gathered, V so that the newest `residual` stay in 16
 * bits.
 *
 * A departure: the authors quantize V one token a step, here it is done for 32 tokens at a time, so
 * that V keeps up to 31 tokens more in 16 bits.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: KIVI (arXiv
 * 2402.02750); https://github.com/jy-yuan/KIVI, models/llama_kivi.py.
 */
export function kivi(given: KiviOptions): CachePolicy {
  const options = new PolicyOptions('kivi', given)
  const bits = options.choice('bits', 2, [2, 4] as const)
  const groupSize = options.number('groupSize', 32, 16, 256, true)
  const residual = options.number('residual', 128, 16, 65536, true)
  options.done()
  for (const [key, value] of [
    ['groupSize', groupSize],
    ['residual', residual],
  ] as const) {
    if (value % 16 !== 0) throw options.error(key, value, 'a multiple of 16')
  }
  if (residual % groupSize !== 0) {
    throw options.error('residual', residual, `a multiple of groupSize, ${groupSize}`)
  }
  const common = { bits, range: 'minmax', rotated: false, correction: null } as const
  return {
    name: `kivi${bits}`,
    tail: 'f16',
    attention: 'dequantized',
    compression: null,
    rows: {
      kind: 'quantized',
      key: {
        ...common,
        scheme: 'channelwise',
        groupSize: 0,
        tokenGroup: groupSize,
        nQuantized: (nTokens) => nTokens - (nTokens % residual),
      },
      value: {
        ...common,
        scheme: 'groupwise',
        groupSize,
        tokenGroup: 0,
        nQuantized: (nTokens) => Math.max(0, Math.floor((nTokens - residual) / 32) * 32),
      },
    },
  }
}
