import type { PolicySpec } from '../policy/index.js'
import type { Seed } from '../random.js'
import type { Context } from './context.js'

/** What a request must have in common with a kept past, beside its first tokens. */
export interface PrefixKey {
  readonly spec: PolicySpec
  readonly seed: Seed
  readonly recordSaliency: boolean
  /** Pasts of one scope are found under it alone. */
  readonly scope: string
}

interface Entry {
  readonly key: string
  readonly context: Context
  readonly bytes: number
}

/** Tokens that a request is running, to be kept. */
interface Running {
  readonly key: string
  readonly ids: readonly number[]
  /** Resolves to whether they were run, once that has ended; never rejects. */
  readonly ended: Promise<boolean>
}

/**
 * Pasts of ended requests, kept so that later prompts that begin with the same tokens can go on from
 * them. The least recently used one goes first.
 */
export class PrefixCache {
  readonly #maxBytes: number
  /** Least recently used first. */
  readonly #entries: Entry[] = []
  readonly #running = new Set<Running>()
  readonly counters = { prefixHits: 0, prefixTokens: 0 }

  /** `maxBytes`: what the pasts may take together; pages that they share count in each. */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** Whether anything is kept at all. */
  get isOn(): boolean {
    return this.#maxBytes > 0
  }

  get size(): number {
    return this.#entries.length
  }

  get bytes(): number {
    return this.#entries.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /**
   * The longest past that is a proper beginning of `ids`, of `least` tokens or more, as a context of
   * its own; null without. Proper, since at least one token has to run to give logits.
   */
  find(key: PrefixKey, ids: readonly number[], least = 0): Context | null {
    const own = textOf(key)
    let best: Entry | null = null
    for (const entry of this.#entries) {
      const { tokens } = entry.context
      if (entry.key !== own || tokens.length < least || tokens.length >= ids.length) continue
      if (best && tokens.length <= best.context.tokens.length) continue
      if (tokens.every((id, i) => id === ids[i])) best = entry
    }
    return best && this.#reuse(best)
  }

  /** The past of these tokens and no others, as a context of its own; null without. */
  findExactly(key: PrefixKey, ids: readonly number[]): Context | null {
    const own = textOf(key)
    const entry = this.#entries.find(
      (one) => one.key === own && sameTokens(one.context.tokens, ids),
    )
    return entry ? this.#reuse(entry) : null
  }

  /**
   * Whether another request has run these tokens, once that has ended; null where none is running
   * them.
   */
  running(key: PrefixKey, ids: readonly number[]): Promise<boolean> | null {
    const own = textOf(key)
    const same = [...this.#running].find((one) => one.key === own && sameTokens(one.ids, ids))
    return same?.ended ?? null
  }

  /** Runs tokens so that `running` tells of it. Rejects as `run` does. */
  async whileRunning<T>(key: PrefixKey, ids: readonly number[], run: () => Promise<T>): Promise<T> {
    const result = run()
    const entry: Running = {
      key: textOf(key),
      ids,
      ended: result
        .then(
          () => true,
          () => false,
        )
        .finally(() => this.#running.delete(entry)),
    }
    this.#running.add(entry)
    return result
  }

  #reuse(entry: Entry): Context {
    const fork = entry.context.fork()
    this.#entries.splice(this.#entries.indexOf(entry), 1)
    this.#entries.push(entry)
    this.counters.prefixHits++
    this.counters.prefixTokens += fork.tokens.length
    return fork
  }

  /** Takes a context over, if it fits; what it replaces or pushes out is disposed of. */
  keep(key: PrefixKey, context: Context): void {
    context.pending = null
    context.forgetLogits()
    const bytes = context.bytes.resident
    const own = textOf(key)
    const same = this.#entries.findIndex(
      (entry) => entry.key === own && sameTokens(entry.context.tokens, context.tokens),
    )
    if (same >= 0) this.#drop(same)
    if (bytes > this.#maxBytes || context.tokens.length === 0) {
      context.dispose()
      return
    }
    while (this.bytes + bytes > this.#maxBytes) this.#drop(0)
    this.#entries.push({ key: own, context, bytes })
  }

  /** Lets the least recently used past go; whether there was one. */
  evict(): boolean {
    if (this.#entries.length === 0) return false
    this.#drop(0)
    return true
  }

  dispose(): void {
    while (this.evict()) {
      // all of them
    }
  }

  #drop(index: number): void {
    for (const { context } of this.#entries.splice(index, 1)) context.dispose()
  }
}

function textOf({ spec, seed, recordSaliency, scope }: PrefixKey): string {
  return JSON.stringify([spec, seed.lo, seed.hi, recordSaliency, scope])
}

function sameTokens(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((id, i) => id === b[i])
}
