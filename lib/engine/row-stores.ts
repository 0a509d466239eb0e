import type { CacheMemory } from '../cache/index.js'
import { argumentError, ZipCacheError } from '../errors.js'
import type { ModelConfig } from '../model/config.js'
import type { ForwardModel } from '../model/forward.js'
import { headShapes } from '../model/layer-kinds.js'
import type { QuantizedPlan, RowPlan } from '../policy/policy.js'
import { KeptRows } from './kept-rows.js'
import { QuantizedRows } from './quantized-rows.js'
import type { RowStore } from './row-store.js'
import { TieredRows } from './tiered-rows.js'

/** An empty store for a plan. Throws as `checkRowPlan`. */
export function makeRowStore(model: ForwardModel, memory: CacheMemory, plan: RowPlan): RowStore {
  checkRowPlan(model, plan)
  if (plan.kind === 'quantized') return new QuantizedRows(memory, plan)
  return plan.kind === 'kept' ? new KeptRows(memory, plan) : new TieredRows(memory, plan)
}

/**
 * Whether a model's rows can be kept as a plan says.
 *
 * Throws `ERR_ZC_ARGUMENT` for groups that do not divide the model's heads, `ERR_ZC_UNSUPPORTED` for
 * a model whose layers have heads of two shapes, and for one with a sliding window under a plan whose
 * heads keep different tokens: their positions are not stored, and the window needs them.
 */
export function checkRowPlan({ config }: Pick<ForwardModel, 'config'>, plan: RowPlan): void {
  if (headShapes(config).length > 1) {
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      "policy: keeps rows of heads of one shape, and this model's layers have two",
      { argument: 'policy' },
    )
  }
  if (plan.kind === 'quantized') checkGroups(config, plan)
  else if (config.slidingWindow.some((window) => window > 0)) {
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      'policy: keeps no positions of tokens, which a model with a sliding window needs',
      { argument: 'policy' },
    )
  }
}

function checkGroups(config: ModelConfig, plan: QuantizedPlan): void {
  const width = config.nKvHeads * config.headDim
  for (const { scheme, groupSize } of [plan.key, plan.value]) {
    if (scheme !== 'groupwise' || groupSize === 0 || width % groupSize === 0) continue
    throw argumentError(
      'policy.groupSize',
      `is ${groupSize}, expected a divisor of the ${width} channels of the model's K and V`,
    )
  }
}
