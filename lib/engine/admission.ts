import { CacheDemand, type CacheMemory } from '../cache/index.js'
import { ZipCacheError } from '../errors.js'
import { addGrowth, isGrowthKnown } from './growth.js'
import { busyError } from './refusals.js'
import type { Run } from './run.js'

/** How much may be under way at a time, and wait. */
export interface AdmissionLimits {
  /** Most runs under way, and rows of a step. */
  readonly maxBatch: number
  /** Most runs that wait. */
  readonly maxQueue: number
  /** Most prompts under way: each needs a layer's K and V in full, and activations. */
  readonly maxPrefills: number
}

/** Lets runs in, in order, when what they can grow to fits beside what the others can. */
export class Admission {
  readonly #memory: CacheMemory
  readonly #limits: AdmissionLimits
  /** Frees memory that nobody needs at once; whether it freed any. */
  readonly #reclaim: () => boolean
  /** Runs that wait, and some that were given up since. */
  #queue: Run[] = []
  /** Runs under way, in the order in which they take turns where a step has no room for all. */
  readonly active = new Set<Run>()

  constructor(memory: CacheMemory, limits: AdmissionLimits, reclaim: () => boolean) {
    this.#memory = memory
    this.#limits = limits
    this.#reclaim = reclaim
  }

  /** Runs by phase. */
  get counts(): { queued: number; prefilling: number; decoding: number } {
    const active = [...this.active]
    const inPhase = (phase: Run['phase']) => active.filter((run) => run.phase === phase).length
    return {
      queued: this.#queue.filter((run) => !run.ended).length,
      prefilling: inPhase('prefill'),
      decoding: inPhase('decode'),
    }
  }

  /** All that wait or are under way. */
  get runs(): Run[] {
    return [...this.#queue, ...this.active]
  }

  enqueue(run: Run): void {
    this.#queue.push(run)
  }

  /** Throws `ERR_ZC_BUSY` where too many wait, and takes the last one out. */
  refuseSurplus(): void {
    if (this.#queue.length <= this.#limits.maxQueue) return
    this.#queue.pop()
    throw busyError(this.#queue.length)
  }

  /** The runs that are let in now, one by one: each has to be begun before the next is asked for. */
  *admitted(): Generator<Run> {
    this.#queue = this.#queue.filter((run) => !run.ended)
    for (let run = this.#queue[0]; run; run = this.#queue[0]) {
      if (this.active.size >= this.#limits.maxBatch) return
      if (this.counts.prefilling >= this.#limits.maxPrefills) return
      try {
        if (!this.#fits(run)) return
      } catch (error) {
        run.fail(error) // thrown by the caller's `reclaim`
      }
      this.#queue.shift()
      if (run.ended) continue
      this.active.add(run)
      yield run
    }
  }

  /**
   * Makes room for memory that a sequence takes outside of any run, beside what all runs can grow to.
   * What the cache could never hold is let through: its allocation fails, and says why.
   *
   * Throws `ERR_ZC_BUSY` when there is none while they run.
   */
  reserve(add: (demand: CacheDemand) => void): void {
    const demand = new CacheDemand()
    add(demand)
    if (!this.#memory.canHold(demand) || this.#makeRoom(add) || this.active.size === 0) return
    throw new ZipCacheError(
      'ERR_ZC_BUSY',
      `kvMemory: ${demand.bytes} bytes are wanted, and what is free is promised to requests that run`,
      { argument: 'kvMemory' },
    )
  }

  /**
   * Whether what all runs can grow to still fits, beside memory that was taken outside of any; frees some
   * for that.
   */
  keepsPromises(): boolean {
    return this.#makeRoom(() => {})
  }

  /** Whether a run and all others can grow to their full length; alone, it is let try. */
  #fits(run: Run): boolean {
    const add = (demand: CacheDemand) => addGrowth(demand, run.context, run.turnEnds, run.maxLength)
    if (this.#makeRoom(add)) return true
    if (this.active.size > 0) return false // they give memory back
    // Those that wait hold it: what is let in last loses its past first.
    for (const other of this.#queue.slice(1).reverse()) {
      if (other.beginAnew() && this.#makeRoom(add)) return true
    }
    // It would fit by itself: what it holds lies scattered.
    if (isGrowthKnown(run.context)) run.beginAnew()
    return true
  }

  /** Frees memory until what `add` wants fits beside what all runs can grow to; whether it does. */
  #makeRoom(add: (demand: CacheDemand) => void): boolean {
    for (;;) {
      const demand = new CacheDemand()
      add(demand)
      for (const { context, turnEnds, maxLength, isSettled } of this.active) {
        if (!isSettled) addGrowth(demand, context, turnEnds, maxLength)
      }
      if (this.#memory.hasRoomFor(demand)) return true
      if (!this.#reclaim()) return false
    }
  }
}
