import { PolicyOptions } from './options.js'
import type { CachePolicy, RowCodec } from './policy.js'
import { windowed } from './uniform.js'

/** Options of `gear`. */
export interface GearOptions {
  /** Which policy this is. */
  name: 'gear'
  /** 2 or 4; default 4. */
  bits?: 2 | 4 | undefined
  /**
   * Tokens, of K, and channels, of V, that share a scale and zero; 0: all tokens that are quantized
   * together, and all channels of a token. Default 0 with 4 bits and 64 with 2, as published.
   */
  groupSize?: number | undefined
  /** Share of the elements that are kept in 16 bits as outliers; default 0.02. */
  outliers?: number | undefined
  /** Rank of a head's correction for a prompt, which is longer than a window; default 4. */
  rank?: number | undefined
  /** The same for a window; default 2. */
  windowRank?: number | undefined
  /** New tokens kept in 16 bits before they are quantized together; default 64. */
  window?: number | undefined
}

/**
 * GEAR: X = D + L + S. The outliers S, the smallest and largest of each channel of K and of each
 * token of V, are kept in 16 bits and replaced by the mean of the others' line; D are codes, of K
 * by channel and of V by token; L is the low-rank part of what D lost, for every head, found by
 * power iteration.
 *
 * The authors' simulation takes as many outliers of a channel as of a token, whatever its length;
 * here it is the same share of both, as in the paper.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: GEAR (arXiv
 * 2403.05527) §3; https://github.com/opengear-project/GEAR, GEARLM/Simulated/compress_function.py.
 */
export function gear(given: GearOptions): CachePolicy {
  const options = new PolicyOptions('gear', given)
  const bits = options.choice('bits', 4, [2, 4] as const)
  const groupSize = options.number('groupSize', bits === 2 ? 64 : 0, 0, 256, true)
  const outliers = options.number('outliers', 0.02, 0, 0.5)
  const rank = options.number('rank', 4, 0, 64, true)
  const windowRank = options.number('windowRank', 2, 0, 64, true)
  const window = options.number('window', 64, 1, 65536, true)
  options.done()
  if (groupSize % 16 !== 0) throw options.error('groupSize', groupSize, 'a multiple of 16')
  const common = {
    ...({ bits, range: 'minmax', rotated: false, nQuantized: windowed(window) } as const),
    correction: { outliers, rank: (nRows: number) => (nRows > window ? rank : windowRank) },
  }
  const key: RowCodec = { ...common, scheme: 'channelwise', groupSize: 0, tokenGroup: groupSize }
  const value: RowCodec = {
    ...common,
    scheme: groupSize === 0 ? 'tokenwise' : 'groupwise',
    groupSize,
    tokenGroup: 0,
  }
  return {
    name: `gear${bits}`,
    tail: 'f16',
    attention: 'dequantized',
    compression: null,
    rows: { kind: 'quantized', key, value },
  }
}
