import { ZipCacheError } from '../errors.js'
import type { ForwardModel } from '../model/forward.js'
import { Scratch } from '../model/scratch.js'
import {
  gatherRows,
  packSampleParams,
  SAMPLE_PARAMS,
  type SampleParams,
  sample,
  type Tensor,
} from '../ops/index.js'
import type { LogitAdjuster } from './adjust-logits.js'
import { MOST_DRAFTED } from './drafts.js'
import { inSlices } from './in-slices.js'
import type { Run, Sampled, Sampling } from './run.js'

/** Chooses tokens of single runs, after prompts and where logits are adjusted, and hands all tokens on. */
export class TokenChooser {
  readonly #model: ForwardModel
  /**
   * (rows, vocab_size): the tokens that contexts of runs with a repetition penalty hold, and behind
   * them those that they would hold with drafts.
   */
  readonly seen: Tensor<'u8'>
  readonly #maxRuns: number
  readonly #freeSeenRows: number[]
  /** Tokens that were sampled. */
  nDelivered = 0

  /** `maxRuns`: the most that are under way at a time. */
  constructor(model: ForwardModel, maxRuns: number) {
    this.#model = model
    this.#maxRuns = maxRuns
    this.seen = model.device.reserve('u8', [maxRuns + MOST_DRAFTED, model.config.vocabSize])
    this.#freeSeenRows = Array.from({ length: maxRuns }, (_, row) => row)
  }

  dispose(): void {
    this.seen.dispose()
  }

  /** A run is over: what it had seen is forgotten. */
  forget(run: Run): void {
    if (run.seenRow >= 0) this.#freeSeenRows.push(run.seenRow)
    run.seenRow = -1
    run.seen = null
  }

  /** A token after what the context holds. */
  async next(run: Run): Promise<Sampled> {
    const { context, sampling } = run
    const { device, config } = this.#model
    const logits = context.nextLogits
    if (!sampling || !logits) throw new ZipCacheError('ERR_ZC_INTERNAL', 'run: it has no logits')
    if (sampling.adjuster) for await (const token of this.adjusted(run, logits, 0, 1)) return token
    if (sampling.params.repetitionPenalty !== 1 && run.seenRow < 0) {
      run.seenRow = this.#freeSeenRows.pop() ?? -1
      const seen = new Uint8Array(config.vocabSize)
      for (const id of context.tokens) seen[id] = 1
      this.seen.write(seen, run.seenRow * config.vocabSize)
      run.seen = seen
    }
    const scratch = new Scratch(device)
    try {
      const params = { ...sampling.params, step: context.length }
      return await this.#choose(logits, params, run.seenRow, scratch)
    } finally {
      scratch.dispose()
    }
  }

  /**
   * Tokens of `nRows` rows of logits (rows, vocab_size), from `row` on, that are changed first: they cross
   * to JavaScript and back. Each is chosen behind the one before, when that was delivered.
   */
  async *adjusted(
    run: Run,
    logits: Tensor<'f32'>,
    row: number,
    nRows: number,
  ): AsyncGenerator<Sampled> {
    const { context, sampling } = run
    const { device, config } = this.#model
    const { params, adjuster } = sampling as Sampling & { adjuster: LogitAdjuster }
    const firstStep = context.length - (nRows - 1)
    const scratch = new Scratch(device)
    try {
      const own = scratch.tensor('f32', [nRows, config.vocabSize])
      const rows = scratch.ints(Int32Array.from({ length: nRows }, (_, i) => row + i))
      gatherRows({ x: logits, rows, out: own })
      const read = own.read()
      for (let i = 0; i < nRows; i++) {
        const [all] = await Promise.all([
          read,
          inSlices(adjuster.prepare(), () => run.throwIfFailed()),
        ])
        const values = all.subarray(i * config.vocabSize, (i + 1) * config.vocabSize)
        adjuster.adjust(values)
        own.write(values)
        const step = firstStep + i
        const one = scratch.keep(own.view([1, config.vocabSize]))
        const chosen = await this.#choose(
          one,
          { ...params, repetitionPenalty: 1, step },
          -1,
          scratch,
        )
        const top = adjuster.top(values, params)
        yield top.length > 0 ? { ...chosen, top } : chosen
      }
    } finally {
      scratch.dispose()
    }
  }

  /** The next token of one row of logits (1, vocab_size). */
  async #choose(
    logits: Tensor<'f32'>,
    params: SampleParams,
    seenRow: number,
    scratch: Scratch,
  ): Promise<Sampled> {
    const ids = scratch.tensor('i32', [1])
    const logprobs = scratch.tensor('f32', [1])
    sample({
      logits,
      params: scratch.tensor('f32', [1, SAMPLE_PARAMS]).write(packSampleParams(params)),
      seen: this.seen,
      contexts: scratch.ints(Int32Array.of(seenRow)),
      ids,
      logprobs,
    })
    const [[id], [logprob]] = await Promise.all([ids.read(), logprobs.read()])
    return { id: id as number, logprob: logprob as number }
  }

  /**
   * The row of seen tokens for the last of those that were drafted for a run, the `nth` one of a step; -1
   * without a repetition penalty.
   */
  seenWith(run: Run, drafted: Int32Array, nth: number): number {
    if (!run.seen) return -1
    const seen = run.seen.slice()
    for (const id of drafted) seen[id] = 1
    const row = this.#maxRuns + nth
    this.seen.write(seen, row * seen.length)
    return row
  }

  /** A token was right that a drafted one's row has chosen: that of the run does not know it. */
  #mark(run: Run, id: number): void {
    if (run.seen) this.seen.write(Uint8Array.of(1), run.seenRow * run.seen.length + id)
  }

  /** Gives a run its token, whoever chose it; one that is none fails the run. */
  deliver(run: Run, token: Sampled, isOfDraft = false): void {
    if (token.id < 0) {
      run.fail(
        new ZipCacheError('ERR_ZC_NUMERIC', 'logits: hold NaN or infinity, no token can be chosen'),
      )
      return
    }
    this.nDelivered++
    if (isOfDraft) this.#mark(run, token.id)
    if (run.seen) run.seen[token.id] = 1
    const adjuster = run.sampling?.adjuster
    adjuster?.accept(token.id)
    run.push(adjuster?.isDone ? { ...token, isComplete: true } : token)
  }
}
