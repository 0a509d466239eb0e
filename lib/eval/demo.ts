import { ZipCacheError } from '../errors.js'
import type { PolicySpec } from '../policy/index.js'
import { decode, timeDecoding } from './decode-timing.js'
import { answerLineRetrieval, encodeLineRetrieval } from './line-retrieval.js'
import { generateLineRetrieval } from './line-retrieval-prompt.js'
import { requireTokenizer } from './prompt.js'
import { meanOf } from './statistics.js'
import type { SubjectModel, SubjectSequence } from './subject.js'

/** One policy's part of a demo. */
export interface DemoResult {
  readonly policy: string
  /** The five digits that the model gave, or null. */
  readonly answer: string | null
  readonly correct: boolean
  /** After the last answer token. */
  readonly bytes: SubjectSequence['bytes']
  /** fp16 bytes / resident bytes. */
  readonly ratio: number
  readonly prefillMs: number
  /** Mean over 100 tokens after the answer. */
  readonly decodeMsPerToken: number
}

/** The same question answered from the cache of each policy. */
export interface Demo {
  readonly promptTokens: number
  readonly question: string
  /** The five digits that are right. */
  readonly expected: string
  readonly results: readonly DemoResult[]
}

/** Options of `runDemo`. */
export interface DemoOptions {
  readonly model: SubjectModel
  /** Record lines of the prompt. */
  readonly lines: number
  /** Any integer. */
  readonly seed: number
  readonly policies: readonly PolicySpec[]
  readonly signal?: AbortSignal | undefined
  /** Called as each policy's steps end. */
  readonly onProgress?: ((progress: { done: number; total: number }) => void) | undefined
}

/** One window of zipcache, so that exactly one compression is among them. */
const kTimedTokens = 100
const kTimedRepeats = 4
/** The right answer has 13. */
const kMaxAnswerTokens = 16
const kWarmUpLines = 16
const kWarmUpTokens = 4

/**
 * Asks every policy one line-retrieval question inside the prompt, and times prefill and decoding.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an option out of its range, `ERR_ZC_TOKENIZER` if the model
 * has no tokenizer, `ERR_ZC_CONTEXT_LENGTH` if the prompt does not fit, and with `signal.reason`
 * when aborted.
 */
export async function runDemo(options: DemoOptions): Promise<Demo> {
  const { model, lines, seed, policies, signal } = options
  const tokenizer = requireTokenizer(model)
  const prompt = generateLineRetrieval({ lines, seed })
  const ids = encodeLineRetrieval(tokenizer, prompt.text)
  const needed = ids.length + kMaxAnswerTokens + kTimedTokens
  if (needed > model.config.maxPositions) {
    throw new ZipCacheError(
      'ERR_ZC_CONTEXT_LENGTH',
      `lines: is ${lines}, which makes a prompt of ${ids.length} tokens and needs ${needed} positions, ` +
        `expected at most the model's ${model.config.maxPositions}`,
      { argument: 'lines' },
    )
  }

  const total = policies.length * (3 + kTimedRepeats)
  let done = 0
  const onProgress = () => options.onProgress?.({ done: ++done, total })

  const warmUp = generateLineRetrieval({ lines: kWarmUpLines, seed: seed === 0 ? 1 : 0 })
  for (const policy of policies) {
    const sequence = model.createSequence({ policy, seed })
    try {
      await sequence.prefill(encodeLineRetrieval(tokenizer, warmUp.text), { signal })
      await decode(sequence, kWarmUpTokens, signal)
    } finally {
      sequence.dispose()
    }
    onProgress()
  }

  const sequences: SubjectSequence[] = []
  try {
    const answered: Omit<DemoResult, 'decodeMsPerToken'>[] = []
    for (const policy of policies) {
      signal?.throwIfAborted()
      const sequence = model.createSequence({ policy, seed })
      sequences.push(sequence)
      const start = performance.now()
      await sequence.prefill(ids, { signal })
      const prefillMs = performance.now() - start
      onProgress()
      const answer = await answerLineRetrieval(sequence, tokenizer, prompt, signal)
      onProgress()
      const { bytes } = sequence
      answered.push({
        policy: typeof policy === 'string' ? policy : JSON.stringify(policy),
        answer,
        correct: answer === prompt.number,
        bytes,
        ratio: bytes.ratio,
        prefillMs,
      })
    }
    const times = await timeDecoding({
      sequences,
      tokens: kTimedTokens / kTimedRepeats,
      repeats: kTimedRepeats,
      signal,
      onProgress,
    })
    return {
      promptTokens: ids.length,
      question: prompt.question,
      expected: prompt.number,
      results: answered.map((result, p) => ({
        ...result,
        decodeMsPerToken: meanOf(times[p] ?? []),
      })),
    }
  } finally {
    for (const sequence of sequences) sequence.dispose()
  }
}
