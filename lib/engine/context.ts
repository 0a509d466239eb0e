import {
  addStates,
  type BytesByClass,
  type CacheDemand,
  type CacheMemory,
  fp16CacheBytes,
  RecurrentState,
  SequenceCache,
  totalBytes,
} from '../cache/index.js'
import { argumentError } from '../errors.js'
import { type ForwardModel, logitsOf } from '../model/forward.js'
import { Scratch } from '../model/scratch.js'
import { gatherRows, type Tensor } from '../ops/index.js'
import {
  type CachePolicy,
  type Compression,
  type PolicySpec,
  resolvePolicy,
} from '../policy/index.js'
import { deriveSeed, type Seed } from '../random.js'
import { closeWindow } from './close-window.js'
import type { HeadShares } from './compress-group.js'
import {
  type PassState,
  type PrefillPass,
  prefillCompressed,
  prefillIntoTail,
  type Slicing,
} from './prefill.js'
import { prefillRows } from './prefill-rows.js'
import type { RowStore } from './row-store.js'
import { makeRowStore } from './row-stores.js'
import { SaliencyRecord } from './saliency-record.js'
import { WindowProbes } from './window-probes.js'

/** Memory of one sequence. */
export interface CacheBytes {
  /**
   * What the allocator handed out now: codes, parameters, bitmaps, page holes, tail, tables,
   * probes. Pages shared with forks count in each of them.
   */
  readonly resident: number
  /**
   * The most there was at a time, the activations and full-precision K and V of the running layer
   * included.
   */
  readonly peak: number
  /** What a 16-bit cache of as many tokens takes, and the states of recurrent layers, which are as they are. */
  readonly fp16: number
  /** fp16 / resident. */
  readonly ratio: number
  /**
   * The ratio by the paper's own count of bits and parameters, for one sequence; null for policies
   * that do not compress.
   */
  readonly paperRatio: number | null
  /** `resident` by what the bytes hold. */
  readonly byClass: BytesByClass
}

/** Where a decode step finds a sequence, and what it leaves there. */
export interface StepPlace {
  /** (n_shapes) the words of its page tables. */
  readonly starts: readonly number[]
  /** Word of the table of its state; -1: no layer is recurrent. */
  readonly state: number
  /** Tokens of the tail, the step's own included. */
  readonly tailLength: number
  /** Position of the step's token. */
  readonly position: number
  /** Slot for the step's probe row, -1 for none. */
  readonly probeSlot: number
}

/** Logits after the first `length` tokens. */
interface NextLogits {
  readonly length: number
  readonly scratch: Scratch
  /** (1, vocab_size) f32 */
  readonly logits: Tensor<'f32'>
}

/** What a context is made of. */
type ContextParts = Pick<
  Context,
  'model' | 'spec' | 'policy' | 'seed' | 'cache' | 'rows' | 'saliency'
>

/**
 * One context and its cache, as passes and steps change it. Who calls what and when is the
 * scheduler's business: at most one prefill runs at a time, and none beside decode steps.
 */
export class Context {
  /** What the policy was made of. */
  readonly spec: PolicySpec
  readonly policy: CachePolicy
  readonly model: ForwardModel
  /** Empty where the policy keeps rows. */
  readonly cache: SequenceCache
  /** Where the tokens are of a policy that keeps rows; null for the others. */
  readonly rows: RowStore | null
  readonly seed: Seed
  /** Probes of each window: as many whatever is drawn. */
  readonly nWindowProbes: number
  /** Where scores are kept beside the cache; null where nobody wants to see them. */
  readonly saliency: SaliencyRecord | null
  /** Tokens in the cache. */
  readonly tokens: number[] = []
  /** A token that was generated but has not been through the model. */
  pending: number | null = null
  /** A step failed on the device: what it has written is unknown, and nothing can follow. */
  failure: unknown = null
  #next: NextLogits | null = null
  /** Compressions so far; each draws probes of its own. */
  #nGroups = 0
  #probes: WindowProbes | null = null
  /** Of its tokens in recurrent layers; null: there are none, of either. */
  #state: RecurrentState | null = null
  /** What it will be when the prompt that runs is in. */
  #nextState: RecurrentState | null = null
  /** Tokens that the last prompt that ran had in the end, or has. */
  #nextLength = 0
  #peak = 0
  /** (n_shapes) what the last prompt gave each head, for windows to go on with. */
  #shares: readonly HeadShares[] | null = null

  private constructor({ model, spec, policy, seed, cache, rows, saliency }: ContextParts) {
    this.model = model
    this.spec = spec
    this.policy = policy
    this.seed = seed
    this.cache = cache
    this.rows = rows
    this.saliency = saliency
    this.nWindowProbes = policy.compression?.windowProbes(seed).length ?? 0
  }

  /**
   * An empty context.
   *
   * Throws `ERR_ZC_ARGUMENT` for an unknown policy, `ERR_ZC_OUT_OF_MEMORY` when there is no room for
   * its page table.
   */
  static open(
    model: ForwardModel,
    memory: CacheMemory,
    spec: PolicySpec,
    seed: Seed,
    recordsSaliency = false,
  ): Context {
    const policy = resolvePolicy(spec)
    if (policy.compression?.usesSpecialTokens && !model.specialTokens) {
      throw argumentError(
        'policy.probes',
        "special tokens are found by the model's tokenizer, and it has none",
      )
    }
    const tailFormat = policy.tail === 'f16' ? 'f16' : model.attentionDtype
    const rows = policy.rows && makeRowStore(model, memory, policy.rows)
    const cache = SequenceCache.make(memory, tailFormat)
    const saliency = recordsSaliency ? new SaliencyRecord() : null
    return new Context({ model, spec, policy, seed, cache, rows, saliency })
  }

  /** An empty one of the same settings. Throws as `open`. */
  blank(): Context {
    const { model, cache, spec, seed, saliency } = this
    return Context.open(model, cache.memory, spec, seed, saliency !== null)
  }

  /** Tokens in the cache. */
  get length(): number {
    return this.rows?.length ?? this.cache.length
  }

  /** Logits after the last token in the cache, (1, vocab_size) f32; null when they are gone. */
  get nextLogits(): Tensor<'f32'> | null {
    return this.#next?.length === this.length ? this.#next.logits : null
  }

  forgetLogits(): void {
    this.#next?.scratch.dispose()
    this.#next = null
  }

  /**
   * Runs tokens through the model and into the cache, slice by slice, and keeps the logits after the
   * last. They are the context's once all slices have run, and not before. `inspect` may look at the
   * residual stream (tokens, hidden_size) f32 before it is gone.
   *
   * Rejects with what `slicing` rejects with, or `ERR_ZC_OUT_OF_MEMORY`; the context is as before
   * then.
   */
  async prefill(
    ids: Int32Array,
    slicing: Slicing,
    inspect?: (x: Tensor<'f32'>) => Promise<void>,
  ): Promise<void> {
    // A token that was generated, run by itself, is no prompt: the answer goes on.
    const isPrompt = this.pending === null || ids.length > 1
    if (this.rows) await this.#appendRows(this.rows, ids, isPrompt, slicing, inspect)
    else await this.#append(ids, slicing, inspect)
    this.pending = null
    for (const id of ids) this.tokens.push(id)
  }

  /**
   * Runs one generated token into a row store, and keeps the logits after it; `tokens` is the
   * caller's to add to.
   *
   * Rejects as `prefill`.
   */
  async feedRow(id: number, slicing: Slicing): Promise<void> {
    if (this.rows) await this.#appendRows(this.rows, Int32Array.of(id), false, slicing)
  }

  async #appendRows(
    store: RowStore,
    ids: Int32Array,
    isPrompt: boolean,
    { turn, end }: Slicing,
    inspect?: (x: Tensor<'f32'>) => Promise<void>,
  ): Promise<void> {
    const { model } = this
    const scratch = new Scratch(model.device)
    const next = new Scratch(model.device)
    const writer = store.begin(ids.length, isPrompt, scratch)
    try {
      const state = this.#beginState(ids.length)
      const x = await prefillRows({ model, store, writer, state, ids, scratch, turn })
      await inspect?.(x)
      await turn()
      const logits = logitsOf(model, x, Int32Array.of(ids.length - 1), next)
      await end()
      this.#notePeak(scratch.bytes + writer.bytes)
      writer.publish()
      this.#publishState()
      this.#keepNext(next, logits)
    } catch (error) {
      next.dispose()
      writer.discard()
      this.#discardState()
      throw error
    } finally {
      scratch.dispose()
    }
  }

  async #append(
    ids: Int32Array,
    { turn, end }: Slicing,
    inspect?: (x: Tensor<'f32'>) => Promise<void>,
  ): Promise<void> {
    const { cache, model } = this
    const tailBefore = cache.tailLength
    const scratch = new Scratch(model.device)
    const next = new Scratch(model.device)
    try {
      const state = this.#beginState(ids.length)
      const { x, publish } = await this.#pass({ model, cache, state, ids, scratch, turn })
      await inspect?.(x)
      await turn()
      const logits = logitsOf(model, x, Int32Array.of(ids.length - 1), next)
      await end()
      this.#notePeak(scratch.bytes)
      publish?.()
      this.#publishState()
      this.dropHidden()
      this.#keepNext(next, logits)
    } catch (error) {
      next.dispose()
      this.#discardState()
      cache.unstage()
      this.retract(cache.tailLength - tailBefore)
      throw error
    } finally {
      scratch.dispose()
    }
  }

  /**
   * Chooses the road of the tokens: into the tail, or compressed at once. `publish` makes a
   * compression the context's; null where there was none.
   */
  async #pass(pass: PrefillPass): Promise<{ x: Tensor<'f32'>; publish: (() => void) | null }> {
    const { compression } = this.policy
    const { cache, ids, scratch } = pass
    if (!compression) return { x: await prefillIntoTail(pass, null), publish: null }
    const nTokens = cache.tailLength + ids.length
    if (ids.length > 1 && nTokens >= compression.window) {
      const seed = deriveSeed(this.seed, this.#nGroups)
      const { x, shares } = await prefillCompressed(pass, compression, seed, this.saliency)
      const publish = () => {
        this.#endGroup(nTokens, scratch)
        this.#shares = shares ?? this.#shares
      }
      return { x, publish }
    }
    const x = await prefillIntoTail(pass, this.#windowProbes())
    if (nTokens < compression.window) return { x, publish: null }
    this.#packWindow(compression, scratch)
    return { x, publish: () => this.#endGroup(nTokens, scratch) }
  }

  // ---- the state of recurrent layers ----

  /**
   * A state for a prompt to write, which goes on from this one's.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  #beginState(nTokens: number): PassState | null {
    const { memory } = this.cache
    if (!memory.stateShape) return null
    const state = this.#state?.copy() ?? RecurrentState.make(memory, memory.stateShape)
    this.#nextState = state
    this.#nextLength = this.length + nTokens
    return { memory, state, isNew: this.#state === null }
  }

  #publishState(): void {
    if (!this.#nextState) return
    this.#state?.dispose()
    this.#state = this.#nextState
    this.#nextState = null
  }

  #discardState(): void {
    this.#nextState?.dispose()
    this.#nextState = null
    this.#nextLength = 0
  }

  /** The state after all tokens; null: there are none, or no layer is recurrent. */
  get state(): RecurrentState | null {
    return this.#state
  }

  /**
   * A state to be read from a file, as the one after all tokens.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  reopenState(): RecurrentState | null {
    this.#beginState(0)
    this.#publishState()
    return this.#state
  }

  /**
   * Adds the states that it takes beside what it holds, `turnEnds` and `maxLength` as in `addGrowth`: a
   * prompt writes a copy, a token that goes into a row store does, and so does a step where another context
   * holds the same.
   */
  addStatesTo(demand: CacheDemand, turnEnds: readonly number[], maxLength: number): void {
    const shape = this.cache.memory.stateShape
    if (!shape) return
    const reached = Math.max(this.length, this.#nextLength)
    const nPrompts = new Set(turnEnds.filter((end) => end > reached)).size
    // The last token of an answer is not run.
    const nFed = this.rows ? Math.max(0, maxLength - 1 - Math.max(reached, ...turnEnds)) : 0
    const nPasses = nPrompts + nFed
    const held = this.#state && !this.#state.isShared ? 1 : 0
    const begun = this.#nextState ? 1 : 0
    let most = held + begun > 0 || nPasses > 1 ? 2 : 1
    if (nPasses === 0) most = this.#state ? 1 : 0
    addStates(demand, shape, Math.max(0, most - held - begun))
  }

  /** Adds what it holds, as if nobody shared it. */
  addHeldTo(demand: CacheDemand): void {
    this.cache.addHeldTo(demand)
    const shape = this.cache.memory.stateShape
    if (shape && this.#state) addStates(demand, shape, 1)
  }

  // ---- decode steps ----

  /**
   * Whether the next token cannot be taken back: it fills the window, goes into a row store, or changes a
   * state.
   */
  get commitsNext(): boolean {
    return this.closesNext || this.#state !== null
  }

  /** Whether the next token fills the window, or goes into a row store. */
  get closesNext(): boolean {
    if (this.rows) return true
    const { compression } = this.policy
    return compression !== null && this.cache.tailLength + 1 === compression.window
  }

  /** How many tokens can still be taken back when they have come: those that leave the window open. */
  get openRoom(): number {
    const { compression } = this.policy
    return compression ? compression.window - 1 - this.cache.tailLength : Number.POSITIVE_INFINITY
  }

  /**
   * Makes room for one more token, which a decode step is about to write. `keepsLogits`: all that
   * follows the last prompt or window may be taken back, not the step alone that runs ahead; where a state
   * is changed nothing is.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the context as it was.
   */
  extend(keepsLogits: boolean): StepPlace {
    const { cache } = this
    if (this.#state?.isShared) {
      const own = this.#state.copy()
      this.#state.dispose()
      this.#state = own
    }
    const state = this.#state?.start ?? -1
    const probes = this.policy.compression ? this.#windowProbes() : null
    const probeSlot = probes?.take(cache.tailLength, 1)[0] ?? -1
    try {
      cache.extendTail(1)
    } catch (error) {
      probes?.truncate(cache.tailLength)
      throw error
    }
    // A step that runs ahead may be taken back: what it follows is kept until the next one.
    const isOver = this.#state !== null || !keepsLogits
    if (isOver && this.#next && this.#next.length < cache.length - 1) this.forgetLogits()
    const position = cache.length - 1
    return { starts: cache.starts, state, tailLength: cache.tailLength, position, probeSlot }
  }

  /** Takes the newest tokens back, as when a step was run that nobody wants. */
  retract(nTokens: number): void {
    if (nTokens > 0) this.cache.shrinkTail(nTokens)
    this.#probes?.truncate(this.cache.tailLength)
  }

  /**
   * Compresses the window that the last step has filled.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, with the window as it was.
   */
  closeWindow(): void {
    const { compression } = this.policy
    if (!compression) return
    const scratch = new Scratch(this.model.device)
    try {
      this.#packWindow(compression, scratch)
      this.#endGroup(compression.window, scratch)
    } catch (error) {
      this.cache.unstage()
      throw error
    } finally {
      scratch.dispose()
    }
  }

  #packWindow(compression: Compression, scratch: Scratch): void {
    const { model, cache, saliency: record } = this
    const [probes, shares] = [this.#probes, this.#shares]
    closeWindow({ model, cache, compression, probes, shares, scratch, record })
  }

  /**
   * Gives back what sliding windows hide of a tail that is never compressed. Called where none of the
   * tokens is taken back any more.
   */
  dropHidden(): void {
    if (!this.policy.compression) this.cache.dropHiddenTail()
  }

  /** Probe rows that no fork holds, too. */
  get nOwnProbes(): number {
    return this.#probes?.nOwn ?? 0
  }

  /** Compressions so far, and the slots of the running window's probe rows, in order. */
  get windowState(): { nGroups: number; probeSlots: Int32Array } {
    return { nGroups: this.#nGroups, probeSlots: this.#probes?.slots ?? new Int32Array(0) }
  }

  /**
   * Takes the place of a context that was saved: so many compressions done, `tailTokens` tokens of
   * the running window to come into the tail. Returns the slot for each one's probe row, -1 for
   * none.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, with nothing taken.
   */
  reopenWindow(nGroups: number, tailTokens: number): Int32Array {
    this.#nGroups = nGroups
    const probes = tailTokens > 0 ? this.#windowProbes() : null
    const slots = probes?.take(0, tailTokens) ?? new Int32Array(tailTokens).fill(-1)
    try {
      this.cache.extendTail(tailTokens)
    } catch (error) {
      probes?.truncate(0)
      throw error
    }
    return slots
  }

  /** Keeps one row of a step's logits (rows, vocab_size) f32. */
  keepLogits(logits: Tensor<'f32'>, row: number): void {
    const scratch = new Scratch(this.model.device)
    try {
      const own = scratch.tensor('f32', [1, logits.shape[1] as number])
      gatherRows({ x: logits, rows: scratch.ints(Int32Array.of(row)), out: own })
      this.#keepNext(scratch, own)
    } catch (error) {
      scratch.dispose()
      throw error
    }
  }

  #keepNext(scratch: Scratch, logits: Tensor<'f32'>): void {
    this.forgetLogits()
    this.#next = { length: this.length, scratch, logits }
  }

  /** Publishes a compression: until now its tokens were there twice. */
  #endGroup(nTokens: number, scratch: Scratch): void {
    this.#notePeak(scratch.bytes)
    this.cache.publish(nTokens)
    this.cache.dropHidden()
    this.#nGroups++
    this.#probes?.dispose()
    this.#probes = null
  }

  #windowProbes(): WindowProbes | null {
    const { compression } = this.policy
    if (!compression) return null
    this.#probes ??= new WindowProbes(
      this.cache.memory.probes,
      compression.windowProbes(deriveSeed(this.seed, this.#nGroups)),
    )
    return this.#probes
  }

  // ---- life ----

  /**
   * A context that goes on as this one would, sharing its pages.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  fork(): Context {
    const { model, spec, policy, seed } = this
    const cache = this.cache.fork()
    let rows: RowStore | null
    try {
      rows = this.rows?.fork() ?? null
    } catch (error) {
      cache.dispose()
      throw error
    }
    const saliency = this.saliency?.fork() ?? null
    const copy = new Context({ model, spec, policy, seed, cache, rows, saliency })
    try {
      for (const id of this.tokens) copy.tokens.push(id)
      copy.pending = this.pending
      copy.#nGroups = this.#nGroups
      copy.#shares = this.#shares
      copy.#probes = this.#probes?.fork() ?? null
      copy.#state = this.#state?.share() ?? null
      copy.#peak = copy.bytes.resident
      if (this.nextLogits) copy.keepLogits(this.nextLogits, 0)
      return copy
    } catch (error) {
      copy.dispose()
      throw error
    }
  }

  dispose(): void {
    this.forgetLogits()
    this.#probes?.dispose()
    this.#probes = null
    this.#discardState()
    this.#state?.dispose()
    this.#state = null
    this.cache.dispose()
    this.rows?.dispose()
  }

  // ---- bytes ----

  get bytes(): CacheBytes {
    const byClass = { ...this.cache.bytesByClass(), probes: this.#probes?.bytes ?? 0 }
    const { rows, low, params, tail, scores } = this.rows?.bytes ?? NO_ROWS
    byClass.high += rows
    byClass.low += low
    byClass.params += params
    byClass.tail += tail
    byClass.probes += scores
    for (const state of [this.#state, this.#nextState]) {
      byClass.states += state?.bytes ?? 0
      byClass.tables += state?.tableBytes ?? 0
    }
    const resident = totalBytes(byClass)
    const ownState = (this.#state ?? this.#nextState)?.bytes ?? 0
    const fp16 = fp16CacheBytes(this.cache.memory.shapes, this.length) + ownState
    return {
      resident,
      peak: Math.max(this.#peak, resident),
      fp16,
      ratio: fp16 / resident,
      paperRatio: this.#paperRatio(),
      byClass,
    }
  }

  /** Of the tokens that were told apart; before there are any, as of one prompt of n. */
  #salientShare(compression: Compression, n: number): number {
    const count = (precision: 'high' | 'low') =>
      this.cache.segments.reduce((sum, s) => sum + (s.precision === precision ? s.nTokens : 0), 0)
    const [salient, regular] = [count('high'), count('low')]
    return salient + regular > 0 ? salient / (salient + regular) : compression.nSalient(n) / n
  }

  #notePeak(scratchBytes: number): void {
    this.#peak = Math.max(this.#peak, this.bytes.resident + scratchBytes)
  }

  /**
   * 16 bits against r k_h + (1 - r) k_l bits and, for each class, 2 n_kv_heads head_dim channel and
   * 2 n_tokens token parameters of 16 bits. ZipCache (arXiv 2405.14256) App. A prints the formula
   * for one class; this one reproduces Tables 3, 4, A and B.
   */
  #paperRatio(): number | null {
    const { compression } = this.policy
    if (!compression || this.length === 0) return null
    const n = this.length
    const r = this.#salientShare(compression, n)
    const { high, low } = compression
    const bits = (r * (high.keyBits + high.valueBits) + (1 - r) * (low.keyBits + low.valueBits)) / 2
    const nClasses = r > 0 && r < 1 ? 2 : 1
    let [plain, compressed] = [0, 0]
    for (const { nLayers, nKvHeads, headDim } of this.cache.memory.shapes) {
      const width = nKvHeads * headDim
      plain += nLayers * 2 * width * n * 16
      compressed += nLayers * (2 * width * n * bits + 16 * nClasses * (2 * width + 2 * n))
    }
    return plain / compressed
  }
}

const NO_ROWS = { rows: 0, low: 0, params: 0, tail: 0, scores: 0 }
