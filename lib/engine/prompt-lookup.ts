/** The most tokens that may be drafted: with the one before them, a step of the rows that cost least. */
export const MOST_DRAFTED = 15

/** The fewest tokens that have to repeat before what followed them is drafted. */
const LEAST_MATCH = 2

/** A match of so many is as good as any longer one. */
export const MOST_MATCH = 8

/** How many tokens the first draft has at most. */
const FIRST_DRAFT = 4

/**
 * Drafts what comes next in a text from the text itself: where its newest tokens stood before, what
 * followed them then. Drafts are as long as they have been right: one more than the right part of the
 * last one, or twice as long, if all of it was.
 *
 * Source: prompt lookup decoding (A. Saxena, 2023), a form of speculative decoding (Leviathan et al.,
 * arXiv 2211.17192) without a second model.
 */
export class PromptLookup {
  /** The most tokens of a draft. */
  readonly #most: number
  #next: number
  #tokens: Int32Array
  #length: number

  constructor(tokens: readonly number[], most: number) {
    this.#most = most
    this.#next = Math.min(most, FIRST_DRAFT)
    this.#tokens = new Int32Array(tokens.length + 256)
    this.#tokens.set(tokens)
    this.#length = tokens.length
  }

  /** The text goes on with this token. */
  push(id: number): void {
    if (this.#length === this.#tokens.length) {
      const grown = new Int32Array(2 * this.#length)
      grown.set(this.#tokens)
      this.#tokens = grown
    }
    this.#tokens[this.#length++] = id
  }

  /** What may come next, `room` tokens at most; none where nothing like it was there before. */
  draft(room: number): Int32Array {
    const count = Math.min(room, this.#next)
    const period = count > 0 ? this.#length - this.#longestMatch() : 0
    if (period <= 0) return new Int32Array(0)
    const drafted = new Int32Array(count)
    for (let i = 0; i < count; i++) {
      // Beyond the end a text that repeats itself is taken to do so again.
      drafted[i] =
        i < period
          ? (this.#tokens[this.#length - period + i] as number)
          : (drafted[i - period] as number)
    }
    return drafted
  }

  /** The first `nRight` of `nDrafted` tokens came. */
  judge(nDrafted: number, nRight: number): void {
    this.#next = Math.min(this.#most, nRight === nDrafted ? 2 * this.#next : nRight + 1)
  }

  /** Where the longest repetition of the newest tokens ends, the newest of several; `#length` for none. */
  #longestMatch(): number {
    const tokens = this.#tokens
    const last = this.#length - 1
    let best = this.#length
    let longest = LEAST_MATCH - 1
    for (let end = last - 1; end >= longest && longest < MOST_MATCH; end--) {
      let n = 0
      while (n < MOST_MATCH && n <= end && tokens[end - n] === tokens[last - n]) n++
      if (n > longest) {
        longest = n
        best = end + 1
      }
    }
    return best
  }
}
