import type { CacheBytes } from '../engine/context.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import { toSeed, uniformInteger } from '../random.js'
import type { SubjectModel } from './subject.js'

/** What a policy's cache takes after a prompt, in bytes. */
export interface MemoryRow extends Pick<CacheBytes, 'resident' | 'peak' | 'fp16' | 'ratio'> {
  readonly policy: string
  /** Tokens of the prompt. */
  readonly length: number
}

/** Options of `measureMemory`. */
export interface MemoryMeasurement {
  readonly model: SubjectModel
  readonly policies: readonly PolicySpec[]
  readonly lengths: readonly number[]
  readonly seed: number
  readonly signal?: AbortSignal | undefined
}

/**
 * Prefills prompts of random tokens and reads what their caches take then, and took at most while
 * they ran: the memory side of the paper's Figure 6, for one sequence. Bytes do not depend on the
 * tokens.
 *
 * Rejects with `ERR_ZC_CONTEXT_LENGTH` for a length that the model does not hold.
 */
export async function measureMemory(measurement: MemoryMeasurement): Promise<MemoryRow[]> {
  const { model, policies, lengths, signal } = measurement
  const seed = toSeed(measurement.seed)
  const rows: MemoryRow[] = []
  for (const policy of policies) {
    resolvePolicy(policy)
    for (const length of lengths) {
      const ids = Array.from({ length }, (_, i) => uniformInteger(seed, i, model.config.vocabSize))
      const sequence = model.createSequence({ policy, seed: measurement.seed })
      try {
        await sequence.prefill(ids, { signal })
        const { resident, peak, fp16, ratio } = sequence.bytes
        rows.push({ policy: policyLabel(policy), length, resident, peak, fp16, ratio })
      } finally {
        sequence.dispose()
      }
    }
  }
  return rows
}
