import type { CacheBytes } from '../engine/context.js'
import type { ModelConfig } from '../model/config.js'
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
  tokenId(token: string): number | undefined
}

export interface SubjectSequence {
  readonly length: number
  readonly bytes: Pick<CacheBytes, 'resident' | 'peak' | 'fp16' | 'ratio'>
  prefill(
    ids: ArrayLike<number>,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<void>
  generate(
    ids: null,
    options: {
      readonly maxTokens: number
      readonly temperature: number
      readonly ignoreEos?: boolean
      readonly signal?: AbortSignal | undefined
    },
  ): AsyncGenerator<{ readonly id: number; readonly text: string }>
  dispose(): void
}
