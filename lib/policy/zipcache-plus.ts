import type { CachePolicy } from './policy.js'
import { bySaliency, PAPER, type SaliencyOptions } from './zipcache.js'

/** Options of `zipcache-plus`; those of `zipcache`, with defaults of its own. */
export interface ZipCachePlusOptions extends SaliencyOptions {
  /** Which policy this is. */
  name: 'zipcache-plus'
}

/**
 * Our recipe over the paper's algorithm: K, whose noise is nearly all of the loss, keeps 4 bits for
 * salient tokens and 3 for the others, each channel in the range that minimises the sum of
 * |error|^3; V keeps the paper's 4 and 2. One token of ten is salient, and of a window of 112
 * the 16 that fill a page, so that the others fill theirs, too.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range.
 */
export function zipcachePlus(given: ZipCachePlusOptions): CachePolicy {
  return bySaliency('zipcache-plus', given, {
    ...PAPER,
    saliencyRatio: 0.1,
    window: 112,
    fillsPages: true,
    keyBits: { high: 4, low: 3 },
    keyRange: { norm: 3 },
  })
}
