import type { Tensor } from '../ops/index.js'

/** Tells a record the scores of one layer or several, (n_layers * n_kv_heads, n_tokens) f32. */
export type ScoreWatcher = (scores: Tensor<'f32'>) => void

/** The tokens of one compression. */
interface ScoredGroup {
  readonly start: number
  readonly nTokens: number
  /** Sums over all layers and KV heads that were read. */
  readonly sums: Float64Array
  nRows: number
  /** Ends when all scores have been read. */
  done: Promise<void>
}

/**
 * What tokens scored when they were compressed. A cache keeps no scores; whoever wants to see them
 * has them copied here, a mean over layers and KV heads for each token.
 */
export class SaliencyRecord {
  #groups: ScoredGroup[] = []

  /** Begins a compression of `nTokens` tokens; one that was begun there before has come to nothing. */
  begin(start: number, nTokens: number): ScoreWatcher {
    this.#groups = this.#groups.filter((other) => other.start < start)
    const sums = new Float64Array(nTokens)
    const group: ScoredGroup = { start, nTokens, sums, nRows: 0, done: Promise.resolve() }
    this.#groups.push(group)
    return (scores) => {
      const read = scores.read() // enqueued before other layers' take their place
      group.done = Promise.all([group.done, read]).then(([, values]) => {
        values.forEach((value, i) => {
          sums[i % nTokens] = (sums[i % nTokens] as number) + value
        })
        group.nRows += values.length / nTokens
      })
      group.done.catch(() => {}) // told by `means`
    }
  }

  /**
   * The mean score of each of the first `length` tokens; NaN for those without. The first
   * `nCompressed` are compressed: what was begun behind them has not come to an end, or never will.
   *
   * Rejects when the device failed.
   */
  async means(length: number, nCompressed: number): Promise<Float32Array> {
    const means = new Float32Array(length).fill(Number.NaN)
    const groups = this.#groups.filter(({ start }) => start < nCompressed)
    await Promise.all(groups.map(({ done }) => done))
    for (const { start, sums, nRows } of groups) {
      if (nRows === 0) continue
      sums.forEach((sum, i) => {
        if (start + i < length) means[start + i] = sum / nRows
      })
    }
    return means
  }

  /** A record that goes on from here by itself. */
  fork(): SaliencyRecord {
    const copy = new SaliencyRecord()
    copy.#groups = [...this.#groups] // finished ones never change
    return copy
  }
}
