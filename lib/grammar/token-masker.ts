import { ZipCacheError } from '../errors.js'
import type { Grammar, StateSet } from './automaton.js'

interface Node {
  readonly children: Map<number, Node>
  /** Tokens whose bytes end here. */
  readonly ids: number[]
}

/** The tokens of a vocabulary, by their bytes. */
export class TokenTrie {
  readonly root: Node = { children: new Map(), ids: [] }
  readonly bytes: readonly (Uint8Array | null)[]

  /** `bytes`: of each token; null for those that are no text, which no grammar allows. */
  constructor(bytes: readonly (Uint8Array | null)[]) {
    this.bytes = bytes
    for (const [id, token] of bytes.entries()) {
      if (token === null || token.length === 0) continue
      let node = this.root
      for (const byte of token) {
        let child = node.children.get(byte)
        if (!child) {
          child = { children: new Map(), ids: [] }
          node.children.set(byte, child)
        }
        node = child
      }
      node.ids.push(id)
    }
  }
}

/** States whose tokens are remembered: 16 KiB each with a vocabulary of 128k. */
const MAX_MASKS = 512

/**
 * Holds a text to a grammar, token by token: a `TokenConstraint`. Which tokens a state allows is
 * found by walking the trie as far as the grammar goes, and remembered.
 */
export class TokenMasker {
  readonly #vocabulary: TokenTrie
  readonly #endTokens: ReadonlySet<number>
  readonly #masks = new Map<StateSet, Uint8Array>()
  #state: StateSet

  /** `endTokens`: those that end a text; allowed where the text may end. */
  constructor(grammar: Grammar, vocabulary: TokenTrie, endTokens: ReadonlySet<number>) {
    this.#state = grammar.start
    this.#vocabulary = vocabulary
    this.#endTokens = endTokens
  }

  /** Whether the text is complete and nothing can follow. */
  get isDone(): boolean {
    return this.#state.isAccepting && this.#state.isFinal
  }

  /**
   * Bans what may not come next.
   *
   * - `logits` (vocab_size), in and out
   *
   * Throws `ERR_ZC_UNSUPPORTED` when no token of the vocabulary goes on.
   */
  apply(logits: Float32Array): void {
    const allowed = this.#allowed()
    let isStuck = true
    for (let id = 0; id < logits.length; id++) {
      if (allowed[id >> 3]! & (1 << (id & 7))) isStuck = false
      else logits[id] = Number.NEGATIVE_INFINITY
    }
    if (!isStuck) return
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      'json: the vocabulary of this model has no token that goes on with the JSON asked for',
      { argument: 'json' },
    )
  }

  /** Takes note of a token that was chosen. */
  accept(id: number): void {
    if (this.#endTokens.has(id)) return
    let state: StateSet | null = this.#state
    for (const byte of this.#vocabulary.bytes[id] ?? []) state = state?.next(byte) ?? null
    if (!state) {
      throw new ZipCacheError('ERR_ZC_INTERNAL', `json: token ${id} was chosen, but is not allowed`)
    }
    this.#state = state
  }

  /** One bit a token. */
  #allowed(): Uint8Array {
    const state = this.#state
    let mask = this.#masks.get(state)
    if (mask) return mask
    mask = new Uint8Array(Math.ceil(this.#vocabulary.bytes.length / 8))
    mark(this.#vocabulary.root, state, mask)
    if (state.isAccepting) for (const id of this.#endTokens) set(mask, id)
    if (this.#masks.size >= MAX_MASKS) this.#masks.clear()
    this.#masks.set(state, mask)
    return mask
  }
}

function mark(node: Node, state: StateSet, mask: Uint8Array): void {
  for (const id of node.ids) set(mask, id)
  for (const [byte, child] of node.children) {
    const next = state.next(byte)
    if (next) mark(child, next, mask)
  }
}

function set(mask: Uint8Array, id: number): void {
  mask[id >> 3] = (mask[id >> 3] ?? 0) | (1 << (id & 7))
}
