import { PolicyOptions } from './options.js'
import type { CachePolicy, CodeBits, PrecisionClass, QuantRange, RowCodec } from './policy.js'
import { CODE_BITS, readRange } from './precision.js'

/** Options of `uniform`. */
export interface UniformOptions {
  /** Which policy this is. */
  name: 'uniform'
  /** Bits of every token's K and V: 2, 3, 4 or 8; default 4. */
  bits?: CodeBits | undefined
  /** Bits of K alone. */
  keyBits?: CodeBits | undefined
  /** Bits of V alone. */
  valueBits?: CodeBits | undefined
  /** How the range of K's channels is found; default `minmax`. */
  keyRange?: QuantRange | undefined
  /** How the range of V's tokens is found; default `minmax`. */
  valueRange?: QuantRange | undefined
  /** New tokens kept in 16 bits before they are compressed together; default 100. */
  window?: number | undefined
  /**
   * What shares a scale and zero, the rows of Table 1: `cst`, the default, K's channels and V's
   * tokens after CST; `channel`, K's channels and V's tokens; `token`, tokens of both; `group`, 32
   * channels of a token of both. All but `cst` run dequantized.
   */
  granularity?: Granularity | undefined
}

const GRANULARITIES = ['cst', 'channel', 'token', 'group'] as const

/** One of the rows of the paper's Table 1. */
export type Granularity = (typeof GRANULARITIES)[number]

const SCHEMES = {
  channel: { key: 'channelwise', value: 'tokenwise' },
  token: { key: 'tokenwise', value: 'tokenwise' },
  group: { key: 'groupwise', value: 'groupwise' },
} as const

/** Tokens are quantized together whenever so many have gathered; a longer prompt at once. */
export function windowed(window: number): RowCodec['nQuantized'] {
  return (nTokens, nBefore) => (nTokens - nBefore >= window ? nTokens : nBefore)
}

/**
 * Every token at the same bits: what mixed precision is measured against. The tokenwise schemes
 * share parameters among all heads of a token, as the paper counts them; `cst` does not.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: ZipCache (arXiv
 * 2405.14256) §4.1, Table 1.
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
  const granularity = options.choice<Granularity>('granularity', 'cst', GRANULARITIES)
  options.done()
  if (granularity !== 'cst') {
    const codec = (part: 'key' | 'value'): RowCodec => ({
      scheme: SCHEMES[granularity][part],
      bits: precision[`${part}Bits`],
      range: precision[`${part}Range`],
      groupSize: 32,
      tokenGroup: 0,
      rotated: false,
      correction: null,
      nQuantized: windowed(window),
    })
    return {
      name: `uniform${bits}-${granularity}`,
      tail: 'f16',
      attention: 'dequantized',
      compression: null,
      rows: { kind: 'quantized', key: codec('key'), value: codec('value') },
    }
  }
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
      auto: null,
      correctsPosition: false,
      usesSpecialTokens: false,
      nSalient: (nTokens) => nTokens,
      promptProbes: () => new Int32Array(0),
      windowProbes: () => new Int32Array(0),
    },
    rows: null,
  }
}
