import { PolicyOptions } from './options.js'
import type { CachePolicy, KeptFacts } from './policy.js'
import { heaviest } from './scores.js'

/** Options of `h2o`. */
export interface H2oOptions {
  /** Which policy this is. */
  name: 'h2o'
  /** Share of the prompt's tokens that is kept for the attention it received; default 0.2. */
  heavy?: number | undefined
  /** Share that is kept because it is newest; default 0.2. */
  recent?: number | undefined
}

/**
 * H2O: of each KV head, the tokens that have received the most attention so far and the newest ones
 * are kept in 16 bits, the others are dropped for good. Every row of a prompt and every generated
 * token adds to the attention received; how many are kept is a share of the tokens there were when
 * the last prompt ended. The defaults are those that ZipCache compares itself with.
 *
 * A departure: query heads that share a KV head are added up, where the authors know no such heads.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: H2O (arXiv
 * 2306.14048); https://github.com/FMInference/H2O, utils_real_drop.
 */
export function h2o(given: H2oOptions): CachePolicy {
  const options = new PolicyOptions('h2o', given)
  const heavy = options.number('heavy', 0.2, 0, 1)
  const recent = options.number('recent', 0.2, 0, 1)
  options.done()
  const budget = ({ promptLength, nRows }: KeptFacts) => {
    const nRecent = Math.min(nRows, Math.max(1, Math.floor(recent * promptLength + 1e-9)))
    const nHeavy = Math.min(nRows - nRecent, Math.floor(heavy * promptLength + 1e-9))
    return { nRecent, nHeavy }
  }
  return {
    name: 'h2o',
    tail: 'f16',
    attention: 'dequantized',
    compression: null,
    rows: {
      kind: 'kept',
      accumulates: true,
      nKept: (facts) => {
        const { nRecent, nHeavy } = budget(facts)
        return nRecent + nHeavy
      },
      nObservers: (_, nNew) => nNew,
      select: (scores, facts) => {
        const { nRecent, nHeavy } = budget(facts)
        return heaviest(scores, nHeavy, nRecent)
      },
    },
  }
}
