import { PolicyOptions } from './options.js'
import type { CachePolicy } from './policy.js'
import { heaviest, pooled } from './scores.js'

/** Options of `snapkv`. */
export interface SnapKvOptions {
  /** Which policy this is. */
  name: 'snapkv'
  /** Tokens that a prompt leaves in the cache; default 2048. */
  capacity?: number | undefined
  /** Newest tokens: they are kept, and their queries choose the others; default 32. */
  window?: number | undefined
  /** Rows that scores are pooled over: an odd number; default 5. */
  kernel?: number | undefined
  /** Default `average`. */
  pooling?: 'average' | 'max' | undefined
}

/**
 * SnapKV: a prompt keeps, in 16 bits and for each KV head, its newest tokens and those that their
 * attention, pooled over neighbours, is highest for; the others are dropped for good. Generated
 * tokens are all kept. Another prompt chooses anew among what is there.
 *
 * A departure: scores are of KV heads, the sum over their query heads, where the authors repeat K
 * and V for each query head.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: SnapKV (arXiv
 * 2404.14469); https://github.com/FasterDecoding/SnapKV, snapkv_utils.py (`init_snapkv`).
 */
export function snapkv(given: SnapKvOptions): CachePolicy {
  const options = new PolicyOptions('snapkv', given)
  const capacity = options.number('capacity', 2048, 2, 2 ** 24, true)
  const window = options.number('window', 32, 1, 65536, true)
  const kernel = options.number('kernel', 5, 1, 255, true)
  const pooling = options.choice('pooling', 'average', ['average', 'max'] as const)
  options.done()
  if (kernel % 2 === 0) throw options.error('kernel', kernel, 'an odd number')
  if (window >= capacity) {
    throw options.error('window', window, `less than the capacity, ${capacity}`)
  }
  return {
    name: 'snapkv',
    tail: 'f16',
    attention: 'dequantized',
    compression: null,
    rows: {
      kind: 'kept',
      accumulates: false,
      nKept: ({ nRows, isPrompt }) => (isPrompt ? Math.min(nRows, capacity) : nRows),
      nObservers: ({ isPrompt }, nNew) => (isPrompt ? Math.min(window, nNew) : 0),
      select: (scores) => {
        const others = scores.subarray(0, scores.length - window)
        const pooledScores = scores.slice()
        pooledScores.set(pooled(others, kernel, pooling))
        return heaviest(pooledScores, capacity - window, window)
      },
    },
  }
}
