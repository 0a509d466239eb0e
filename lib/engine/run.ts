import type { SampleParams, Tensor } from '../ops/index.js'
import { deferred } from './abort.js'
import type { LogitAdjuster, TokenProbability } from './adjust-logits.js'
import type { Context } from './context.js'
import { ConstraintDrafts, type Drafter } from './drafts.js'
import { longestFitting } from './growth.js'
import { MOST_MATCH, PromptLookup } from './prompt-lookup.js'

/** A token as the device chose it. */
export interface Sampled {
  readonly id: number
  readonly logprob: number
  readonly top?: readonly TokenProbability[]
  /** Set on one that was drafted. */
  readonly isDrafted?: true
  /** Set on one behind which a constraint lets nothing follow: others may be known when it is read. */
  readonly isComplete?: true
}

/** What a run is to do after its prompt. */
export interface Sampling {
  readonly params: Omit<SampleParams, 'step'>
  readonly maxTokens: number
  /** Texts whose tokens are taken back, however many they are. */
  readonly stopTexts: readonly string[]
  /** Changes the logits between step and choice; null for most. */
  readonly adjuster: LogitAdjuster | null
  /** The most tokens to draft for a step; 0: none. */
  readonly promptLookup: number
  /** What may follow the prompt. */
  readonly predicted: readonly number[]
}

/** A place in a prompt: what is before it runs as a turn of its own, as one prompt before another would. */
export interface Place {
  /** Tokens of the prompt behind it, fewer than there are; 0: it is the prompt's end. */
  readonly nBehind: number
  /** Called when the context holds what is before it. */
  readonly reached: () => void
}

/** What a run begins with. */
export interface RunStart {
  readonly context: Context
  /** Tokens to append first. */
  readonly ids: Int32Array
  /** Where turns of `ids` end, in their order; default: all of them are one. */
  readonly places?: readonly Place[] | undefined
}

/** How a run is asked for. */
export interface RunOptions extends RunStart {
  /** null: the prompt alone. */
  readonly sampling: Sampling | null
  /**
   * Gives up what the context holds, and tells how all that it held runs anew; without it nobody may do
   * so. Not called once the run is under way.
   */
  readonly anew?: (() => RunStart) | undefined
  /** See `Context.prefill`. */
  readonly inspect?: ((x: Tensor<'f32'>, turn: () => Promise<void>) => Promise<void>) | undefined
}

/**
 * One call's work on one context: tokens to append, then tokens to generate as they are asked for.
 *
 * The scheduler runs at most one token ahead of its consumer: token j enters the cache once j is
 * asked for, and a token that fills a window, or changes a state, only once its successor is, because
 * neither can be taken back. Drafts enter it with the token before them, where none fills a window. So a
 * consumer that leaves finds the context as if nothing had run ahead.
 */
export class Run {
  #start: RunStart
  readonly #anew: RunOptions['anew']
  readonly sampling: Sampling | null
  readonly inspect: RunOptions['inspect']
  phase: 'queued' | 'prefill' | 'decode' | 'ended' = 'queued'
  /** The most tokens there can be, for want of positions or because no more are wanted. */
  limit = 0
  /** Tokens generated so far, from the first on. */
  readonly known: number[] = []
  /** How many of them are in the cache, or on their way there. */
  fed = 0
  /** Row of the step in flight whose result is this run's next token; -1 without. */
  row = -1
  /** Where the logits behind its last token are until the next step, where that token cannot be taken back. */
  latest: { readonly logits: Tensor<'f32'>; readonly row: number } | null = null
  /** Row of the seen tokens, for the repetition penalty; -1 without. */
  seenRow = -1
  /** (vocab_size) what that row holds once the step in flight is through; null without. */
  seen: Uint8Array | null = null
  /** How many tokens were asked for. */
  #demand = 0
  #delivered = 0
  readonly #ready: Sampled[] = []
  #waiting: { resolve(token: Sampled): void; reject(error: unknown): void } | null = null
  #failure: { error: unknown } | null = null
  /** Told when there is more to do. */
  readonly #wake: () => void
  /** Tokens that the context holds after each turn of the prompt. */
  turnEnds: readonly number[] = []
  /** Tokens that the context may come to hold; fewer than are wanted, where there is no room. */
  maxLength = 0
  /** Made when it is first asked for drafts. */
  #drafters: readonly Drafter[] | null = null
  /** Told of each token; null: nothing is looked up. */
  #lookup: PromptLookup | null = null
  /** Whose draft was tried last. */
  #drafter: Drafter | null = null
  isSettled = false
  /** A token is on its way into a row store. */
  isFeeding = false
  readonly #settled = deferred()
  /** Resolves when nothing touches the context any more; never rejects. */
  readonly settled = this.#settled.promise

  constructor(options: RunOptions, wake: () => void) {
    this.#start = options
    this.#anew = options.anew
    this.sampling = options.sampling
    this.inspect = options.inspect
    this.#wake = wake
    this.#plan()
  }

  get context(): Context {
    return this.#start.context
  }

  /** Tokens to append first. */
  get ids(): Int32Array {
    return this.#start.ids
  }

  /** Where turns of them end. */
  get places(): readonly Place[] {
    return this.#start.places ?? []
  }

  #plan(): void {
    const { context, ids, places } = this
    const promptEnd = context.length + ids.length
    this.turnEnds = [...places.map(({ nBehind }) => promptEnd - nBehind), promptEnd]
    const wanted = promptEnd + (this.sampling?.maxTokens ?? 0)
    const { maxPositions } = context.model.config
    this.maxLength = longestFitting(context, this.turnEnds, Math.min(wanted, maxPositions))
  }

  /** Gives up what the context of a run that waits holds, if it can run anew; whether it was so. */
  beginAnew(): boolean {
    if (this.phase !== 'queued' || !this.#anew || this.context.length === 0) return false
    try {
      this.#start = this.#anew()
      this.#plan()
    } catch (error) {
      this.fail(error)
    }
    return true
  }

  get ended(): boolean {
    return this.phase === 'ended'
  }

  /** Throws why the run was given up, if it was. */
  throwIfFailed(): void {
    if (this.#failure) throw this.#failure.error
  }

  // ---- the consumer's side ----

  /** The next token. Rejects with why the run was given up. */
  async next(): Promise<Sampled> {
    // Tokens that ran ahead of a run that was given up are not the context's.
    this.throwIfFailed()
    this.#demand = this.#delivered + 1
    const ready = this.#ready.shift()
    this.#wake()
    if (ready) {
      this.#delivered++
      return ready
    }
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject }
    })
  }

  /** Resolves when the prompt is in the cache, if that is all there is to do. */
  async finished(): Promise<void> {
    await this.settled
    this.throwIfFailed()
  }

  /** Gives the run up; whoever waits is told why. Idempotent. */
  fail(error: unknown): void {
    if (this.ended) return
    this.#failure = { error }
    const waiting = this.#waiting
    this.#waiting = null
    this.close(this.#delivered)
    waiting?.reject(error)
  }

  /**
   * Ends the run: the first `nAccepted` generated tokens are the context's, what ran ahead is taken
   * back. So is the last one accepted, to be run with what follows, unless it has filled a window: the
   * context does not show how far the scheduler had come. What has changed a state stays in the cache.
   */
  close(nAccepted: number): void {
    if (this.ended) return
    const { context } = this
    const wasDecoding = this.phase === 'decode'
    const wasQueued = this.phase === 'queued'
    this.phase = 'ended'
    if (wasDecoding) {
      try {
        const unwanted = this.fed - Math.max(0, nAccepted - 1)
        if (!context.state) this.retract(Math.min(unwanted, context.cache.tailLength))
        else if (this.fed >= nAccepted) this.#keepLatest()
        if (!context.nextLogits) context.forgetLogits()
        context.dropHidden()
      } catch (error) {
        context.failure ??= error // the device is gone
      }
      for (const id of this.known.slice(0, this.fed)) context.tokens.push(id)
      if (this.fed < nAccepted) context.pending = this.known[nAccepted - 1] as number
    }
    // A pass notices at its next turn, and settles then.
    if ((wasDecoding && !this.isFeeding) || wasQueued) this.settle()
    this.#wake()
  }

  /** The last token has run for the sake of one that was refused: the context goes on from the logits behind it. */
  #keepLatest(): void {
    const { context, latest } = this
    if (!latest || context.failure || context.nextLogits) return
    try {
      context.keepLogits(latest.logits, latest.row)
    } catch {
      context.forgetLogits() // no room for them: a prompt can follow, an answer alone cannot
    }
  }

  // ---- the scheduler's side ----

  settle(): void {
    this.isSettled = true
    this.#settled.resolve()
  }

  /** Takes tokens out of the cache that were not wanted, or could not be kept. */
  retract(nTokens: number): void {
    if (nTokens <= 0) return
    this.fed -= nTokens
    this.context.retract(nTokens)
  }

  /** Whether steps may try tokens that were drafted: each waits for the one before it then. */
  get drafts(): boolean {
    const { sampling, context } = this
    if (!sampling || context.rows || context.state) return false
    return sampling.promptLookup > 0 || sampling.adjuster?.isConstrained === true
  }

  /** Tokens, `room` at most, that may follow the one that is fed next: the longest draft of all. */
  draft(room: number): Int32Array {
    let longest: Int32Array = new Int32Array(0)
    if (!this.drafts || !this.sampling) return longest
    const { context, fed, limit } = this
    this.#drafters ??= this.#startDrafters(this.sampling)
    // A token is fed only if it has a successor; those of a window that closes are fed by themselves.
    const most = Math.min(room, limit - fed - 2, context.openRoom - 1)
    for (const drafter of this.#drafters) {
      const drafted = drafter.draft(most)
      if (drafted.length <= longest.length) continue
      longest = drafted
      this.#drafter = drafter
    }
    return longest
  }

  #startDrafters({ promptLookup, predicted, adjuster }: Sampling): Drafter[] {
    const drafters: Drafter[] = []
    if (adjuster?.isConstrained) drafters.push(new ConstraintDrafts(adjuster))
    if (promptLookup > 0) {
      const { tokens } = this.context
      // What is predicted stands where it would be found: behind the prompt's end.
      const before = predicted.length > 0 ? [...tokens.slice(-MOST_MATCH), ...predicted] : []
      this.#lookup = new PromptLookup([...before, ...tokens, ...this.known], promptLookup)
      drafters.push(this.#lookup)
    }
    return drafters
  }

  /** The first `nRight` of the `nDrafted` tokens that were fed last are the run's; the others go. */
  judge(nDrafted: number, nRight: number): void {
    if (nDrafted === 0) return
    this.retract(nDrafted - nRight)
    this.#drafter?.judge(nDrafted, nRight)
  }

  push(token: Sampled): void {
    this.known.push(token.id)
    this.#lookup?.push(token.id)
    if (this.#waiting) {
      this.#delivered++
      this.#waiting.resolve(token)
      this.#waiting = null
    } else {
      this.#ready.push(token)
    }
  }

  /** Whether the next token may enter the cache now. */
  get canFeed(): boolean {
    if (this.phase !== 'decode' || this.fed + 1 >= this.limit) return false
    const next = this.fed + 1
    const commits = this.context.commitsNext
    const isKnown = next <= this.known.length
    const waits = commits || this.sampling?.adjuster != null || this.drafts
    if (!isKnown && (waits || this.row < 0 || next > this.known.length + 1)) return false
    return this.#demand >= (commits ? next + 1 : next)
  }

  /** Whether the consumer waits for what only feeding the next token can give. */
  get mustFeed(): boolean {
    return this.fed < this.known.length && this.#demand > this.fed + 1
  }
}
