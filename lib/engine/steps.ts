import type { CacheMemory } from '../cache/index.js'
import type { ForwardModel } from '../model/forward.js'
import type { Device, Tensor } from '../ops/index.js'
import { DecodeStep, type StepResult, type StepRow } from './decode-step.js'
import { MOST_DRAFTED } from './drafts.js'
import type { Run, Sampling } from './run.js'
import type { Slices } from './slices.js'
import type { TokenChooser } from './token-chooser.js'

/** A run's part of a step: the row of its next token, and behind it a row for each that was drafted. */
interface Taken {
  readonly run: Run
  readonly row: number
  readonly drafted: Int32Array
}

/** A step that was enqueued, for `Steps.finish`. */
export interface Step {
  readonly taken: readonly Taken[]
  readonly result: Promise<StepResult>
}

/** A run whose next token can be decoded, and what may come behind that. */
interface Ready {
  readonly run: Run
  readonly sampling: Sampling
  readonly drafted: Int32Array
}

/** Rows up to which a step takes drafts: as many as one pass over the weights serves on every device. */
const ROWS_WITH_DRAFTS = 1 + MOST_DRAFTED

const NOTHING = new Int32Array(0)

/** Decode steps: puts their rows together, and tells the runs what came of them. */
export class Steps {
  readonly #device: Device
  readonly #step: DecodeStep
  readonly #slices: Slices
  readonly #chooser: TokenChooser
  /** Told when a token that was decoded by itself is there. */
  readonly #wake: () => void
  readonly counters = {
    steps: 0,
    narrowedSteps: 0,
    windowsClosed: 0,
    draftTokens: 0,
    acceptedTokens: 0,
  }

  constructor(
    { model, memory, maxBatch }: { model: ForwardModel; memory: CacheMemory; maxBatch: number },
    slices: Slices,
    chooser: TokenChooser,
    wake: () => void,
  ) {
    this.#device = model.device
    const maxRows = Math.max(maxBatch, ROWS_WITH_DRAFTS)
    this.#step = new DecodeStep(model, memory, maxRows, chooser.seen)
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
    const taken: Taken[] = []
    const closing: Taken[] = []
    let nDrafted = 0
    for (const { run, sampling, drafted } of this.#nextRows(active)) {
      const { known, fed } = run
      const closes = run.context.closesNext
      const row = rows.length
      const isKnown = fed < known.length
      const source = isKnown ? -1 : run.row
      try {
        rows.push(
          this.#rowOf(run, sampling, { source, token: isKnown ? (known[fed] as number) : 0 }),
        )
      } catch (error) {
        // Running ahead may have to wait for memory; a token that somebody waits for may not.
        if (run.mustFeed) run.fail(error)
        continue
      }
      for (const [i, token] of drafted.entries()) {
        try {
          const fed = { source: -1, token }
          const seenRow = this.#chooser.seenWith(run, drafted.subarray(0, i + 1), nDrafted)
          rows.push(this.#rowOf(run, sampling, fed, { isDrafted: true, seenRow }))
          nDrafted++
        } catch {
          break // nobody waits for these
        }
      }
      // A draft may have made the page table grow, and move: another run may be given its old place.
      const { starts } = run.context.cache
      for (let r = row; r < rows.length; r++) rows[r] = { ...(rows[r] as StepRow), starts }
      const one = { run, row, drafted: drafted.subarray(0, rows.length - row - 1) }
      taken.push(one)
      if (closes) closing.push(one)
    }
    for (const run of active) run.row = -1
    if (taken.length === 0) return null
    for (const run of active) run.latest = null
    for (const { run, drafted } of taken) run.fed += 1 + drafted.length
    try {
      const { result, logits } = this.#step.run(rows)
      this.counters.steps++
      result.catch(() => {}) // read one step later
      for (const { run, row } of taken) {
        run.row = row
        if (run.context.state) run.latest = { logits, row }
      }
      for (const one of taken) {
        if (one.run.sampling?.adjuster) void this.#deliverAdjusted(one, logits)
      }
      for (const { run } of closing) this.#closeWindow(run, logits)
      return { taken, result }
    } catch (error) {
      for (const { run } of taken) {
        // Its token counts as run, and is not.
        if (run.context.state) run.context.failure ??= error
        run.fail(error)
      }
      return null
    }
  }

  /** The row of a run's next token; of one that was `drafted`, what is before it may be taken back, too. */
  #rowOf(
    run: Run,
    sampling: Sampling,
    fed: { source: number; token: number },
    { isDrafted = false, seenRow = run.seenRow } = {},
  ): StepRow {
    const place = run.context.extend(isDrafted || sampling.stopTexts.length > 0)
    return {
      ...place,
      ...fed,
      // What the step chooses for a run whose logits are adjusted is not its token.
      context: sampling.adjuster ? -1 : seenRow,
      params: { ...sampling.params, step: place.position + 1 },
    }
  }

  /** The runs whose next token a step can take. Where there is no memory for all, they take turns. */
  #nextRows(active: Set<Run>): Ready[] {
    const ready: Ready[] = []
    for (const run of active) {
      const { sampling } = run
      if (!run.canFeed || !sampling) continue
      if (!run.context.rows) ready.push({ run, sampling, drafted: NOTHING })
      else if (!run.isFeeding) void this.#feedRow(run)
    }
    if (ready.length === 0) return ready
    // Drafts fill a step up to as many rows as one pass over the weights serves.
    let nRows = ready.length
    const drafting: Ready[] = []
    for (const one of ready) {
      try {
        const drafted = one.run.draft(ROWS_WITH_DRAFTS - nRows)
        nRows += drafted.length
        drafting.push({ ...one, drafted })
      } catch (error) {
        one.run.fail(error)
        nRows--
      }
    }
    if (drafting.length === 0) return drafting
    try {
      const room = this.#step.roomFor(nRows)
      let left = room - drafting.length
      if (left >= 0) {
        return drafting.map(({ drafted: all, ...one }) => {
          const drafted = all.subarray(0, left)
          left -= drafted.length
          return { ...one, drafted }
        })
      }
      this.counters.narrowedSteps++
      const taken = drafting.slice(0, room).map((one) => ({ ...one, drafted: NOTHING }))
      for (const { run } of taken) {
        active.delete(run)
        active.add(run) // behind those that wait
      }
      return taken
    } catch (error) {
      for (const { run } of drafting) if (run.mustFeed) run.fail(error)
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
      // The window stays open, without its last token; what that did to a state stays done.
      context.forgetLogits()
      if (context.state) context.failure ??= error
      else run.retract(1)
      run.fail(error)
    }
    // What fails on the device is told here: the next step is that of others, too.
    this.#device.sync().catch((error) => {
      if (!isClosed) return // told already
      context.failure ??= error
      run.fail(error)
    })
  }

  /** Chooses tokens of adjusted logits one after the other, as long as they are the drafted ones. */
  async #deliverAdjusted({ run, row, drafted }: Taken, logits: Tensor<'f32'>): Promise<void> {
    try {
      // Others may take a step before the token is chosen.
      if (run.context.state) run.context.keepLogits(logits, row)
      let i = 0
      for await (const token of this.#chooser.adjusted(run, logits, row, 1 + drafted.length)) {
        if (run.ended) return
        const isDrafted = token.id === drafted[i]
        if (!isDrafted) this.#judge(run, drafted.length, i)
        if (run.ended) return
        this.#chooser.deliver(run, isDrafted ? { ...token, isDrafted } : token)
        if (!isDrafted || run.ended) return
        i++
        if (!run.sampling?.adjuster?.isDone) continue
        this.#judge(run, drafted.length, i)
        return
      }
    } catch (error) {
      run.fail(error)
    }
  }

  #judge(run: Run, nDrafted: number, nRight: number): void {
    this.counters.draftTokens += nDrafted
    this.counters.acceptedTokens += nRight
    try {
      run.judge(nDrafted, nRight)
    } catch (error) {
      run.context.failure ??= error // the device is gone
      run.fail(error)
    }
  }

  /** Waits for a step, and gives its tokens to those runs that are still there. */
  async finish({ taken, result }: Step): Promise<void> {
    let chosen: StepResult
    try {
      chosen = await result
    } catch (error) {
      for (const { run } of taken) {
        // What the step has written is unknown.
        run.context.failure ??= error
        run.fail(error)
      }
      return
    }
    const { ids, logprobs } = chosen
    for (const { run, row, drafted } of taken) {
      if (run.ended || run.sampling?.adjuster) continue
      // Each row chose what comes behind it: a draft is right if the row in front chose it.
      const isWrong = (token: number, i: number) => token !== ids[row + i]
      const firstWrong = drafted.findIndex(isWrong)
      const nRight = firstWrong < 0 ? drafted.length : firstWrong
      this.#judge(run, drafted.length, nRight)
      for (let i = 0; i <= nRight && !run.ended; i++) {
        const token = { id: ids[row + i] as number, logprob: logprobs[row + i] as number }
        this.#chooser.deliver(run, i < nRight ? { ...token, isDrafted: true } : token, i > 0)
      }
    }
  }
}
