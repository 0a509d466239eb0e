import type { CacheDemand, CacheMemory } from '../cache/index.js'
import type { ForwardModel } from '../model/forward.js'
import { deferred } from './abort.js'
import { Admission, type AdmissionLimits } from './admission.js'
import { Prompts } from './prompts.js'
import { disposedError } from './refusals.js'
import type { Run } from './run.js'
import { Slices } from './slices.js'
import { type Step, Steps } from './steps.js'
import { TokenChooser } from './token-chooser.js'

/** What was done so far. */
export interface SchedulerCounters {
  /** Tokens of prompts that were run. */
  promptTokens: number
  /** Tokens that were sampled. */
  generatedTokens: number
  /** Decode steps, each for all sequences of its batch. */
  steps: number
  /** Those of them that left sequences for the next, since there was no memory for more rows. */
  narrowedSteps: number
  /** Windows that were compressed. */
  windowsClosed: number
  /** Tokens that were drafted and tried (`promptLookup`). */
  draftTokens: number
  /** Those of them that the model chose, too. */
  acceptedTokens: number
}

/**
 * Continuous batching over one stream: runs join and leave between decode steps, and prompts are
 * interleaved with steps slice by slice, in turn.
 *
 * A step is enqueued before the result of the last one is read: sampled tokens feed the next step on
 * the device, JavaScript sees them one step behind. Where every token changes a state no run is ahead of its
 * tokens, and a step is read before the next one is put together: else runs would wait in turn, each half of
 * them for a step of the other, which takes about as long as one of all.
 */
export class Scheduler {
  readonly #admission: Admission
  readonly #chooser: TokenChooser
  readonly #slices: Slices
  readonly #prompts: Prompts
  readonly #steps: Steps
  /** Whether a step may be enqueued before the last one's tokens are known. */
  readonly #runsAhead: boolean
  #wakeUp: (() => void) | null = null
  #isAwake = false
  #stopped = false
  readonly #loopEnded = deferred()

  /** `reclaim` frees memory that nobody needs at once, and says whether it freed any. */
  constructor(
    model: ForwardModel,
    memory: CacheMemory,
    limits: AdmissionLimits,
    reclaim: () => boolean,
  ) {
    const { maxBatch } = limits
    this.#runsAhead = model.config.recurrence === null
    this.#admission = new Admission(memory, limits, reclaim)
    this.#chooser = new TokenChooser(model, maxBatch)
    this.#slices = new Slices(model.device, this.wake)
    this.#prompts = new Prompts(this.#slices, this.#chooser, this.wake)
    try {
      const engine = { model, memory, maxBatch }
      this.#steps = new Steps(engine, this.#slices, this.#chooser, this.wake)
    } catch (error) {
      this.#chooser.dispose()
      throw error
    }
    void this.#loop()
  }

  /** Runs by phase. */
  get counts(): { queued: number; prefilling: number; decoding: number } {
    return this.#admission.counts
  }

  get counters(): SchedulerCounters {
    return {
      promptTokens: this.#prompts.nTokens,
      generatedTokens: this.#chooser.nDelivered,
      ...this.#steps.counters,
    }
  }

  /** Bytes of the decode steps' work space. */
  get stepBytes(): number {
    return this.#steps.bytes
  }

  readonly wake = (): void => {
    this.#isAwake = true
    this.#wakeUp?.()
  }

  /** Begins a run, or puts it into the queue. Throws `ERR_ZC_BUSY` when that is full. */
  submit(run: Run): void {
    if (this.#stopped) throw disposedError('engine')
    this.#admission.enqueue(run)
    this.#admit()
    this.#admission.refuseSurplus()
    this.wake()
  }

  /** As `Admission.keepsPromises`. */
  keepsPromises(): boolean {
    return this.#admission.keepsPromises()
  }

  /** As `Admission.reserve`. */
  reserve(add: (demand: CacheDemand) => void): void {
    this.#admission.reserve(add)
  }

  /** Gives up all runs, and resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    if (!this.#stopped) {
      this.#stopped = true
      const { runs } = this.#admission
      for (const run of runs) run.fail(disposedError('engine'))
      await Promise.all(runs.map((run) => run.settled))
      this.wake()
    }
    await this.#loopEnded.promise
  }

  async #loop(): Promise<void> {
    const { active } = this.#admission
    let inFlight: Step | null = null
    while (!this.#stopped || inFlight || active.size > 0) {
      this.#isAwake = false
      this.#admit()
      const step: Step | null = this.#steps.enqueue(active)
      this.#slices.grant()
      if (inFlight) await this.#steps.finish(inFlight)
      inFlight = step
      if (inFlight && !this.#runsAhead) {
        await this.#steps.finish(inFlight)
        inFlight = null
      }
      if (!this.#isAwake && !inFlight && !this.#stopped) await this.#sleep()
      // Consumers ask for their next tokens before the next step is put together, and give memory back
      // before somebody is let in who needs it.
      await new Promise((resolve) => setImmediate(resolve))
    }
    this.#steps.dispose()
    this.#chooser.dispose()
    this.#loopEnded.resolve()
  }

  async #sleep(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wakeUp = () => {
        this.#wakeUp = null
        resolve()
      }
    })
  }

  #admit(): void {
    const { active } = this.#admission
    for (const run of active) {
      if (!run.isSettled) continue
      active.delete(run)
      this.#chooser.forget(run)
    }
    for (const run of this.#admission.admitted()) void this.#prompts.start(run)
  }
}
