import { ZipCacheError } from '../errors.js'
import type { GrammarState } from './automaton.js'
import { gemmaText } from './gemma-notation.js'
import { JsonLayout } from './json-layout.js'
import type { Steps, TokenTrie } from './token-trie.js'

/** The tokens of a model. */
export interface Vocabulary {
  readonly trie: TokenTrie
  /** The tokens of a text, special ones as they are written. */
  encode(text: string): readonly number[]
}

/** Bytes of a text that are looked for at most: names and signs between two values. */
const MOST_BYTES = 96
/** Tokens in front of a text that it is parted with. */
const TOKENS_BEFORE = 4

/**
 * Holds a text to a grammar, token by token: a `TokenConstraint`. Which tokens a state allows is
 * found by walking the trie as far as the grammar goes, and remembered there.
 */
export class TokenMasker {
  readonly #trie: TokenTrie
  readonly #encode: Vocabulary['encode']
  readonly #endTokens: readonly number[]
  #state: GrammarState
  /** What the state allows, once that is known. */
  #allowed: Uint8Array | null = null
  /** null: there is no white space. */
  readonly #layout: JsonLayout | null
  /** The newest tokens. */
  readonly #newest: number[] = []

  /**
   * `start`: where a text begins. `endTokens`: those that end a text; allowed where the text may end. `layout`:
   * which white space is likely; null: there is none.
   */
  constructor(
    { start }: { readonly start: GrammarState },
    { trie, encode }: Vocabulary,
    endTokens: ReadonlySet<number>,
    layout: JsonLayout | null = new JsonLayout(),
  ) {
    this.#state = start
    this.#layout = layout
    this.#trie = trie
    this.#encode = encode
    this.#endTokens = [...endTokens]
  }

  /** Whether the text is complete and nothing can follow. */
  get isDone(): boolean {
    return isComplete(this.#state)
  }

  /** Finds out which tokens may come next: what `apply` does at once otherwise. */
  *prepare(): Steps {
    this.#allowed ??= yield* this.#trie.mask(this.#state)
  }

  /**
   * Bans what may not come next.
   *
   * - `logits` (vocab_size), in and out
   *
   * Throws `ERR_ZC_UNSUPPORTED` when no token of the vocabulary goes on.
   */
  apply(logits: Float32Array): void {
    this.#allowed ??= atOnce(this.#trie.mask(this.#state))
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
    let state: GrammarState | null = this.#state
    for (const byte of this.#trie.bytesOf(id)) {
      state = state?.next(byte) ?? null
      this.#layout?.push(byte)
    }
    if (!state) {
      throw new ZipCacheError('ERR_ZC_INTERNAL', `json: token ${id} was chosen, but is not allowed`)
    }
    this.#state = state
    this.#allowed = null
    this.#newest.push(id)
    if (this.#newest.length > TOKENS_BEFORE) this.#newest.shift()
  }

  /**
   * The tokens that come next where the grammar leaves no choice, but for white space, which is taken to
   * go on as it was; without the one that ends the text. The model may part it in another way.
   */
  likely(): readonly number[] {
    const { text, isEnd } = this.#likelyText()
    if (text.length === 0) return []
    const before = Buffer.concat(this.#newest.map((id) => this.#trie.bytesOf(id)))
    let ids = this.#spelled(before, text)
    if (ids.length === 0) ids = this.#spelled(Buffer.alloc(0), text)
    // What is cut within a name is mostly not where a token ends.
    return isEnd || text.length >= MOST_BYTES ? ids.slice(0, -1) : ids
  }

  #likelyText(): { text: Buffer; isEnd: boolean } {
    const layout = this.#layout?.copy()
    const bytes: number[] = []
    let state = this.#state
    while (bytes.length < MOST_BYTES && state.onlyByte !== null) {
      const added = [...Buffer.from(layout?.before(state.onlyByte) ?? ''), state.onlyByte]
      let next: GrammarState | null = state
      for (const byte of added) {
        next = next?.next(byte) ?? null
        layout?.push(byte)
      }
      if (!next) break
      state = next
      bytes.push(...added)
    }
    return { text: Buffer.from(bytes), isEnd: isComplete(state) }
  }

  /** What the tokenizer makes of a text behind another one; none where it parts them elsewhere. */
  #spelled(before: Uint8Array, text: Buffer): readonly number[] {
    const ids = this.#encode(gemmaText(Buffer.concat([before, text])))
    // From the end: some tokenizers put a space in front.
    let nLeft = text.length
    let first = ids.length
    while (nLeft > 0 && first > 0) nLeft -= this.#trie.bytesOf(ids[--first] as number).length
    return nLeft === 0 ? ids.slice(first) : []
  }
}

const isComplete = (state: GrammarState) => state.isAccepting && state.isFinal

function atOnce<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
  }
}
