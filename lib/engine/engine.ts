import { addBytes, type BytesByClass, CacheMemory, noBytes } from '../cache/index.js'
import { argumentError, show, ZipCacheError } from '../errors.js'
import type { ForwardModel } from '../model/forward.js'
import { attentionShapes, stateShape } from '../model/layer-kinds.js'
import { checkPath } from '../model/model-files.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import type { Device } from '../ops/index.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { toSeed } from '../random.js'
import { orAborted } from './abort.js'
import type { AdmissionLimits } from './admission.js'
import { Context } from './context.js'
import {
  type FinishReason,
  GENERATE_OPTIONS,
  type GeneratedToken,
  type GenerateOptions,
  type TokenStream,
  tokenStream,
} from './generation.js'
import { checkBoolean, checkInteger, checkOptions } from './options.js'
import { PrefixCache, type PrefixKey } from './prefix-cache.js'
import { type Prompt, tokenIds } from './prompt.js'
import { busyError, disposedError } from './refusals.js'
import { Scheduler, type SchedulerCounters } from './scheduler.js'
import { Sequence } from './sequence.js'
import { restoreContext } from './snapshot.js'

/** Settings of one sequence. */
export interface SequenceOptions {
  /** How its cache is kept; default `zipcache`, the paper's. */
  policy?: PolicySpec | undefined
  /** Seed of the probes, an integer, taken modulo 2^64; default 0. */
  seed?: number | bigint | undefined
}

/** Settings of a sequence that its caller keeps. */
export interface CreateSequenceOptions extends SequenceOptions {
  /**
   * Keeps what tokens scored when they were compressed, 8 bytes a token beside the cache, for
   * `Sequence.tokenMap`; default false.
   */
  recordSaliency?: boolean | undefined
}

/** Settings of `Engine.openPrefix`. */
export interface PrefixOptions extends CreateSequenceOptions {
  /** Pasts that were kept under one name are found under it alone; default ''. */
  scope?: string | undefined
  /** Gives the prefix up. */
  signal?: AbortSignal | undefined
}

/** What many prompts begin with, in a sequence. */
export interface OpenedPrefix {
  /** It holds the prefix and nothing else, and is the caller's to dispose of. */
  readonly sequence: Sequence
  /** Whether it was kept from an earlier call, so that nothing had to run. */
  readonly isKept: boolean
}

/** Bounds of an engine. */
export interface EngineOptions {
  /**
   * The most memory that all its caches may take together, in bytes; 1 MiB at least, and no more than
   * the device has or, on the CPU, the process's control group is granted. Pages of one size claim it
   * in blocks of a 64th of it (32 KiB at least, 256 KiB at most), so some of it may stay unused.
   */
  kvMemory: number
  /** Most requests under way at a time, and so rows of a decode step; default 64. */
  maxBatch?: number | undefined
  /** Most requests that wait; further ones are refused with `ERR_ZC_BUSY`. Default 256. */
  maxQueue?: number | undefined
  /** Most prompts under way at a time; each needs a layer's K and V in full. Default 4. */
  maxPrefills?: number | undefined
  /**
   * Bytes of `kvMemory` that the pasts of ended requests may keep, for later prompts that begin with
   * the same tokens; they go first when memory is needed. Default 0: every prompt runs from its
   * first token. No more than `kvMemory`.
   *
   * A reused past is a conversation continued: under a policy that compresses, the rest of the prompt
   * attends to the compressed past, and the answer is that of `Sequence.generate` called twice, not
   * of one long prompt.
   */
  prefixMemory?: number | undefined
  /**
   * Called when a request, or a sequence that is created or restored, wants memory that idle ones
   * hold: disposes of one that can be missed, and says whether there was one. If it throws, the
   * request rejects with that.
   */
  reclaim?: (() => boolean) | undefined
}

/** Settings of `Engine.generate`. */
export interface RequestOptions extends GenerateOptions, SequenceOptions {
  /**
   * How many tokens at the prompt's beginning other requests share (a system prompt). They run as a
   * turn of their own, which the engine keeps if `prefixMemory` lets it; then requests for a prefix
   * that another one is running wait for it. The answer does not depend on whether the prefix was
   * found, but it does on whether a longer past was.
   */
  prefixTokens?: number | undefined
}

/** Memory of the caches of an engine, in bytes. */
export interface KvMemory {
  /** Given out to sequences. */
  used: number
  /** The most there may be. */
  capacity: number
}

/** What an engine is doing. */
export interface EngineStats extends Readonly<SchedulerCounters> {
  /** Requests that wait: for room, or for a prefix that another one runs. */
  readonly queued: number
  /** Requests whose prompt is under way. */
  readonly prefilling: number
  /** Requests that generate. */
  readonly decoding: number
  /** Sequences that were created and not disposed of. */
  readonly sequences: number
  /** Memory of all caches. */
  readonly kvMemory: Readonly<KvMemory>
  /** Bytes of all sequences' caches by what they hold; pages that forks share count in each. */
  readonly bytesByClass: Readonly<BytesByClass>
  /** What 16-bit caches of the same sequences would take. */
  readonly fp16Bytes: number
  /** Bytes of the decode steps' activations. */
  readonly stepBytes: number
  /** Steps that the device ran op by op for want of memory for their graph, all engines together. */
  readonly unrecordedSteps: number
  /** Pasts that are kept for prompts that begin with the same tokens. */
  readonly prefixes: {
    /** How many there are. */
    readonly count: number
    /** Bytes that they take. */
    readonly bytes: number
  }
  /** Requests that went on from a kept past. */
  readonly prefixHits: number
  /** Tokens that those did not have to run. */
  readonly prefixTokens: number
}

const ENGINE_OPTIONS = [
  'kvMemory',
  'maxBatch',
  'maxQueue',
  'maxPrefills',
  'prefixMemory',
  'reclaim',
]

const REQUEST_OPTIONS = [...GENERATE_OPTIONS, 'policy', 'prefixTokens']
const SEQUENCE_OPTIONS = ['policy', 'seed', 'recordSaliency']
const PREFIX_OPTIONS = [...SEQUENCE_OPTIONS, 'scope', 'signal']

/** 32 blocks, of which each size of page can claim some. */
const MIN_KV_MEMORY = 2 ** 20

/**
 * Serves many sequences of one model at a time: their decode steps are one batch, prompts are
 * interleaved with them slice by slice. A sequence's tokens do not depend on what else runs.
 */
export class Engine {
  readonly #model: ForwardModel
  readonly #tokenizer: ModelTokenizer | null
  readonly #memory: CacheMemory
  readonly #scheduler: Scheduler
  readonly #prefixes: PrefixCache
  readonly #reclaim: () => boolean
  readonly #sequences = new Set<Sequence>()
  readonly #limits: AdmissionLimits
  /** Requests that wait for a prefix that another one runs. */
  #nWaiting = 0
  #disposal: Promise<void> | null = null

  readonly #ended: (engine: Engine) => void

  /** @internal Use `createEngine` or `loadModel`. `ended` is called once it was disposed of. */
  constructor(
    model: ForwardModel,
    tokenizer: ModelTokenizer | null,
    options: EngineOptions,
    ended: (engine: Engine) => void = () => {},
  ) {
    checkOptions(options, ENGINE_OPTIONS)
    const { config, device, attentionDtype: dtype } = model
    const limits: AdmissionLimits = {
      maxBatch: checkInteger('maxBatch', options.maxBatch ?? 64, 1, 1024),
      maxQueue: checkInteger('maxQueue', options.maxQueue ?? 256, 0, 1e6),
      maxPrefills: checkInteger('maxPrefills', options.maxPrefills ?? 4, 1, 1024),
    }
    const prefixMemory = options.prefixMemory ?? 0
    const prefixes = new PrefixCache(
      checkInteger('prefixMemory', prefixMemory, 0, Number.MAX_SAFE_INTEGER),
    )
    const reclaim = checkReclaim(options.reclaim)
    this.#model = model
    this.#tokenizer = tokenizer
    this.#ended = ended
    this.#limits = limits
    this.#prefixes = prefixes
    const kvMemory = checkKvMemory(options.kvMemory, device)
    if (prefixMemory > kvMemory) {
      throw argumentError(
        'prefixMemory',
        `is ${prefixMemory} bytes, expected no more than kvMemory, ${kvMemory}`,
      )
    }
    const { nHeads } = config
    const shapes = attentionShapes(config).map((shape) => ({ ...shape, nHeads, dtype }))
    const memory = new CacheMemory(device, shapes, kvMemory, stateShape(config))
    this.#memory = memory
    this.#reclaim = () => {
      const { usedBytes } = memory
      // What was disposed of while it ran is not free yet: whoever waits is told once it is.
      return (prefixes.evict() || reclaim()) && memory.usedBytes < usedBytes
    }
    try {
      this.#scheduler = new Scheduler(model, this.#memory, limits, this.#reclaim)
    } catch (error) {
      this.#memory.dispose()
      throw error
    }
  }

  /** Memory of all its caches. */
  get kvMemory(): KvMemory {
    return { used: this.#memory.usedBytes, capacity: this.#memory.capacityBytes }
  }

  /** What is going on, at this moment and since the engine was made. */
  stats(): EngineStats {
    const { queued, ...running } = this.#scheduler.counts
    return {
      queued: queued + this.#nWaiting,
      ...running,
      ...this.#scheduler.counters,
      sequences: this.#sequences.size,
      kvMemory: this.kvMemory,
      ...this.#cacheBytes(),
      stepBytes: this.#scheduler.stepBytes,
      unrecordedSteps: this.#model.device.unrecordedRuns,
      prefixes: { count: this.#prefixes.size, bytes: this.#prefixes.bytes },
      ...this.#prefixes.counters,
    }
  }

  #cacheBytes(): Pick<EngineStats, 'bytesByClass' | 'fp16Bytes'> {
    const bytesByClass = noBytes()
    let fp16Bytes = 0
    for (const sequence of this.#sequences) {
      const bytes = sequence.bytesHeld
      if (!bytes) continue
      fp16Bytes += bytes.fp16
      addBytes(bytesByClass, bytes.byClass)
    }
    return { bytesByClass, fp16Bytes }
  }

  /**
   * An empty context with a cache of its own. Dispose of it when it is no longer needed.
   *
   * Throws `ERR_ZC_ARGUMENT` for an unknown policy or option, `ERR_ZC_HANDLE` when the engine was
   * disposed of, `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page table.
   */
  createSequence(options: CreateSequenceOptions = {}): Sequence {
    if (this.#disposal) throw disposedError('engine')
    checkOptions(options, SEQUENCE_OPTIONS)
    return this.#adopt(this.#open(options))
  }

  /**
   * Tokens after a prompt, as they are generated, and then why they ended (`finishReason`); the
   * context is let go of at the end. `Sequence.generate` keeps it.
   *
   * Throws, once it is read, as `Sequence.generate` and `createSequence`.
   */
  generate(prompt: Prompt, options: RequestOptions = {}): TokenStream {
    return tokenStream(this.#generate(prompt, options))
  }

  async *#generate(
    prompt: Prompt,
    options: RequestOptions,
  ): AsyncGenerator<GeneratedToken, FinishReason | null, undefined> {
    checkOptions(options, REQUEST_OPTIONS)
    const { prefixTokens = 0, policy, seed, ...rest } = options
    const ids = tokenIds(prompt, this.#tokenizer, this.#model.config.vocabSize)
    checkInteger('prefixTokens', prefixTokens, 0, Math.max(0, ids.length - 1))
    const key = keyOf({ policy, seed })
    if (this.#disposal) throw disposedError('engine')
    // A shorter past would divide the declared prefix into turns that others do not have.
    const past = this.#prefixes.find(key, ids, prefixTokens)
    const sequence =
      past || prefixTokens === 0
        ? this.#adopt(past ?? this.#open({ policy, seed }))
        : (await this.#prefix(ids.slice(0, prefixTokens), { policy, seed, signal: rest.signal }))
            .sequence
    try {
      const beginning = { nBehind: ids.length - prefixTokens, reached: () => {} }
      const places = prefixTokens > 0 ? [beginning] : []
      const anew = { ids, places, begins: () => {} }
      yield* sequence.generate(ids.slice(sequence.length), { ...rest, seed }, { anew })
      return sequence.finishReason
    } finally {
      this.#keepPrefix(key, sequence)
      sequence.dispose()
    }
  }

  /**
   * A sequence that holds what many prompts begin with (a system prompt). It is a copy of the one
   * that an earlier call left, if `prefixMemory` kept that; else the prefix runs as a turn of its own
   * and is kept. What is generated after it is the same either way. A call for a prefix that another
   * call is running waits for that.
   *
   * Rejects as `Sequence.prefill` and `createSequence` do.
   */
  async openPrefix(prefix: Prompt, options: PrefixOptions = {}): Promise<OpenedPrefix> {
    checkOptions(options, PREFIX_OPTIONS)
    return this.#prefix(tokenIds(prefix, this.#tokenizer, this.#model.config.vocabSize), options)
  }

  async #prefix(ids: readonly number[], options: PrefixOptions): Promise<OpenedPrefix> {
    const { signal } = options
    checkOptions({ signal }, ['signal'])
    const key = keyOf(options)
    for (let wasRun = false; ; ) {
      if (this.#disposal) throw disposedError('engine')
      signal?.throwIfAborted()
      const kept = this.#prefixes.findExactly(key, ids)
      if (kept) return { sequence: this.#adopt(kept), isKept: true }
      const run = () => this.#runPrefix(key, ids, options)
      // What was run and is not there was not to be kept: nobody need wait for another try.
      if (wasRun || !this.#prefixes.isOn) return run()
      const other = this.#prefixes.running(key, ids)
      if (!other) return this.#prefixes.whileRunning(key, ids, run)
      wasRun = await this.#waitFor(other, signal)
    }
  }

  /** Waits for what another request runs: no more of them than there may be requests at all. */
  async #waitFor<T>(other: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    const { maxBatch, maxQueue } = this.#limits
    if (this.#nWaiting >= maxBatch + maxQueue) throw busyError(this.#nWaiting)
    this.#nWaiting++
    try {
      return await orAborted(other, signal)
    } finally {
      this.#nWaiting--
    }
  }

  async #runPrefix(
    key: PrefixKey,
    ids: readonly number[],
    { signal, ...options }: PrefixOptions,
  ): Promise<OpenedPrefix> {
    const sequence = this.#adopt(this.#open(options))
    try {
      await sequence.prefill(ids, { signal })
    } catch (error) {
      sequence.dispose()
      throw error
    }
    this.#keepPrefix(key, sequence)
    return { sequence, isKept: false }
  }

  /**
   * A sequence that `Sequence.save` wrote, as it was: it goes on with the same tokens.
   *
   * - `path`: of the file, or its `file:` URL
   *
   * Rejects with `ERR_ZC_ARGUMENT` for a `path` that is none, `ERR_ZC_SNAPSHOT` for a file that is
   * damaged, of another version, model or compute type, `ERR_ZC_IO`, `ERR_ZC_OUT_OF_MEMORY`, and
   * `ERR_ZC_BUSY` where it would take memory that requests under way may still need.
   */
  async restore(path: string | URL): Promise<Sequence> {
    const file = checkPath('path', path, 'the path of a file')
    if (this.#disposal) throw disposedError('engine')
    const context = await restoreContext(this.#model, this.#memory, file, (add) =>
      this.#scheduler.reserve(add),
    )
    if (!this.#disposal) return this.#adopt(context)
    context.dispose()
    throw disposedError('engine')
  }

  /**
   * Gives up everything that is under way or waits, and returns the memory. The model stays.
   * Idempotent.
   */
  async dispose(): Promise<void> {
    this.#disposal ??= this.#end()
    return this.#disposal
  }

  /** `dispose`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  async #end(): Promise<void> {
    const released = [...this.#sequences].map((sequence) => {
      sequence.dispose()
      return sequence.released
    })
    await this.#scheduler.stop()
    await Promise.all(released)
    this.#prefixes.dispose()
    this.#memory.dispose()
    this.#ended(this)
  }

  #open({ policy = 'zipcache', seed = 0, recordSaliency = false }: CreateSequenceOptions): Context {
    checkBoolean('recordSaliency', recordSaliency)
    for (;;) {
      try {
        return Context.open(this.#model, this.#memory, policy, toSeed(seed), recordSaliency)
      } catch (error) {
        const isFull = error instanceof ZipCacheError && error.code === 'ERR_ZC_OUT_OF_MEMORY'
        if (!isFull || !this.#reclaim()) throw error
      }
    }
  }

  #keepPrefix(key: PrefixKey, sequence: Sequence): void {
    if (!this.#prefixes.isOn || this.#disposal) return
    const past = sequence.past()
    if (past) this.#prefixes.keep(key, past)
  }

  #adopt(context: Context): Sequence {
    const sequence = new Sequence(
      {
        scheduler: this.#scheduler,
        tokenizer: this.#tokenizer,
        released: (gone) => {
          this.#sequences.delete(gone)
          this.#scheduler.wake() // somebody may wait for its memory
        },
        adopt: (fork) => this.#adopt(fork),
      },
      context,
    )
    this.#sequences.add(sequence)
    return sequence
  }
}

/**
 * `kvMemory`, checked. Throws `ERR_ZC_ARGUMENT` for a value that is no number of bytes and, where
 * there is a device already, for more than it has or the process's control group may use.
 */
export function checkKvMemory(kvMemory: number, device: Device | null): number {
  const total = device?.memory.total ?? Number.POSITIVE_INFINITY
  const isSize = Number.isFinite(kvMemory) && kvMemory >= MIN_KV_MEMORY
  if (isSize && kvMemory <= total) return kvMemory
  const wrong = isSize
    ? `is ${kvMemory} bytes, but ${device?.info.name} has no more than ${total}`
    : `is ${show(kvMemory)}, expected bytes, ${MIN_KV_MEMORY} at least`
  throw argumentError('kvMemory', wrong)
}

/**
 * What a request must have in common with a kept past to go on from it.
 *
 * Throws `ERR_ZC_ARGUMENT` for options that are none.
 */
function keyOf({
  policy = 'zipcache',
  seed = 0,
  recordSaliency = false,
  scope = '',
}: PrefixOptions): PrefixKey {
  resolvePolicy(policy) // what cannot be one has no text either
  checkBoolean('recordSaliency', recordSaliency)
  if (typeof scope !== 'string') throw argumentError('scope', `is ${show(scope)}, expected a text`)
  return { spec: policy, seed: toSeed(seed), recordSaliency, scope }
}

function checkReclaim(reclaim: EngineOptions['reclaim'] = () => false): () => boolean {
  if (typeof reclaim === 'function') return reclaim
  throw argumentError('reclaim', `is ${show(reclaim)}, expected a function`)
}
