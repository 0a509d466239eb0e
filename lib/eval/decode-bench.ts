import { ZipCacheError } from '../errors.js'
import type { PolicySpec } from '../policy/index.js'
import { decode, type Spread, spread, timeDecoding } from './decode-timing.js'
import { longPrompt } from './long-prompt.js'
import type { SubjectModel, SubjectSequence } from './subject.js'

/** What decoding cost one policy at one context length. */
export interface DecodeBenchRow {
  readonly policy: string
  /** Tokens of the prompt. */
  readonly context: number
  /** Over the repeats. */
  readonly decodeMsPerToken: Spread
  readonly prefillMs: number
  /** Resident bytes of the cache when the prompt is in it. */
  readonly bytes: number
  /** fp16 bytes / resident bytes, at the same time. */
  readonly ratio: number
}

/** Options of `benchDecode`. */
export interface DecodeBench {
  readonly model: SubjectModel
  /** Prompt lengths in tokens. */
  readonly contexts: readonly number[]
  readonly policies: readonly PolicySpec[]
  /** Decoded tokens of one measurement; default 64. */
  readonly tokens?: number | undefined
  /** Measurements for each row; default 5. */
  readonly repeats?: number | undefined
  /** Of the prompts; default 0. */
  readonly seed?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Called after each prefill and each measurement. */
  readonly onProgress?: ((progress: { done: number; total: number }) => void) | undefined
}

const kWarmUpTokens = 4

/** Positions that `benchDecode` needs for a context: it decodes on over all repeats. */
export function benchPositions(context: number, tokens: number, repeats: number): number {
  return context + kWarmUpTokens + tokens * repeats
}

/**
 * Times decoding over a long context: for each context length every policy prefills the same
 * prompt, then all decode in turns; see `timeDecoding`. The context grows from `context` by `tokens
 * * repeats` meanwhile.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an option out of its range, with `ERR_ZC_CONTEXT_LENGTH`,
 * before anything is computed, if the model has too few positions, and with `signal.reason` when
 * aborted.
 */
export async function benchDecode(options: DecodeBench): Promise<{ rows: DecodeBenchRow[] }> {
  const { model, contexts, policies, tokens = 64, repeats = 5, seed = 0, signal } = options
  checkPositive('tokens', tokens)
  checkPositive('repeats', repeats)
  for (const context of contexts) {
    checkPositive('context', context)
    const needed = benchPositions(context, tokens, repeats)
    if (needed <= model.config.maxPositions) continue
    throw new ZipCacheError(
      'ERR_ZC_CONTEXT_LENGTH',
      `context: is ${context}, which with ${needed - context} decoded tokens needs ${needed} positions, ` +
        `expected at most the model's ${model.config.maxPositions}`,
      { argument: 'context' },
    )
  }

  const total = contexts.length * policies.length * (1 + repeats)
  let done = 0
  const onProgress = () => options.onProgress?.({ done: ++done, total })

  const rows: DecodeBenchRow[] = []
  for (const context of contexts) {
    const ids = longPrompt(model, context, seed)
    const sequences: SubjectSequence[] = []
    try {
      const filled: Omit<DecodeBenchRow, 'decodeMsPerToken'>[] = []
      for (const policy of policies) {
        signal?.throwIfAborted()
        const sequence = model.createSequence({ policy, seed })
        sequences.push(sequence)
        const start = performance.now()
        await sequence.prefill(ids, { signal })
        const prefillMs = performance.now() - start
        const { resident: bytes, ratio } = sequence.bytes
        const name = typeof policy === 'string' ? policy : JSON.stringify(policy)
        filled.push({ policy: name, context, prefillMs, bytes, ratio })
        onProgress()
      }
      for (const sequence of sequences) await decode(sequence, kWarmUpTokens, signal)
      const times = await timeDecoding({ sequences, tokens, repeats, signal, onProgress })
      for (const [p, row] of filled.entries()) {
        const { policy, prefillMs, bytes, ratio } = row
        const decodeMsPerToken = spread(times[p] as number[])
        rows.push({ policy, context, decodeMsPerToken, bytes, ratio, prefillMs })
      }
    } finally {
      for (const sequence of sequences) sequence.dispose()
    }
  }
  return { rows }
}

function checkPositive(argument: string, value: number): void {
  if (Number.isInteger(value) && value > 0) return
  const message = `${argument}: is ${value}, expected a whole number above 0`
  throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument })
}
