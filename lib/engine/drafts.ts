import { ZipCacheError } from '../errors.js'
import type { LogitAdjuster } from './adjust-logits.js'

/** The most tokens that may be drafted: with the one before them, a step of the rows that cost least. */
export const MOST_DRAFTED = 15

/** Guesses which tokens come next, to be run through the model in one step. */
export interface Drafter {
  /** What may come next, `room` tokens at most; often none. */
  draft(room: number): Int32Array
  /** The first `nRight` of the `nDrafted` tokens that it drafted last came. */
  judge(nDrafted: number, nRight: number): void
}

/**
 * How many tokens to draft: more where all of the last ones were right, fewer where less than half was.
 * With the token before them 2, 4, 8 or 16, as many as steps are recorded for.
 */
export class DraftLength {
  value: number

  constructor(first: number) {
    this.value = first
  }

  judge(nDrafted: number, nRight: number): void {
    if (nRight === nDrafted) this.value = Math.min(2 * this.value + 1, MOST_DRAFTED)
    else if (2 * nRight < nDrafted) this.value = Math.max(1, this.value >> 1)
  }
}

/** Drafts what a constraint leaves no choice about: names and signs of JSON whose schema is known. */
export class ConstraintDrafts implements Drafter {
  readonly #adjuster: LogitAdjuster
  readonly #length = new DraftLength(MOST_DRAFTED)

  constructor(adjuster: LogitAdjuster) {
    this.#adjuster = adjuster
  }

  draft(room: number): Int32Array {
    const count = Math.min(room, this.#length.value)
    return Int32Array.from(count > 0 ? this.#likely().slice(0, count) : [])
  }

  #likely(): readonly number[] {
    try {
      return this.#adjuster.likely()
    } catch (error) {
      // A grammar that leaves too many ways open ahead: if the answer comes there, it is told then.
      if (error instanceof ZipCacheError && error.code === 'ERR_ZC_UNSUPPORTED') return []
      throw error
    }
  }

  judge(nDrafted: number, nRight: number): void {
    this.#length.judge(nDrafted, nRight)
  }
}
