import { PolicyOptions } from './options.js'
import type { CachePolicy } from './policy.js'

/** Options of `full`: none. */
export interface FullOptions {
  /** Which policy this is. */
  name: 'full'
}

/** The cache in the type that the model computes in: nothing is lost. */
export function full(options: FullOptions): CachePolicy {
  new PolicyOptions('full', options).done()
  return { name: 'full', tail: 'compute', attention: 'packed', compression: null, rows: null }
}
