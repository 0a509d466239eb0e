import { argumentError, show } from '../errors.js'
import type { PolicySpec } from './index.js'

/**
 * What a policy is called in reports, the same for equal options in any order: `zipcache`,
 * `zipcache saliencyRatio=0.2`.
 *
 * Throws `ERR_ZC_ARGUMENT` for what has no name.
 */
export function policyLabel(policy: PolicySpec): string {
  if (typeof policy === 'string') return policy
  // A caller without types may give anything.
  const { name, ...options } = (policy ?? {}) as Partial<typeof policy>
  if (typeof name !== 'string') {
    throw argumentError('policy', `is ${show(policy)}, expected a name, or a name and options`)
  }
  return [name, ...optionTexts(options, '=')].join(' ')
}

/** Options that say something, in the order of their names. */
function optionTexts(options: object, sign: '=' | ':'): string[] {
  return Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== null)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, value]) => `${key}${sign}${showOption(value)}`)
}

function showOption(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value)
  return `{${optionTexts(value, ':').join(',')}}`
}
