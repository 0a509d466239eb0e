import type { CachePolicy } from './policy.js'
import { bySaliency, type SaliencyOptions } from './zipcache.js'

/** Options of `mikv`; those of `zipcache` but for `metric` and `probes`. */
export interface MikvOptions extends Omit<SaliencyOptions, 'metric' | 'probes'> {
  /** Which policy this is. */
  name: 'mikv'
}

/**
 * MiKV as ZipCache compares itself with it: tokens split by accumulated attention (Eq. 7) of all
 * rows of the prompt, r = 60% at 4 bits and the others at 2, quantized as `zipcache` does.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: ZipCache (arXiv
 * 2405.14256) §5.2, Tables 3 and B; MiKV is arXiv 2402.18096.
 */
export function mikv(given: MikvOptions): CachePolicy {
  return bySaliency('mikv', given, {
    saliencyRatio: 0.6,
    keyBits: { high: 4, low: 2 },
    valueBits: { high: 4, low: 2 },
    keyRange: 'minmax',
    probes: 'all',
    metric: 'accumulated',
    fixed: ['probes', 'metric'],
  })
}
