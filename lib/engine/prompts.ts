import type { Run } from './run.js'
import type { Slices } from './slices.js'
import type { TokenChooser } from './token-chooser.js'

/** Runs prompts, slice by slice, and chooses the first token behind each. */
export class Prompts {
  readonly #slices: Slices
  readonly #chooser: TokenChooser
  /** Told when a run is ready for decode steps, or is over. */
  readonly #wake: () => void
  /** Tokens of prompts that were run. */
  nTokens = 0

  constructor(slices: Slices, chooser: TokenChooser, wake: () => void) {
    this.#slices = slices
    this.#chooser = chooser
    this.#wake = wake
  }

  /** Takes a run from its prompt to its first token; whoever waits for it is told of an error. */
  async start(run: Run): Promise<void> {
    const { context, ids, sampling, places } = run
    run.phase = 'prefill'
    let isDecoding = false
    try {
      if (ids.length > 0) {
        const slicing = this.#slices.of(run)
        const { inspect } = run
        let done = 0
        for (const { nBehind, reached } of places) {
          const turn = ids.subarray(done, ids.length - nBehind)
          if (turn.length > 0) await context.prefill(turn, slicing)
          done += turn.length
          run.throwIfFailed() // one that was given up meanwhile has reached nothing
          reached()
        }
        const last = ids.subarray(done)
        if (last.length > 0) {
          await context.prefill(last, slicing, inspect && ((x) => inspect(x, slicing.turn)))
        }
        this.nTokens += ids.length
      }
      if (sampling && sampling.maxTokens > 0) {
        const room = run.maxLength - context.length
        run.limit = Math.min(sampling.maxTokens, Math.max(1, room))
        sampling.adjuster?.begin(context.tokens)
        const first = await this.#chooser.next(run)
        run.throwIfFailed()
        run.phase = 'decode'
        isDecoding = true
        this.#chooser.deliver(run, first)
      }
    } catch (error) {
      run.fail(error)
    } finally {
      if (!isDecoding) {
        run.close(0)
        run.settle()
      }
      this.#wake()
    }
  }
}
