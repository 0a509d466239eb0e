import { ZipCacheError } from '../errors.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { ApiError } from './api-error.js'
import { isObject } from './fields.js'

/** How caches may be kept, as the operator says. */
export interface PolicyRules {
  /** The policy of requests that name none. */
  readonly default: PolicySpec
  /** Names that requests may ask for; `*` stands for all of them, with any options. */
  readonly allowed: readonly string[]
}

/**
 * The policy that a request's `kv_cache` asks for: a name, or `{ "policy": name, …options }`. A name
 * with bits in it (`uniform4`) is allowed by itself, options only where all policies are.
 *
 * Throws an `ApiError` 400 for a policy that does not exist, 403 for one that is not allowed.
 */
export function choosePolicy(kvCache: unknown, rules: PolicyRules): PolicySpec {
  if (kvCache === undefined || kvCache === null) return rules.default
  const isAnythingAllowed = rules.allowed.includes('*')
  const spec = specOf(kvCache)
  try {
    resolvePolicy(spec)
  } catch (error) {
    if (!(error instanceof ZipCacheError)) throw error
    throw new ApiError(400, `kv_cache: ${error.message}`, {
      param: 'kv_cache',
      code: 'invalid_value',
    })
  }
  if (isAnythingAllowed || (typeof spec === 'string' && rules.allowed.includes(spec))) return spec
  const name = typeof spec === 'string' ? spec : `${spec.name} with options`
  throw new ApiError(
    403,
    `kv_cache: ${name} is not allowed here, only ${rules.allowed.join(', ') || 'the default'}`,
    { param: 'kv_cache', code: 'policy_not_allowed' },
  )
}

function specOf(kvCache: unknown): PolicySpec {
  if (typeof kvCache === 'string') return kvCache
  if (!isObject(kvCache)) {
    throw new ApiError(400, 'kv_cache: expected the name of a policy, or { "policy": name, … }', {
      param: 'kv_cache',
      code: 'invalid_value',
    })
  }
  const { policy, ...options } = kvCache
  // A name alone is a text, as those are that are allowed.
  if (Object.keys(options).length === 0) return policy as PolicySpec
  return { ...options, name: policy } as PolicySpec
}

/** The name of a policy, as usage and logs show it. */
export function policyName(spec: PolicySpec): string {
  return typeof spec === 'string' ? spec : spec.name
}
