import { ZipCacheError } from '../errors.js'
import {
  gemmaCalls,
  type JsonSchema,
  type Steps,
  TokenMasker,
  type Vocabulary,
} from '../grammar/index.js'
import type { GemmaMarks } from '../model/gemma-marks.js'
import type { TokenConstraint } from './adjust-logits.js'

/** What the constraint has to know of a model. */
export interface GemmaVocabulary extends Vocabulary {
  readonly marks: GemmaMarks
}

/**
 * Holds an answer to one call as Gemma 4 writes it, of one of some functions:
 * `<|tool_call>call:NAME{KEY:VALUE,…}<tool_call|>`.
 */
export class GemmaConstraint implements TokenConstraint {
  readonly #marks: GemmaMarks
  readonly #call: TokenMasker
  #state: 'beginning' | 'call' | 'done' = 'beginning'

  /**
   * `calls`: the functions, and what their arguments have to be.
   *
   * Throws `ERR_ZC_ARGUMENT` and `ERR_ZC_UNSUPPORTED` as `jsonGrammar`.
   */
  constructor(
    calls: Readonly<Record<string, true | JsonSchema>>,
    { marks, ...vocabulary }: GemmaVocabulary,
  ) {
    this.#marks = marks
    const start = gemmaCalls(calls)
    this.#call = new TokenMasker({ start }, vocabulary, new Set([marks.close]), null)
  }

  get isDone(): boolean {
    return this.#state === 'done'
  }

  *prepare(): Steps {
    if (this.#state === 'call') yield* this.#call.prepare()
  }

  /**
   * Bans what may not come next.
   *
   * - `logits` (vocab_size), in and out
   */
  apply(logits: Float32Array): void {
    if (this.#state === 'call') {
      this.#call.apply(logits)
      return
    }
    const { open } = this.#marks
    const kept = logits[open] as number
    logits.fill(Number.NEGATIVE_INFINITY)
    logits[open] = kept
  }

  likely(): readonly number[] {
    const { open, close } = this.#marks
    if (this.#state === 'beginning') return [open, ...this.#call.likely()]
    return this.#call.isDone ? [close] : this.#call.likely()
  }

  /** Takes note of a token that was chosen. */
  accept(id: number): void {
    const { open, close } = this.#marks
    if (this.#state === 'call') {
      this.#call.accept(id)
      if (id === close) this.#state = 'done'
    } else if (this.#state === 'beginning' && id === open) this.#state = 'call'
    else
      throw new ZipCacheError(
        'ERR_ZC_INTERNAL',
        `gemma: token ${id} was chosen, but is not allowed`,
      )
  }
}
