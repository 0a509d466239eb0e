import { PolicyOptions } from './options.js'
import type { CachePolicy, CodeBits, QuantRange, SaliencyMetric } from './policy.js'
import { readPrecision } from './precision.js'
import { type ProbeShares, recentAndRandomProbes } from './probes.js'

/** Options of `zipcache`; the defaults are the paper's. */
export interface ZipCacheOptions {
  name: 'zipcache'
  /** r: the share of tokens that is salient, of [0, 1]; default 0.6. */
  saliencyRatio?: number
  /** Bits of salient tokens' K and V: 2, 3, 4 or 8; default 4. */
  highBits?: CodeBits
  /** Bits of the others; default 2. */
  lowBits?: CodeBits
  /** Bits of K alone. */
  keyBits?: { high?: CodeBits; low?: CodeBits }
  /** Bits of V alone. */
  valueBits?: { high?: CodeBits; low?: CodeBits }
  /** How the range of K's channels is found; default `minmax`. */
  keyRange?: QuantRange | { high?: QuantRange; low?: QuantRange }
  /** How the range of V's tokens is found; default `minmax`. */
  valueRange?: QuantRange | { high?: QuantRange; low?: QuantRange }
  /** New tokens kept in 16 bits before they are compressed together; default 100. */
  window?: number
  /** Shares of probe rows; default 5% recent and 5% random. */
  probes?: Partial<ProbeShares>
  /** Default `normalized` (Eq. 8). */
  metric?: SaliencyMetric
}

/**
 * The paper: the r% of tokens with the highest normalized attention at high bits, the others at low
 * bits, for every KV head.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: ZipCache (arXiv
 * 2405.14256) Algs. 2 and 3, §5.1.
 */
export function zipcache(given: ZipCacheOptions): CachePolicy {
  const options = new PolicyOptions('zipcache', given)
  const ratio = options.number('saliencyRatio', 0.6, 0, 1)
  const window = options.number('window', 100, 1, 65536, true)
  const metric = options.choice<SaliencyMetric>('metric', 'normalized', [
    'normalized',
    'accumulated',
  ])
  const precision = readPrecision(options, { high: 4, low: 2 })
  const probeOptions = options.nested('probes') ?? new PolicyOptions('zipcache', {})
  const shares = {
    recent: probeOptions.number('recent', 0.05, 0, 1),
    random: probeOptions.number('random', 0.05, 0, 1),
  }
  probeOptions.done()
  options.done()

  return {
    name: 'zipcache',
    tail: 'f16',
    compression: {
      window,
      ...precision,
      metric,
      // As the authors' code counts: the regular share is rounded down.
      nSalient: (nTokens) => nTokens - Math.floor((1 - ratio) * nTokens + 1e-9),
      promptProbes: (nTokens, seed, layer) => recentAndRandomProbes(nTokens, shares, seed, layer),
      windowProbes: (seed) => recentAndRandomProbes(window, shares, seed, 0),
    },
  }
}
