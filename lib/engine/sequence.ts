import { type BytesByClass, fp16CacheBytes, KvCache, type PagePool } from '../cache/index.js'
import { ZipCacheError } from '../errors.js'
import { type ForwardModel, logitsOf } from '../model/forward.js'
import { Scratch } from '../model/scratch.js'
import { StopMatcher, TextStream } from '../model/text-stream.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { packSampleParams, SAMPLE_PARAMS, sample, type Tensor } from '../ops/index.js'
import type { CachePolicy } from '../policy/index.js'
import { deriveSeed, type Seed } from '../random.js'
import { closeWindow, passCompressed, passIntoTail } from './cached-pass.js'
import {
  type FinishReason,
  type GeneratedToken,
  type GenerateOptions,
  planGeneration,
} from './generation.js'
import { checkOptions } from './options.js'
import { WindowProbes } from './window-probes.js'

/** Token ids, or a text for the model's tokenizer. */
export type Prompt = ArrayLike<number> | string

/** Memory of one sequence. */
export interface CacheBytes {
  /**
   * What the allocator handed out now: codes, parameters, bitmaps, page holes, tail, tables,
   * probes.
   */
  readonly resident: number
  /**
   * The most there was at a time, the activations and full-precision K and V of the running layer
   * included.
   */
  readonly peak: number
  /** What a 16-bit cache of as many tokens takes. */
  readonly fp16: number
  /** fp16 / resident. */
  readonly ratio: number
  /**
   * The ratio by the paper's own count of bits and parameters, for one sequence; null for policies
   * that do not compress.
   */
  readonly paperRatio: number | null
  readonly byClass: BytesByClass
}

/** Rows whose logits are computed at a time by `Sequence.logits`. */
const LOGIT_ROWS = 256

/** What a sequence needs of its model. */
export interface SequenceHost {
  readonly model: ForwardModel
  readonly pool: PagePool
  readonly tokenizer: ModelTokenizer | null
  /** Called once, when the sequence is disposed of. */
  released(sequence: Sequence): void
}

/**
 * One context and its cache: prefill, then decode steps, a compression at the end of every window,
 * then perhaps another prompt over the compressed past.
 *
 * Its methods reject with `ERR_ZC_HANDLE` once it was disposed of, and with `ERR_ZC_ARGUMENT` while
 * another call is running.
 */
export class Sequence {
  readonly policy: CachePolicy
  readonly #host: SequenceHost
  readonly #cache: KvCache
  readonly #seed: Seed
  /** Tokens in the cache, for the repetition penalty. */
  readonly #tokens: number[] = []
  /** Compressions so far; each draws probes of its own. */
  #nGroups = 0
  #probes: WindowProbes | null = null
  /** Logits after the last token in the cache. */
  #next: { scratch: Scratch; logits: Tensor<'f32'> } | null = null
  /** A token that was generated but has not been through the model. */
  #pending: number | null = null
  #peak = 0
  /** A call has not ended; it may be waiting for its caller to ask for the next token. */
  #running = false
  /** Passes and reads that the device has not finished: the memory they use stays until then. */
  #nInFlight = 0
  readonly #released = deferred()
  #failure: unknown = null
  #disposed = false
  #finishReason: FinishReason | null = null

  /** Use `Model.createSequence`. */
  constructor(host: SequenceHost, policy: CachePolicy, seed: Seed) {
    this.#host = host
    this.policy = policy
    this.#seed = seed
    const { nLayers, nKvHeads, headDim } = host.model.config
    const tailFormat = policy.tail === 'f16' ? 'f16' : host.model.attentionDtype
    this.#cache = new KvCache(host.pool, { nLayers, nKvHeads, headDim }, tailFormat)
  }

  /** Tokens in the cache. */
  get length(): number {
    return this.#cache.length
  }

  /**
   * Why the last generation ended; null before, while it runs, and when it failed or its loop was
   * left.
   */
  get finishReason(): FinishReason | null {
    return this.#finishReason
  }

  /** Precision classes in the cache: compressed segments with their formats, oldest first. */
  get segments(): KvCache['segments'] {
    return this.#cache.segments
  }

  get bytes(): CacheBytes {
    this.#refuseDisposed()
    const byClass = this.#bytesByClass()
    const resident = sumBytes(byClass)
    const fp16 = fp16CacheBytes(this.#cache.shape, this.length)
    return {
      resident,
      peak: Math.max(this.#peak, resident),
      fp16,
      ratio: fp16 / resident,
      paperRatio: this.#paperRatio(),
      byClass,
    }
  }

  /**
   * Runs a prompt through the model and into the cache; called again, it continues over the
   * compressed past.
   *
   * Rejects with `ERR_ZC_ARGUMENT` for an empty prompt or a token out of range,
   * `ERR_ZC_CONTEXT_LENGTH` when it does not fit the model's context, `ERR_ZC_OUT_OF_MEMORY` when
   * it does not fit the cache, `signal.reason` when aborted. The sequence is as before then.
   */
  async prefill(prompt: Prompt, options: { signal?: AbortSignal } = {}): Promise<void> {
    checkOptions(options, ['signal'])
    await this.#exclusively(async () => {
      const ids = this.#idsOf(prompt)
      if (ids.length === 0) throw argumentError('prompt', 'is empty, expected at least one token')
      await this.#append(ids, options.signal)
    })
  }

  /**
   * `prefill` that returns the logits after every token of the prompt: (prompt tokens, vocab_size),
   * row-major.
   *
   * Attention among the tokens of one prompt is exact under every policy. To see what compression
   * costs, prefill a prefix and ask for the logits of what follows.
   */
  async logits(prompt: Prompt, options: { signal?: AbortSignal } = {}): Promise<Float32Array> {
    const { vocabSize } = this.#host.model.config
    const ids = this.#idsOf(prompt)
    if (ids.length === 0) throw argumentError('prompt', 'is empty, expected at least one token')
    const all = new Float32Array(ids.length * vocabSize)
    await this.#exclusively(() =>
      this.#append(ids, options.signal, async (x) => {
        const firstRow = (x.shape[0] as number) - ids.length
        for (let row = 0; row < ids.length; row += LOGIT_ROWS) {
          const rows = new Int32Array(Math.min(LOGIT_ROWS, ids.length - row))
          const scratch = new Scratch(this.#host.model.device)
          try {
            const logits = logitsOf(
              this.#host.model,
              x,
              rows.map((_, i) => firstRow + row + i),
              scratch,
            )
            all.set(await logits.read(), row * vocabSize)
          } finally {
            scratch.dispose()
          }
          options.signal?.throwIfAborted()
        }
      }),
    )
    return all
  }

  /**
   * Generates tokens after a prompt, or after what the sequence holds when `prompt` is null. Stop
   * tokens and stop texts end the generation and are not part of it; `finishReason` tells why it
   * ended. Leaving the loop early keeps the sequence usable.
   *
   * Throws as `prefill`; `ERR_ZC_ARGUMENT` for options out of range, `ERR_ZC_NUMERIC` when the
   * model's logits are NaN.
   */
  async *generate(
    prompt: Prompt | null,
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    const { config } = this.#host.model
    const plan = planGeneration(options, config.eosTokenIds, this.#host.tokenizer)
    this.#enter()
    this.#finishReason = null
    const scratch = new Scratch(this.#host.model.device)
    try {
      plan.signal?.throwIfAborted()
      const ids = prompt === null ? [] : this.#idsOf(prompt)
      if (ids.length > 0 || this.#pending !== null) await this.#append(ids, plan.signal)
      if (!this.#next) throw argumentError('prompt', 'is empty, expected at least one token')

      const chosen = { ids: scratch.tensor('i32', [1]), logprobs: scratch.tensor('f32', [1]) }
      const seen = scratch
        .tensor('u8', [1, config.vocabSize])
        .write(this.#seenTokens(config.vocabSize))
      const params = scratch.tensor('f32', [1, SAMPLE_PARAMS])
      const tokenizer = this.#host.tokenizer
      const text = tokenizer && new TextStream(tokenizer, { skip: tokenizer.specialIds })
      const matcher = new StopMatcher(plan.stopTexts)

      for (let step = 0; step < plan.maxTokens; step++) {
        params.write(packSampleParams({ ...plan.params, step: this.length }))
        sample({ logits: this.#next.logits, params, seen, ...chosen })
        const [[id], [logprob]] = await this.#guard(
          Promise.all([chosen.ids.read(), chosen.logprobs.read()]),
        )
        this.#refuseDisposed()
        if (id === undefined || logprob === undefined || id < 0) {
          throw new ZipCacheError(
            'ERR_ZC_NUMERIC',
            'logits: hold NaN or infinity, no token can be chosen',
          )
        }
        if (plan.stopTokens.has(id)) {
          this.#finishReason = 'stop'
          const rest = (text?.flush() ?? '') as string
          const tail = matcher.push(rest).text + matcher.flush()
          if (tail !== '') yield { id, text: tail, logprob }
          return
        }
        this.#forgetNext()
        this.#pending = id
        const isLast = step + 1 === plan.maxTokens || this.length + 1 >= config.maxPositions
        const certain = (text?.push(id) ?? '') + (isLast ? (text?.flush() ?? '') : '')
        const match = matcher.push(certain)
        const held = isLast && match.stop === null ? matcher.flush() : ''
        yield { id, text: match.text + held, logprob }
        if (match.stop !== null) {
          this.#finishReason = 'stop'
          return
        }
        if (isLast) break
        plan.signal?.throwIfAborted()
        this.#refuseDisposed()
        await this.#append([], plan.signal)
      }
      this.#finishReason = 'length'
    } finally {
      scratch.dispose()
      this.#running = false
    }
  }

  /**
   * Gives the sequence up and returns its memory to the pool: at once, or when the pass that is
   * under way has noticed; a call that waits for it rejects with `ERR_ZC_HANDLE`. Idempotent.
   */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    if (this.#nInFlight === 0) this.#release()
  }

  /** Resolves when the memory of a disposed sequence has been returned. */
  get released(): Promise<void> {
    return this.#released.promise
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  // ---- one pass of tokens ----

  /**
   * Runs the pending token and `ids` through the model and into the cache, and computes the logits
   * after the last.
   */
  async #append(
    ids: readonly number[],
    signal: AbortSignal | undefined,
    inspect?: (x: Tensor<'f32'>) => Promise<void>,
  ): Promise<void> {
    const { model } = this.#host
    const all = Int32Array.from(this.#pending === null ? ids : [this.#pending, ...ids])
    const { maxPositions } = model.config
    if (this.length + all.length > maxPositions) {
      throw new ZipCacheError(
        'ERR_ZC_CONTEXT_LENGTH',
        `prompt: ${this.length + all.length} tokens, the model's context holds ${maxPositions}`,
        { argument: 'prompt' },
      )
    }
    signal?.throwIfAborted()
    // Not AbortSignal.any: its sources remember every signal made of them, one a token.
    const checkpoint = () => {
      this.#refuseDisposed()
      signal?.throwIfAborted()
    }
    await this.#inFlight(() => this.#run(all, checkpoint, inspect))
    this.#refuseDisposed()
  }

  async #run(
    all: Int32Array,
    checkpoint: () => void,
    inspect: ((x: Tensor<'f32'>) => Promise<void>) | undefined,
  ): Promise<void> {
    const { model, pool } = this.#host
    const cache = this.#cache
    const tailBefore = cache.tailLength
    const startBefore = cache.tailStart
    const scratch = new Scratch(pool.device)
    const next = new Scratch(pool.device)
    try {
      const pass = { model, cache, ids: scratch.ints(all), nRows: all.length, scratch, checkpoint }
      const x = await this.#pass(pass)
      await inspect?.(x)
      const logits = logitsOf(model, x, Int32Array.of(all.length - 1), next)
      this.#notePeak(scratch.bytes)
      // Decode steps are awaited where their token is read.
      if (all.length > 1) await pool.device.sync()
      this.#forgetNext()
      this.#next = { scratch: next, logits }
      this.#pending = null
      for (const id of all) this.#tokens.push(id)
    } catch (error) {
      next.dispose()
      cache.unstage()
      if (cache.tailStart !== startBefore) this.#failure = error
      else if (cache.tailLength > tailBefore) cache.shrinkTail(cache.tailLength - tailBefore)
      throw error
    } finally {
      scratch.dispose()
    }
  }

  /** Chooses the road of the tokens: into the tail, or compressed at once. */
  async #pass(pass: Parameters<typeof passIntoTail>[0]): Promise<Tensor<'f32'>> {
    const { compression } = this.policy
    const { cache, model, nRows, scratch } = pass
    if (!compression) return passIntoTail(pass, null)
    const seed = deriveSeed(this.#seed, this.#nGroups)
    if (nRows > 1 && cache.tailLength + nRows >= compression.window) {
      const nTokens = cache.tailLength + nRows
      const x = await passCompressed(pass, compression, seed)
      this.#endGroup(nTokens, scratch)
      return x
    }
    this.#probes ??= new WindowProbes(model.device, compression.windowProbes(seed), {
      ...model.config,
      dtype: model.attentionDtype,
    })
    const x = await passIntoTail(pass, this.#probes)
    if (cache.tailLength === compression.window) {
      closeWindow(model, cache, compression, this.#probes, scratch)
      this.#endGroup(compression.window, scratch)
    }
    return x
  }

  /** Publishes a compression: until now its tokens were there twice. */
  #endGroup(nTokens: number, scratch: Scratch): void {
    this.#notePeak(scratch.bytes)
    this.#cache.publish(nTokens)
    this.#nGroups++
    this.#probes?.dispose()
    this.#probes = null
  }

  // ---- state ----

  async #exclusively(body: () => Promise<void>): Promise<void> {
    this.#enter()
    try {
      await body()
    } finally {
      this.#running = false
    }
  }

  #enter(): void {
    this.#refuseDisposed()
    if (this.#failure) {
      throw new ZipCacheError(
        'ERR_ZC_HANDLE',
        'sequence: an earlier step failed after its window was compressed',
        {
          cause: this.#failure,
        },
      )
    }
    if (this.#running) throw argumentError('sequence', 'is busy with another call')
    this.#running = true
  }

  /** A failed decode step leaves the cache without its token: nothing can follow. */
  async #guard<T>(work: Promise<T>): Promise<T> {
    try {
      return await this.#inFlight(() => work)
    } catch (error) {
      this.#failure = error
      throw error
    }
  }

  /** Keeps the memory until `work` has ended, even if the sequence is given up meanwhile. */
  async #inFlight<T>(work: () => Promise<T>): Promise<T> {
    this.#nInFlight++
    try {
      return await work()
    } finally {
      if (--this.#nInFlight === 0 && this.#disposed) this.#release()
    }
  }

  #release(): void {
    this.#forgetNext()
    this.#probes?.dispose()
    this.#cache.dispose()
    this.#host.released(this)
    this.#released.resolve()
  }

  #refuseDisposed(): void {
    if (!this.#disposed) return
    throw new ZipCacheError('ERR_ZC_HANDLE', 'sequence: it was disposed', { argument: 'sequence' })
  }

  #forgetNext(): void {
    this.#next?.scratch.dispose()
    this.#next = null
  }

  #idsOf(prompt: Prompt): number[] {
    const { tokenizer, model } = this.#host
    return tokenIds(prompt, tokenizer, model.config.vocabSize)
  }

  #seenTokens(vocabSize: number): Uint8Array {
    const seen = new Uint8Array(vocabSize)
    for (const id of this.#tokens) seen[id] = 1
    return seen
  }

  // ---- bytes ----

  #bytesByClass(): BytesByClass {
    return { ...this.#cache.bytesByClass(), probes: this.#probes?.bytes ?? 0 }
  }

  #notePeak(scratchBytes: number): void {
    this.#peak = Math.max(this.#peak, sumBytes(this.#bytesByClass()) + scratchBytes)
  }

  /**
   * 16 bits against r k_h + (1 - r) k_l bits and, for each class, 2 n_kv_heads head_dim channel and
   * 2 n_tokens token parameters of 16 bits. ZipCache (arXiv 2405.14256) App. A prints the formula
   * for one class; this one reproduces Tables 3, 4, A and B.
   */
  #paperRatio(): number | null {
    const { compression } = this.policy
    if (!compression || this.length === 0) return null
    const { nKvHeads, headDim } = this.#cache.shape
    const width = nKvHeads * headDim
    const n = this.length
    const r = compression.nSalient(n) / n
    const { high, low } = compression
    const bits = (r * (high.keyBits + high.valueBits) + (1 - r) * (low.keyBits + low.valueBits)) / 2
    const nClasses = r > 0 && r < 1 ? 2 : 1
    return (2 * width * n * 16) / (2 * width * n * bits + 16 * nClasses * (2 * width + 2 * n))
  }
}

function sumBytes(byClass: BytesByClass): number {
  return Object.values(byClass).reduce((sum: number, bytes: number) => sum + bytes, 0)
}

/**
 * The token ids of a prompt.
 *
 * Throws `ERR_ZC_ARGUMENT` for a text without a tokenizer, and for an id that is no whole number of
 * [0, vocab_size).
 */
export function tokenIds(
  prompt: Prompt,
  tokenizer: ModelTokenizer | null,
  vocabSize: number,
): number[] {
  if (typeof prompt === 'string') {
    if (tokenizer) return tokenizer.encode(prompt)
    throw argumentError('prompt', 'is a text, but the model has no tokenizer.json; give token ids')
  }
  // 2^32: what an array can hold.
  if (!Number.isInteger(prompt?.length) || prompt.length < 0 || prompt.length >= 2 ** 32) {
    throw argumentError('prompt', 'is neither a text nor a list of token ids')
  }
  return Array.from(prompt, (id, i) => {
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) return id
    throw argumentError(
      'prompt',
      `token ${i} is ${String(id)}, expected a whole number below ${vocabSize}`,
    )
  })
}

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve: () => void = () => {}
  const promise = new Promise<void>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}

function argumentError(argument: string, what: string): ZipCacheError {
  return new ZipCacheError('ERR_ZC_ARGUMENT', `${argument}: ${what}`, { argument })
}
