import { PolicyOptions } from './options.js'
import type { CachePolicy } from './policy.js'
import { heaviest } from './scores.js'
import { bySaliency, PAPER, type SaliencyOptions } from './zipcache.js'

/** Options of `mikv`, by its preset. */
export type MikvOptions = MikvZipCacheOptions | MikvPaperOptions

/** MiKV as ZipCache compares itself with it: options of `zipcache` but for `metric` and `probes`. */
export interface MikvZipCacheOptions extends Omit<SaliencyOptions, 'metric' | 'probes'> {
  /** Which policy this is. */
  name: 'mikv'
  /** What it is compared as; default `zipcache`. */
  preset?: 'zipcache' | undefined
}

/** MiKV as its own paper has it. */
export interface MikvPaperOptions {
  /** Which policy this is. */
  name: 'mikv'
  /** Its own paper's method. */
  preset: 'paper'
  /** Share of the tokens that stays in 16 bits; default 0.2. */
  saliencyRatio?: number | undefined
  /** Bits of the others: 2, 3 or 4; default 2. */
  lowBits?: 2 | 3 | 4 | undefined
}

/**
 * MiKV, by preset.
 *
 * `zipcache`, the default, is what ZipCache compares itself with: tokens split by accumulated
 * attention (Eq. 7) of all rows of the prompt, r = 60% at 4 bits and the others at 2, quantized as
 * `zipcache` does.
 *
 * `paper`: of each KV head, the tokens with the most attention received and the newest, 10% of each,
 * stay in 16 bits; the others have 2 bits, tokenwise in groups of half a head, K after its channels
 * were multiplied by b = sqrt(max |q| / max |k|) of the first prompt. Departures: query heads that
 * share a KV head are added up, and tokens leave the 16 bits 16 at a time.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: ZipCache (arXiv
 * 2405.14256) §5.2, Tables 3 and B; MiKV (arXiv 2402.18096) §3.2, Eqs. 1 to 4.
 */
export function mikv(given: MikvOptions): CachePolicy {
  const { preset, ...options } = given
  if (new PolicyOptions('mikv', { preset }).choice('preset', 'zipcache', PRESETS) === 'paper') {
    return mikvPaper(options)
  }
  return bySaliency('mikv', options, {
    ...PAPER,
    probes: 'all',
    metric: 'accumulated',
    fixed: ['probes', 'metric'],
  })
}

const PRESETS = ['zipcache', 'paper'] as const

/** Fewer tokens than these are not quantized. */
const BATCH = 16

function mikvPaper(given: object): CachePolicy {
  const options = new PolicyOptions('mikv', given)
  const ratio = options.number('saliencyRatio', 0.2, 0, 1)
  const bits = options.choice('lowBits', 2, [2, 3, 4] as const)
  options.done()
  return {
    name: 'mikv-paper',
    tail: 'f16',
    attention: 'dequantized',
    compression: null,
    rows: {
      kind: 'tiered',
      bits,
      nKept(nRows, nTokens) {
        const budget = Math.min(nRows, Math.max(1, Math.round(ratio * nTokens)))
        return nRows - budget >= BATCH ? budget : nRows
      },
      select(scores, nKept) {
        const nHeavy = nKept >> 1
        return heaviest(scores, nHeavy, nKept - nHeavy)
      },
    },
  }
}
