import { ZipCacheError } from '../errors.js'
import type { Grammar, StateSet } from './automaton.js'
import type { Steps, TokenTrie } from './token-trie.js'

/**
 * Holds a text to a grammar, token by token: a `TokenConstraint`. Which tokens a state allows is
 * found by walking the trie as far as the grammar goes, and remembered there.
 */
export class TokenMasker {
  readonly #vocabulary: TokenTrie
  readonly #endTokens: readonly number[]
  #state: StateSet
  /** What the state allows, once that is known. */
  #allowed: Uint8Array | null = null

  /** `endTokens`: those that end a text; allowed where the text may end. */
  constructor(grammar: Grammar, vocabulary: TokenTrie, endTokens: ReadonlySet<number>) {
    this.#state = grammar.start
    this.#vocabulary = vocabulary
    this.#endTokens = [...endTokens]
  }

  /** Whether the text is complete and nothing can follow. */
  get isDone(): boolean {
    return this.#state.isAccepting && this.#state.isFinal
  }

  /** Finds out which tokens may come next: what `apply` does at once otherwise. */
  *prepare(): Steps {
    this.#allowed ??= yield* this.#vocabulary.mask(this.#state)
  }

  /**
   * Bans what may not come next.
   *
   * - `logits` (vocab_size), in and out
   *
   * Throws `ERR_ZC_UNSUPPORTED` when no token of the vocabulary goes on.
   */
  apply(logits: Float32Array): void {
    this.#allowed ??= atOnce(this.#vocabulary.mask(this.#state))
    const allowed = this.#allowed
    const endTokens = this.#state.isAccepting ? this.#endTokens : []
    const ends = endTokens.map((id) => logits[id] as number)
    let isStuck = endTokens.length === 0
    for (let id = 0; id < logits.length; id++) {
      if ((allowed[id >> 3] as number) & (1 << (id & 7))) isStuck = false
      else logits[id] = Number.NEGATIVE_INFINITY
    }
    for (const [i, id] of endTokens.entries()) logits[id] = ends[i] as number
    if (!isStuck) return
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      'json: the vocabulary of this model has no token that goes on with the JSON asked for',
      { argument: 'json' },
    )
  }

  /** Takes note of a token that was chosen. */
  accept(id: number): void {
    if (this.#endTokens.includes(id)) return
    let state: StateSet | null = this.#state
    for (const byte of this.#vocabulary.bytesOf(id)) state = state?.next(byte) ?? null
    if (!state) {
      throw new ZipCacheError('ERR_ZC_INTERNAL', `json: token ${id} was chosen, but is not allowed`)
    }
    this.#state = state
    this.#allowed = null
  }
}

function atOnce<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
  }
}
