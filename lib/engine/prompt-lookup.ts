/** The most tokens that may be drafted: with the one before them, a step of the rows that cost least. */
export const MOST_DRAFTED = 15

/** The fewest tokens that have to repeat before what followed them is drafted. */
const LEAST_MATCH = 2

/** A match of so many is as good as any longer one. */
export const MOST_MATCH = 8

/** How many tokens the first draft has at most. */
const FIRST_DRAFT = 3

/**
 * Drafts what comes next in a text from the text itself: where its newest tokens stood before, what
 * followed them then; or, where they stood nowhere, what comes next in the text of a draft that was right
 * in part: one token may have been another. Drafts become longer where all of the last one was right, and shorter
 * where less than half was: with the token before them 2, 4, 8 or 16, as many as steps are recorded for.
 *
 * Source: prompt lookup decoding (A. Saxena, 2023), a form of speculative decoding (Leviathan et al.,
 * arXiv 2211.17192) without a second model.
 */
export class PromptLookup {
  /** The most tokens of a draft. */
  readonly #most: number
  #next = FIRST_DRAFT
  #tokens: Int32Array
  #length: number
  /** Where the text of the last draft goes on; -1: drafts of it were wrong. */
  #goesOn = -1
  /** Drafts without a right token, one after the other. */
  #nWrong = 0

  constructor(tokens: readonly number[], most: number) {
    this.#most = most
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
    if (this.#goesOn >= 0) this.#goesOn++
  }

  /** What may come next, `room` tokens at most; none where nothing like it was there before. */
  draft(room: number): Int32Array {
    const count = Math.min(room, this.#next, this.#most)
    if (count <= 0) return new Int32Array(0)
    const match = this.#longestMatch()
    const start = match >= 0 ? match : this.#goesOn
    if (start < 0) return new Int32Array(0)
    this.#goesOn = start
    const period = this.#length - start
    const drafted = new Int32Array(count)
    for (let i = 0; i < count; i++) {
      // Beyond the end a text that repeats itself is taken to do so again.
      drafted[i] =
        i < period ? (this.#tokens[start + i] as number) : (drafted[i - period] as number)
    }
    return drafted
  }

  /** The first `nRight` of `nDrafted` tokens came. */
  judge(nDrafted: number, nRight: number): void {
    this.#nWrong = nRight === 0 ? this.#nWrong + 1 : 0
    if (this.#nWrong > 1) this.#goesOn = -1
    if (nRight === nDrafted) this.#next = Math.min(2 * this.#next + 1, MOST_DRAFTED)
    else if (2 * nRight < nDrafted) this.#next = Math.max(1, this.#next >> 1)
  }

  /** What is behind the longest repetition of the newest tokens, the newest of several; -1: none is. */
  #longestMatch(): number {
    const tokens = this.#tokens
    const last = this.#length - 1
    let best = -1
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
