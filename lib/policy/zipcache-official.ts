import type { CachePolicy } from './policy.js'
import { bySaliency, PAPER, type SaliencyOptions } from './zipcache.js'

/** Options of `zipcache-official`; those of `zipcache` but for `metric`. */
export interface ZipCacheOfficialOptions extends Omit<SaliencyOptions, 'metric'> {
  /** Which policy this is. */
  name: 'zipcache-official'
}

/**
 * The authors' code, where it decides otherwise than their paper: a prompt's probe sums are divided
 * by the count of all rows that see a token, not of the probes that do, which favours recent tokens
 * up to tenfold; a window is scored by the row that closes it alone.
 *
 * Kept as in the paper: probes are drawn without replacement, what was quantized is not quantized
 * again (their code does it for the whole cache at every window), and a token's V has parameters of
 * its own (theirs shares them between different tokens of different heads).
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source:
 * https://github.com/ThisisBillhe/ZipCache, models/modeling_llama.py, CompressUtils.
 */
export function zipcacheOfficial(given: ZipCacheOfficialOptions): CachePolicy {
  const policy = bySaliency('zipcache-official', given, {
    ...PAPER,
    metric: 'causal',
    fixed: ['metric'],
  })
  const { compression } = policy
  if (!compression) return policy
  const { window } = compression
  return {
    ...policy,
    compression: {
      ...compression,
      windowMetric: 'accumulated',
      windowProbes: () => Int32Array.of(window - 1),
    },
  }
}
