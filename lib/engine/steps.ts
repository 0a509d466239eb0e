import type { CacheMemory } from '../cache/index.js'
import type { ForwardModel } from '../model/forward.js'
import type { Device, Tensor } from '../ops/index.js'
import { DecodeStep, type StepResult, type StepRow } from './decode-step.js'
import type { Run, Sampling } from './run.js'
import type { Slices } from './slices.js'
import type { TokenChooser } from './token-chooser.js'

/** A step that was enqueued, for `Steps.finish`. */
export interface Step {
  readonly runs: readonly Run[]
  readonly result: Promise<StepResult>
}

/** A run whose next token can be decoded. */
interface Ready {
  readonly run: Run
  readonly sampling: Sampling
}

/** Decode steps: puts their rows together, and tells the runs what came of them. */
export class Steps {
  readonly #device: Device
  readonly #step: DecodeStep
  readonly #slices: Slices
  readonly #chooser: TokenChooser
  /** Told when a token that was decoded by itself is there. */
  readonly #wake: () => void
  readonly counters = { steps: 0, narrowedSteps: 0, windowsClosed: 0 }

  constructor(
    { model, memory, maxBatch }: { model: ForwardModel; memory: CacheMemory; maxBatch: number },
    slices: Slices,
    chooser: TokenChooser,
    wake: () => void,
  ) {
    this.#device = model.device
    this.#step = new DecodeStep(model, memory, maxBatch, chooser.seen)
    this.#slices = slices
    this.#chooser = chooser
    this.#wake = wake
  }

  dispose(): void {
    this.#step.dispose()
  }

  /** Bytes of the work space. */
  get bytes(): number {
    return this.#step.bytes
  }

  /**
   * Enqueues a step for all runs that can take one; null where there is none. Where there is no memory
   * for all, those that it takes go behind the others in `active`.
   */
  enqueue(active: Set<Run>): Step | null {
    const rows: StepRow[] = []
    const runs: Run[] = []
    const closing: Run[] = []
    for (const { run, sampling } of this.#nextRows(active)) {
      const { context, known, fed, seenRow } = run
      const closes = context.closesNext
      const isKnown = fed < known.length
      try {
        const place = context.extend(sampling.stopTexts.length > 0)
        rows.push({
          ...place,
          source: isKnown ? -1 : run.row,
          token: isKnown ? (known[fed] as number) : 0,
          // What the step chooses for a run whose logits are adjusted is not its token.
          context: sampling.adjuster ? -1 : seenRow,
          params: { ...sampling.params, step: place.position + 1 },
        })
        runs.push(run)
        if (closes) closing.push(run)
      } catch (error) {
        // Running ahead may have to wait for memory; a token that somebody waits for may not.
        if (run.mustFeed) run.fail(error)
      }
    }
    for (const run of active) run.row = -1
    if (runs.length === 0) return null
    for (const run of runs) run.fed++
    try {
      const { result, logits } = this.#step.run(rows)
      this.counters.steps++
      result.catch(() => {}) // read one step later
      runs.forEach((run, row) => {
        run.row = row
      })
      for (const run of runs) if (run.sampling?.adjuster) void this.#deliverAdjusted(run, logits)
      for (const run of closing) this.#closeWindow(run, logits)
      return { runs, result }
    } catch (error) {
      for (const run of runs) run.fail(error)
      return null
    }
  }

  /** The runs whose next token a step can take. Where there is no memory for all, they take turns. */
  #nextRows(active: Set<Run>): Ready[] {
    const ready: Ready[] = []
    for (const run of active) {
      const { sampling } = run
      if (!run.canFeed || !sampling) continue
      if (!run.context.rows) ready.push({ run, sampling })
      else if (!run.isFeeding) void this.#feedRow(run)
    }
    if (ready.length === 0) return ready
    try {
      const room = this.#step.roomFor(ready.length)
      if (room === ready.length) return ready
      this.counters.narrowedSteps++
      const taken = ready.slice(0, room)
      for (const { run } of taken) {
        active.delete(run)
        active.add(run) // behind those that wait
      }
      return taken
    } catch (error) {
      for (const { run } of ready) if (run.mustFeed) run.fail(error)
      return []
    }
  }

  /** Decodes one token by itself: rows of a row store are in no batch. */
  async #feedRow(run: Run): Promise<void> {
    run.isFeeding = true
    try {
      const { context } = run
      const id = run.known[run.fed] as number
      await context.feedRow(id, this.#slices.of(run))
      if (run.ended) {
        // Given up at the last moment: the token is in the cache all the same.
        context.tokens.push(id)
        context.pending = null
      } else {
        run.fed++
      }
      run.throwIfFailed()
      this.counters.steps++
      const sampled = await this.#chooser.next(run)
      if (!run.ended) this.#chooser.deliver(run, sampled)
    } catch (error) {
      run.fail(error)
    } finally {
      run.isFeeding = false
      if (run.ended) run.settle()
    }
    this.#wake()
  }

  #closeWindow(run: Run, logits: Tensor<'f32'>): void {
    const { context } = run
    let isClosed = false
    try {
      context.keepLogits(logits, run.row)
      context.closeWindow()
      isClosed = true
      this.counters.windowsClosed++
    } catch (error) {
      // The window stays open, without its last token.
      context.forgetLogits()
      run.retract(1)
      run.fail(error)
    }
    // What fails on the device is told here: the next step is that of others, too.
    this.#device.sync().catch((error) => {
      if (!isClosed) return // told already
      context.failure ??= error
      run.fail(error)
    })
  }

  async #deliverAdjusted(run: Run, logits: Tensor<'f32'>): Promise<void> {
    try {
      const token = await this.#chooser.adjusted(run, logits, run.row)
      if (!run.ended) this.#chooser.deliver(run, token)
    } catch (error) {
      run.fail(error)
    }
  }

  /** Waits for a step, and gives its tokens to those runs that are still there. */
  async finish({ runs, result }: Step): Promise<void> {
    let chosen: StepResult
    try {
      chosen = await result
    } catch (error) {
      for (const run of runs) {
        // What the step has written is unknown.
        run.context.failure ??= error
        run.fail(error)
      }
      return
    }
    runs.forEach((run, row) => {
      if (run.ended || run.sampling?.adjuster) return
      const id = chosen.ids[row] as number
      this.#chooser.deliver(run, { id, logprob: chosen.logprobs[row] as number })
    })
  }
}
