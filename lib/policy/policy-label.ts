import type { PolicySpec } from './index.js'

/**
 * What a policy is called in reports, the same for equal options in any order: `zipcache`,
 * `zipcache saliencyRatio=0.2`.
 */
export function policyLabel(policy: PolicySpec): string {
  if (typeof policy === 'string') return policy
  const { name, ...options } = policy
  const parts = Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== null)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, value]) => `${key}=${showOption(value)}`)
  return [name, ...parts].join(' ')
}

function showOption(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value)
  const parts = Object.entries(value)
    .filter(([, inner]) => inner !== undefined && inner !== null)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, inner]) => `${key}:${showOption(inner)}`)
  return `{${parts.join(',')}}`
}
