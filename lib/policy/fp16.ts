import { PolicyOptions } from './options.js'
import type { CachePolicy } from './policy.js'

/** Options of `fp16`: none. */
export interface Fp16Options {
  /** Which policy this is. */
  name: 'fp16'
}

/** The usual 16-bit cache, the paper's baseline: float16, whatever the model computes in. */
export function fp16(options: Fp16Options): CachePolicy {
  new PolicyOptions('fp16', options).done()
  return { name: 'fp16', tail: 'f16', attention: 'packed', compression: null, rows: null }
}
