import type { CacheBytes } from '../engine/context.js'
import type { ModelConfig } from '../model/config.js'
import type { ChatMessage } from '../model/tokenizer.js'
import type { PolicySpec } from '../policy/index.js'

/**
 * What an evaluation needs of a model. The engine's Model is one; tests bring others, without
 * native code.
 */
export interface SubjectModel {
  readonly config: Pick<ModelConfig, 'maxPositions' | 'vocabSize'>
  readonly tokenizer: SubjectTokenizer | null
  createSequence(options: {
    readonly policy: PolicySpec
    readonly seed?: number | undefined
  }): SubjectSequence
}

export interface SubjectTokenizer {
  encode(text: string, options: { readonly addSpecialTokens: boolean }): number[]
  decode(ids: Iterable<number>): string
  tokenId(token: string): number | undefined
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options: { readonly addGenerationPrompt: boolean },
  ): string
}

export interface SubjectSequence {
  readonly length: number
  readonly bytes: Pick<CacheBytes, 'resident' | 'peak' | 'fp16' | 'ratio' | 'paperRatio'>
  prefill(
    ids: ArrayLike<number>,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<void>
  /** (ids, vocab_size), row-major. */
  logits(
    ids: ArrayLike<number>,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<Float32Array>
  generate(
    ids: null,
    options: {
      readonly maxTokens: number
      readonly temperature: number
      readonly ignoreEos?: boolean
      readonly stop?: readonly string[]
      readonly signal?: AbortSignal | undefined
    },
  ): AsyncGenerator<{ readonly id: number; readonly text: string }>
  dispose(): void
}
