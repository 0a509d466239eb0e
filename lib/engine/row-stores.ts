import type { CacheMemory } from '../cache/index.js'
import { argumentError, ZipCacheError } from '../errors.js'
import type { ForwardModel } from '../model/forward.js'
import type { QuantizedPlan, RowPlan } from '../policy/policy.js'
import { KeptRows } from './kept-rows.js'
import { QuantizedRows } from './quantized-rows.js'
import type { RowStore } from './row-store.js'
import { TieredRows } from './tiered-rows.js'

/**
 * An empty store for a plan.
 *
 * Throws `ERR_ZC_ARGUMENT` for groups that do not divide the model's heads, `ERR_ZC_UNSUPPORTED` for
 * a model with a sliding window under a plan whose heads keep different tokens: their positions are
 * not stored, and the window needs them.
 */
export function makeRowStore(model: ForwardModel, memory: CacheMemory, plan: RowPlan): RowStore {
  if (plan.kind !== 'quantized') {
    if (model.config.slidingWindow.some((window) => window > 0)) {
      throw new ZipCacheError(
        'ERR_ZC_UNSUPPORTED',
        'policy: keeps no positions of tokens, which a model with a sliding window needs',
        { argument: 'policy' },
      )
    }
    return plan.kind === 'kept' ? new KeptRows(memory, plan) : new TieredRows(memory, plan)
  }
  checkGroups(model, plan)
  return new QuantizedRows(memory, plan)
}

function checkGroups({ config }: ForwardModel, plan: QuantizedPlan): void {
  const width = config.nKvHeads * config.headDim
  for (const { scheme, groupSize } of [plan.key, plan.value]) {
    if (scheme !== 'groupwise' || groupSize === 0 || width % groupSize === 0) continue
    throw argumentError(
      'policy.groupSize',
      `is ${groupSize}, expected a divisor of the ${width} channels of the model's K and V`,
    )
  }
}
