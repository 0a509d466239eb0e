import type { CacheBytes } from '../engine/context.js'
import type { GeneratedToken } from '../engine/generation.js'
import type { ModelConfig } from '../model/config.js'
import type { ChatMessage } from '../model/tokenizer.js'
import type { PolicySpec } from '../policy/index.js'

/**
 * What an evaluation needs of a model. The engine's Model is one; tests bring others, without
 * native code.
 */
export interface SubjectModel {
  /** Its limits. */
  readonly config: Pick<ModelConfig, 'maxPositions' | 'vocabSize'>
  /** null: it has none, and no task can be asked. */
  readonly tokenizer: SubjectTokenizer | null
  /** An empty context. */
  createSequence(options: {
    readonly policy: PolicySpec
    readonly seed?: number | undefined
  }): SubjectSequence
}

/** What an evaluation needs of a tokenizer; `ModelTokenizer` is one. */
export interface SubjectTokenizer {
  /** Text to token ids. */
  encode(text: string, options: { readonly addSpecialTokens: boolean }): number[]
  /** Token ids to text. */
  decode(ids: Iterable<number>): string
  /** The vocabulary entry of an id; undefined where there is none. */
  token(id: number): string | undefined
  /** The id of a vocabulary entry; undefined where there is none. */
  tokenId(token: string): number | undefined
  /** Ids that have no text in answers: `<s>` and the like. */
  readonly specialIds: ReadonlySet<number>
  /** The source of the chat template, which says how thoughts are written; undefined: there is none. */
  chatTemplateSource(): string | undefined
  /** Messages as the text that the model was taught to answer. */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options: { readonly addGenerationPrompt: boolean },
  ): string
}

/** What an evaluation needs of a context; `Sequence` is one. */
export interface SubjectSequence {
  /** Tokens in the cache. */
  readonly length: number
  /** What the cache takes. */
  readonly bytes: Pick<CacheBytes, 'resident' | 'peak' | 'fp16' | 'ratio' | 'paperRatio'>
  /** Runs a prompt into the cache. */
  prefill(
    ids: ArrayLike<number>,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<void>
  /** `prefill` that returns (ids, vocab_size), row-major. */
  logits(
    ids: ArrayLike<number>,
    options: { readonly signal?: AbortSignal | undefined },
  ): Promise<Float32Array>
  /** Tokens after what was prefilled, as they are chosen. */
  generate(
    ids: null,
    options: {
      readonly maxTokens: number
      readonly temperature: number
      readonly ignoreEos?: boolean
      readonly stop?: readonly string[]
      readonly stopTokens?: readonly number[]
      readonly signal?: AbortSignal | undefined
    },
  ): AsyncGenerator<Pick<GeneratedToken, 'id' | 'text' | 'isStop'>>
  /** Lets go of the context. */
  dispose(): void
}
