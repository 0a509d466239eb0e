import { CacheDemand, type CacheMemory } from '../cache/index.js'
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
import { deferred } from './abort.js'
import type { LogitAdjuster } from './adjust-logits.js'
import { DecodeStep, type StepResult, type StepRow } from './decode-step.js'
import { addGrowth } from './growth.js'
import { inSlices } from './in-slices.js'
import type { Slicing } from './prefill.js'
import { busyError, disposedError } from './refusals.js'
import type { Run, Sampled, Sampling } from './run.js'

/** Bounds of a scheduler. */
export interface SchedulerLimits {
  /** Most runs under way, and rows of a step. */
  readonly maxBatch: number
  /** Most runs that wait. */
  readonly maxQueue: number
  /** Most prompts under way: each needs a layer's K and V in full, and activations. */
  readonly maxPrefills: number
}

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
}

interface Step {
  readonly runs: readonly Run[]
  readonly result: Promise<StepResult>
}

/** A prompt that waits for its next slice. */
interface WaitingPrefill {
  readonly run: Run
  resolve(): void
}

/**
 * Continuous batching over one stream: runs join and leave between decode steps, prompts are
 * interleaved with steps slice by slice, in turn. Waiting runs are admitted in order, when what they
 * can grow to fits beside what the others can.
 *
 * A step is enqueued before the result of the last one is read: sampled tokens feed the next step on
 * the device, JavaScript sees them one step behind.
 */
export class Scheduler {
  readonly #model: ForwardModel
  readonly #memory: CacheMemory
  readonly #limits: SchedulerLimits
  readonly #step: DecodeStep
  readonly #seen: Tensor<'u8'>
  readonly #freeSeenRows: number[]
  /** Runs that wait, and some that were given up since. */
  #queue: Run[] = []
  readonly #active = new Set<Run>()
  readonly #slices: WaitingPrefill[] = []
  readonly counters: SchedulerCounters = {
    promptTokens: 0,
    generatedTokens: 0,
    steps: 0,
    narrowedSteps: 0,
    windowsClosed: 0,
  }
  /** Frees memory that nobody needs at once; whether it freed any. */
  readonly #reclaim: () => boolean
  #wakeUp: (() => void) | null = null
  #isAwake = false
  #stopped = false
  readonly #loopEnded = deferred()

  constructor(
    model: ForwardModel,
    memory: CacheMemory,
    limits: SchedulerLimits,
    reclaim: () => boolean,
  ) {
    this.#model = model
    this.#memory = memory
    this.#limits = limits
    this.#reclaim = reclaim
    this.#seen = model.device.reserve('u8', [limits.maxBatch, model.config.vocabSize])
    this.#freeSeenRows = Array.from({ length: limits.maxBatch }, (_, row) => row)
    try {
      this.#step = new DecodeStep(model, memory, limits.maxBatch, this.#seen)
    } catch (error) {
      this.#seen.dispose()
      throw error
    }
    void this.#loop()
  }

  /** Runs by phase. */
  get counts(): { queued: number; prefilling: number; decoding: number } {
    const active = [...this.#active]
    const inPhase = (phase: Run['phase']) => active.filter((run) => run.phase === phase).length
    return {
      queued: this.#queue.filter((run) => !run.ended).length,
      prefilling: inPhase('prefill'),
      decoding: inPhase('decode'),
    }
  }

  /** Bytes of the decode steps' work space. */
  get stepBytes(): number {
    return this.#step.bytes
  }

  readonly wake = (): void => {
    this.#isAwake = true
    this.#wakeUp?.()
  }

  /** Begins a run, or puts it into the queue. Throws `ERR_ZC_BUSY` when that is full. */
  submit(run: Run): void {
    if (this.#stopped) throw disposedError('engine')
    this.#queue.push(run)
    this.#admit()
    if (this.#queue.length > this.#limits.maxQueue) {
      this.#queue.pop()
      throw busyError(this.#queue.length)
    }
    this.wake()
  }

  /**
   * Makes room for memory that a sequence takes outside of any run, beside what all runs can grow to.
   * What the cache could never hold is let through: its allocation fails, and says why.
   *
   * Throws `ERR_ZC_BUSY` when there is none while they run.
   */
  reserve(add: (demand: CacheDemand) => void): void {
    const demand = new CacheDemand(this.#memory.shape)
    add(demand)
    if (!this.#memory.canHold(demand) || this.#makeRoom(add) || this.#active.size === 0) return
    throw new ZipCacheError(
      'ERR_ZC_BUSY',
      `kvMemory: ${demand.bytes} bytes are wanted, and what is free is promised to requests that run`,
      { argument: 'kvMemory' },
    )
  }

  /** Gives up all runs, and resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    if (!this.#stopped) {
      this.#stopped = true
      const runs = [...this.#queue, ...this.#active]
      for (const run of runs) run.fail(disposedError('engine'))
      await Promise.all(runs.map((run) => run.settled))
      this.wake()
    }
    await this.#loopEnded.promise
  }

  // ---- the loop ----

  async #loop(): Promise<void> {
    let inFlight: Step | null = null
    while (!this.#stopped || inFlight || this.#active.size > 0) {
      this.#isAwake = false
      this.#admit()
      const step: Step | null = this.#enqueueStep()
      this.#grantSlice()
      if (inFlight) await this.#finishStep(inFlight)
      inFlight = step
      if (!this.#isAwake && !inFlight && !this.#stopped) await this.#sleep()
      // Consumers ask for their next tokens before the next step is put together.
      else await new Promise((resolve) => setImmediate(resolve))
    }
    this.#step.dispose()
    this.#seen.dispose()
    this.#loopEnded.resolve()
  }

  async #sleep(): Promise<void> {
    return new Promise((resolve) => {
      this.#wakeUp = () => {
        this.#wakeUp = null
        resolve()
      }
    })
  }

  // ---- admission ----

  #admit(): void {
    for (const run of this.#active) if (run.isSettled) this.#leave(run)
    this.#queue = this.#queue.filter((run) => !run.ended)
    for (let run = this.#queue[0]; run; run = this.#queue[0]) {
      if (this.#active.size >= this.#limits.maxBatch) return
      if (this.counts.prefilling >= this.#limits.maxPrefills) return
      try {
        if (!this.#fits(run)) return
      } catch (error) {
        run.fail(error) // thrown by the caller's `reclaim`
      }
      this.#queue.shift()
      if (run.ended) continue
      this.#active.add(run)
      void this.#start(run)
    }
  }

  /** Whether a run and all others can grow to their full length; alone, it is let try. */
  #fits({ context, promptEnd, maxLength }: Run): boolean {
    const add = (demand: CacheDemand) => addGrowth(demand, context, promptEnd, maxLength)
    return this.#makeRoom(add) || this.#active.size === 0
  }

  /** Frees memory until what `add` wants fits beside what all runs can grow to; whether it does. */
  #makeRoom(add: (demand: CacheDemand) => void): boolean {
    for (;;) {
      const demand = new CacheDemand(this.#memory.shape)
      add(demand)
      for (const { context, promptEnd, maxLength, isSettled } of this.#active) {
        if (!isSettled) addGrowth(demand, context, promptEnd, maxLength)
      }
      if (this.#memory.hasRoomFor(demand)) return true
      if (!this.#reclaim()) return false
    }
  }

  #leave(run: Run): void {
    this.#active.delete(run)
    if (run.seenRow >= 0) this.#freeSeenRows.push(run.seenRow)
    run.seenRow = -1
  }

  // ---- prompts ----

  async #start(run: Run): Promise<void> {
    const { context, ids, sampling } = run
    run.phase = 'prefill'
    let isDecoding = false
    try {
      if (ids.length > 0) {
        const slicing = this.#slicing(run)
        const { inspect } = run
        await context.prefill(ids, slicing, inspect && ((x) => inspect(x, slicing.turn)))
        this.counters.promptTokens += ids.length
      }
      if (sampling && sampling.maxTokens > 0) {
        const room = run.maxLength - context.length
        run.limit = Math.min(sampling.maxTokens, Math.max(1, room))
        sampling.adjuster?.begin(context.tokens)
        const first = await this.#sampleNext(run)
        run.throwIfFailed()
        run.phase = 'decode'
        isDecoding = true
        this.#deliver(run, first)
      }
    } catch (error) {
      run.fail(error)
    } finally {
      if (!isDecoding) {
        run.close(0)
        run.settle()
      }
      this.wake()
    }
  }

  #slicing(run: Run): Slicing {
    const { device } = this.#model
    const enqueued: Promise<void>[] = []
    /** An error is told to the first wait behind it, and to no other: each has to be looked at. */
    const mark = () => {
      run.throwIfFailed()
      const done = device.sync()
      done.catch(() => {}) // reported when it is awaited, if the run still lives then
      enqueued.push(done)
    }
    return {
      turn: async () => {
        mark()
        // At most two slices wait on the stream, so that a run that is given up ends soon.
        if (enqueued.length > 2) await enqueued.shift()
        await new Promise<void>((resolve) => {
          this.#slices.push({ run, resolve })
          this.wake()
        })
        run.throwIfFailed()
      },
      end: async () => {
        mark()
        for (const done of enqueued) await done
        run.throwIfFailed()
      },
    }
  }

  /** Lets one prompt enqueue its next slice; those given up find out. */
  #grantSlice(): void {
    for (let slice = this.#slices.shift(); slice; slice = this.#slices.shift()) {
      slice.resolve()
      if (!slice.run.ended) return
    }
  }

  /** A token after what the context holds. */
  async #sampleNext(run: Run): Promise<Sampled> {
    const { context, sampling } = run
    const { device, config } = this.#model
    const logits = context.nextLogits
    if (!sampling || !logits) throw new ZipCacheError('ERR_ZC_INTERNAL', 'run: it has no logits')
    if (sampling.adjuster) return this.#chooseAdjusted(run, logits, 0)
    if (sampling.params.repetitionPenalty !== 1 && run.seenRow < 0) {
      run.seenRow = this.#freeSeenRows.pop() ?? -1
      const seen = new Uint8Array(config.vocabSize)
      for (const id of context.tokens) seen[id] = 1
      this.#seen.write(seen, run.seenRow * config.vocabSize)
    }
    const scratch = new Scratch(device)
    try {
      const params = { ...sampling.params, step: context.length }
      return await this.#choose(logits, params, run.seenRow, scratch)
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
      seen: this.#seen,
      contexts: scratch.ints(Int32Array.of(seenRow)),
      ids,
      logprobs,
    })
    const [[id], [logprob]] = await Promise.all([ids.read(), logprobs.read()])
    return { id: id as number, logprob: logprob as number }
  }

  /** The next token where logits are changed first: they cross to JavaScript and back. */
  async #chooseAdjusted(run: Run, logits: Tensor<'f32'>, row: number): Promise<Sampled> {
    const { context, sampling } = run
    const { device, config } = this.#model
    const step = context.length
    const scratch = new Scratch(device)
    try {
      const own = scratch.tensor('f32', [1, config.vocabSize])
      gatherRows({ x: logits, rows: scratch.ints(Int32Array.of(row)), out: own })
      const { params, adjuster } = sampling as Sampling & { adjuster: LogitAdjuster }
      const [values] = await Promise.all([
        own.read(),
        inSlices(adjuster.prepare(), () => run.throwIfFailed()),
      ])
      adjuster.adjust(values)
      own.write(values)
      const chosen = await this.#choose(own, { ...params, repetitionPenalty: 1, step }, -1, scratch)
      const top = adjuster.top(values, params)
      return top.length > 0 ? { ...chosen, top } : chosen
    } finally {
      scratch.dispose()
    }
  }

  // ---- decode steps ----

  #enqueueStep(): Step | null {
    const rows: StepRow[] = []
    const runs: Run[] = []
    const closing: Run[] = []
    for (const { run, sampling } of this.#nextRows()) {
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
    for (const run of this.#active) run.row = -1
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
  #nextRows(): { run: Run; sampling: Sampling }[] {
    const ready: { run: Run; sampling: Sampling }[] = []
    for (const run of this.#active) {
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
        this.#active.delete(run)
        this.#active.add(run) // behind those that wait
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
      await context.feedRow(id, this.#slicing(run))
      if (run.ended) {
        // Given up at the last moment: the token is in the cache all the same.
        context.tokens.push(id)
        context.pending = null
      } else {
        run.fed++
      }
      run.throwIfFailed()
      this.counters.steps++
      const sampled = await this.#sampleNext(run)
      if (!run.ended) this.#deliver(run, sampled)
    } catch (error) {
      run.fail(error)
    } finally {
      run.isFeeding = false
      if (run.ended) run.settle()
    }
    this.wake()
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
    this.#model.device.sync().catch((error) => {
      if (!isClosed) return // told already
      context.failure ??= error
      run.fail(error)
    })
  }

  async #finishStep({ runs, result }: Step): Promise<void> {
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
      this.#deliver(run, { id, logprob: chosen.logprobs[row] as number })
    })
  }

  async #deliverAdjusted(run: Run, logits: Tensor<'f32'>): Promise<void> {
    try {
      const token = await this.#chooseAdjusted(run, logits, run.row)
      if (!run.ended) this.#deliver(run, token)
    } catch (error) {
      run.fail(error)
    }
  }

  #deliver(run: Run, token: Sampled): void {
    if (token.id < 0) {
      run.fail(
        new ZipCacheError('ERR_ZC_NUMERIC', 'logits: hold NaN or infinity, no token can be chosen'),
      )
      return
    }
    this.counters.generatedTokens++
    run.sampling?.adjuster?.accept(token.id)
    run.push(token)
  }
}
