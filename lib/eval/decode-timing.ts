import type { SubjectSequence } from './subject.js'

/** Options of `timeDecoding`. */
export interface DecodeTiming {
  /** Hold their prompts; each is decoded on from where it is. */
  readonly sequences: readonly SubjectSequence[]
  /** Decoded tokens of one measurement. */
  readonly tokens: number
  /** Measurements of each sequence. */
  readonly repeats: number
  readonly signal?: AbortSignal | undefined
  /** Called after each measurement. */
  readonly onProgress?: (() => void) | undefined
}

/**
 * Milliseconds per decoded token: for each sequence, `repeats` measurements of `tokens` tokens.
 *
 * The sequences take turns (A, B, A, B …), so that a machine that grows slower or faster meanwhile
 * treats them alike. A measurement goes on where the one before ended, because a cache is
 * compressed once a window: started anew each time, no measurement shorter than a window would
 * contain a compression.
 */
export async function timeDecoding(timing: DecodeTiming): Promise<number[][]> {
  const { sequences, tokens, repeats, signal, onProgress } = timing
  const milliseconds = sequences.map((): number[] => [])
  for (let repeat = 0; repeat < repeats; repeat++) {
    for (const [s, sequence] of sequences.entries()) {
      const start = performance.now()
      await decode(sequence, tokens, signal)
      milliseconds[s]?.push((performance.now() - start) / tokens)
      onProgress?.()
    }
  }
  return milliseconds
}

/** Decodes exactly `tokens` tokens, greedily, end-of-text tokens included. */
export async function decode(
  sequence: SubjectSequence,
  tokens: number,
  signal?: AbortSignal,
): Promise<void> {
  const options = { maxTokens: tokens, temperature: 0, ignoreEos: true, signal }
  for await (const _ of sequence.generate(null, options)) {
    // Only time is asked for.
  }
}
