import { codeFormat, type GroupPlan } from '../cache/index.js'
import type { Compression } from '../policy/policy.js'

/** How many tokens of a group are salient, and how both classes are stored. */
export function groupPlan(compression: Compression, nTokens: number): GroupPlan {
  const { high, low } = compression
  return {
    nTokens,
    nSalient: compression.nSalient(nTokens),
    high: { k: codeFormat(high.keyBits), v: codeFormat(high.valueBits) },
    low: { k: codeFormat(low.keyBits), v: codeFormat(low.valueBits) },
  }
}
