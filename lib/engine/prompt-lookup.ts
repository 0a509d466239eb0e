import { type Drafter, DraftLength } from './drafts.js'

/** A match of so many is as good as any longer one. */
export const MOST_MATCH = 8

/** Of repetitions of the newest two tokens so many are looked at, the newest ones. */
const MOST_TRIED = 128

/** How many tokens the first draft has at most. */
const FIRST_DRAFT = 3

/**
 * Drafts what comes next in a text from the text itself: where its newest tokens stood before, what
 * followed them then; or, where they stood nowhere, what comes next in the text of a draft that was right
 * in part: one token may have been another.
 *
 * Source: prompt lookup decoding (A. Saxena, 2023), a form of speculative decoding (Leviathan et al.,
 * arXiv 2211.17192) without a second model.
 */
export class PromptLookup implements Drafter {
  /** The most tokens of a draft. */
  readonly #most: number
  readonly #draftLength = new DraftLength(FIRST_DRAFT)
  #tokens = new Int32Array(0)
  /** Where two tokens of one hash stood last, by hash, and before that, by place; -1: nowhere. */
  #heads = new Int32Array(0)
  #before = new Int32Array(0)
  #length = 0
  /** Of a hash of 32 bits, what is not looked at. */
  #shift = 0
  /** Where the text of the last draft goes on; -1: drafts of it were wrong. */
  #goesOn = -1
  /** Drafts without a right token, one after the other. */
  #nWrong = 0

  constructor(tokens: readonly number[], most: number) {
    this.#most = most
    this.#grow(tokens.length + 256)
    for (const id of tokens) this.push(id)
  }

  /** The text goes on with this token. */
  push(id: number): void {
    if (this.#length === this.#tokens.length) this.#grow(2 * this.#length)
    this.#tokens[this.#length++] = id
    this.#note(this.#length - 1)
    if (this.#goesOn >= 0) this.#goesOn++
  }

  /** What may come next, `room` tokens at most; none where nothing like it was there before. */
  draft(room: number): Int32Array {
    const count = Math.min(room, this.#draftLength.value, this.#most)
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
    this.#draftLength.judge(nDrafted, nRight)
  }

  /** What is behind the longest repetition of the newest tokens, two at least; -1: there is none. */
  #longestMatch(): number {
    const tokens = this.#tokens
    const last = this.#length - 1
    let best = -1
    let longest = 0
    let nTried = 0
    let end = this.#before[last] ?? -1
    while (end >= 0 && longest < MOST_MATCH && nTried < MOST_TRIED) {
      let n = 0
      while (n < MOST_MATCH && n <= end && tokens[end - n] === tokens[last - n]) n++
      if (n > 1) nTried++ // else others of the same hash
      if (n > 1 && n > longest) {
        longest = n
        best = end + 1
      }
      end = this.#before[end] as number
    }
    return best
  }

  /** Makes the tokens at `end` and in front of it found. */
  #note(end: number): void {
    if (end === 0) {
      this.#before[end] = -1
      return
    }
    const [a, b] = [this.#tokens[end - 1] as number, this.#tokens[end] as number]
    const hash = Math.imul(Math.imul(a, 0x9e3779b1) + b, 0x85ebca6b) >>> this.#shift
    this.#before[end] = this.#heads[hash] as number
    this.#heads[hash] = end
  }

  #grow(capacity: number): void {
    const tokens = new Int32Array(capacity)
    tokens.set(this.#tokens)
    this.#tokens = tokens
    this.#shift = Math.clz32(capacity) // as many hashes as tokens, about
    this.#heads = new Int32Array(2 ** (32 - this.#shift)).fill(-1)
    this.#before = new Int32Array(capacity)
    for (let end = 0; end < this.#length; end++) this.#note(end)
  }
}
