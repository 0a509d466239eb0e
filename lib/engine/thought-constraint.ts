import type { Steps, TokenTrie, Vocabulary } from '../grammar/index.js'
import type { TokenConstraint } from './adjust-logits.js'

/** What a model writes around what it thinks before it answers: `<think>` and `</think>`, say. */
export interface ThoughtOptions {
  /**
   * What an answer may begin with, one token of the vocabulary; left out: it begins within a thought, since
   * the prompt ends with that.
   */
  readonly open?: string | undefined
  /** What a thought ends with, of as many tokens as the model likes. */
  readonly close: string
}

/** What the constraint has to know of a model. */
export interface ThoughtVocabulary extends Vocabulary {
  /** Tokens that end an answer: no thought has them. */
  readonly endTokens: ReadonlySet<number>
}

/** White space that models put behind a thought, if it is one token of theirs. */
const GAPS = ['\n', '\n\n']
/** More than what a mark has, with white space behind it. */
const MOST_HELD = 64

/** Holds an answer to something behind what the model thinks, which may be anything, or nothing. */
export class ThoughtConstraint implements TokenConstraint {
  readonly #vocabulary: ThoughtVocabulary
  readonly #open: number | null
  readonly #close: string
  readonly #closeId: number | null
  readonly #gaps: readonly number[]
  readonly #text: TokenConstraint
  #state: 'beginning' | 'thinking' | 'behind a thought' | 'text'
  /** The newest bytes of a thought, as characters. */
  #held = ''

  /** `text`: what holds the rest. `open`: the mark's id; null where the answer begins within a thought. */
  constructor(
    { close }: ThoughtOptions,
    open: number | null,
    text: TokenConstraint,
    vocabulary: ThoughtVocabulary,
  ) {
    this.#open = open
    this.#state = open === null ? 'thinking' : 'beginning'
    this.#close = latin1(Buffer.from(close))
    this.#text = text
    this.#vocabulary = vocabulary
    this.#closeId = single(close, vocabulary)
    this.#gaps = GAPS.map((gap) => single(gap, vocabulary)).filter((id) => id !== null)
  }

  get isDone(): boolean {
    return this.#text.isDone
  }

  prepare(): Steps {
    return this.#text.prepare()
  }

  /**
   * Bans what may not come next.
   *
   * - `logits` (vocab_size), in and out
   */
  apply(logits: Float32Array): void {
    if (this.#state === 'thinking') {
      for (const id of this.#noThought()) logits[id] = Number.NEGATIVE_INFINITY
      return
    }
    const others = this.#others
    const kept = others.map((id) => logits[id] as number)
    this.#text.apply(logits)
    for (const [i, id] of others.entries()) logits[id] = kept[i] as number
  }

  /** Tokens that end the answer, and such that end the thought in their midst: the rest would be of neither. */
  *#noThought(): Generator<number> {
    const { endTokens, trie } = this.#vocabulary
    yield* endTokens
    const close = this.#close
    let nBegun = Math.min(close.length - 1, this.#held.length)
    while (!this.#held.endsWith(close.slice(0, nBegun))) nBegun--
    if (nBegun > 0) yield* endingWithin(trie, close, nBegun)
  }

  /** What may come beside the text. */
  get #others(): readonly number[] {
    if (this.#state === 'behind a thought') return this.#gaps
    return this.#state === 'beginning' && this.#open !== null ? [this.#open] : []
  }

  likely(): readonly number[] {
    return this.#state === 'text' ? this.#text.likely() : []
  }

  /** Takes note of a token that was chosen. */
  accept(id: number): void {
    if (this.#state === 'thinking') {
      this.#think(id)
      return
    }
    const isOther = this.#others.includes(id)
    if (!isOther) this.#text.accept(id)
    this.#state = isOther && id === this.#open ? 'thinking' : 'text'
  }

  #think(id: number): void {
    // A special token has no bytes.
    this.#held = (this.#held + latin1(this.#vocabulary.trie.bytesOf(id))).slice(-MOST_HELD)
    const isClosed = id === this.#closeId || this.#held.trimEnd().endsWith(this.#close)
    if (isClosed) this.#state = 'behind a thought'
  }
}

/** By vocabularies, and then by marks and how much of them was there: a hundred thousand tokens are looked at once. */
const known = new WeakMap<TokenTrie, Map<string, readonly number[]>>()

/** Tokens that end a mark, of which the first characters are there, and go on. */
function endingWithin(trie: TokenTrie, close: string, nBegun: number): readonly number[] {
  const ofTrie = known.get(trie) ?? new Map<string, readonly number[]>()
  known.set(trie, ofTrie)
  const key = `${nBegun} ${close}`
  let ids = ofTrie.get(key)
  if (!ids) {
    ids = Array.from({ length: trie.size }, (_, id) => id).filter((id) => {
      const bytes = trie.bytesOf(id)
      if (!close.includes(String.fromCharCode(bytes[0] ?? 0))) return false
      const text = close.slice(0, nBegun) + latin1(bytes)
      return text.includes(close) && !text.trimEnd().endsWith(close)
    })
    ofTrie.set(key, ids)
  }
  return ids
}

/** The only token of a text; null: it has several, or none. */
export function single(text: string, { encode }: Pick<Vocabulary, 'encode'>): number | null {
  const ids = encode(text)
  return ids.length === 1 ? (ids[0] as number) : null
}

/** Bytes as characters. */
function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('latin1')
}
