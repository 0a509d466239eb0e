import type { CacheSegment } from '../cache/index.js'
import { argumentError, ZipCacheError } from '../errors.js'
import { logitsOf } from '../model/forward.js'
import { checkPath } from '../model/model-files.js'
import { Scratch } from '../model/scratch.js'
import { StopMatcher, TextStream } from '../model/text-stream.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import type { CachePolicy } from '../policy/index.js'
import { deferred, onAbort } from './abort.js'
import type { CacheBytes, Context } from './context.js'
import {
  type FinishReason,
  type GeneratedToken,
  type GenerateOptions,
  planGeneration,
  type TokenStream,
  tokenStream,
} from './generation.js'
import { checkOptions } from './options.js'
import { checkPromptLength, type Prompt, tokenIds } from './prompt.js'
import { disposedError, failedError } from './refusals.js'
import { type Place, Run, type RunOptions, type RunStart } from './run.js'
import { salientTokens } from './salient-tokens.js'
import type { Scheduler } from './scheduler.js'
import { saveContext } from './snapshot.js'
import { mapTokens, type TokenMap } from './token-map.js'

/** Rows whose logits are computed at a time by `Sequence.logits`. */
const LOGIT_ROWS = 256

/** @internal A place in a prompt: what is before it runs as a turn of its own, as one prompt before another would. */
export interface PromptPlace {
  /** Tokens of the prompt behind it, fewer than there are; 0: it is the prompt's end. */
  readonly nBehind: number
  /**
   * Told when the sequence holds what is before it. `fork`: as `Sequence.fork`, of that; out of memory,
   * too, where requests under way may need what it takes.
   */
  readonly reached: (there: Pick<Sequence, 'fork'>) => void
}

/** @internal How a prompt runs that a sequence is given. */
export interface PromptCourse {
  /** Where turns of it end, in their order; default: it is one. */
  readonly places?: readonly PromptPlace[]
  /**
   * How the sequence's past and the prompt run as one prompt. That is done where memory is wanted while
   * the call waits to be let in, and there is none but what the past takes; without it nobody gives that up.
   */
  readonly anew?: PromptAnew
}

/** @internal A past and the prompt behind it, as one prompt. */
export interface PromptAnew {
  readonly ids: readonly number[]
  readonly places: readonly PromptPlace[]
  /** Told when the sequence has given its past up. */
  readonly begins: () => void
}

/** What a sequence needs of its engine. */
export interface SequenceHost {
  readonly scheduler: Scheduler
  readonly tokenizer: ModelTokenizer | null
  /** Called once, when the sequence's memory has been returned. */
  released(sequence: Sequence): void
  /** Makes a sequence of a context. */
  adopt(context: Context): Sequence
}

/**
 * One context and its cache: prefill, then decode steps, a compression at the end of every window,
 * then perhaps another prompt over the compressed past.
 *
 * Its methods reject with `ERR_ZC_HANDLE` once it was disposed of, with `ERR_ZC_ARGUMENT` while
 * another call is running, and with `ERR_ZC_BUSY` when the engine's queue is full.
 */
export class Sequence {
  readonly #host: SequenceHost
  #context: Context
  /** The call that has not ended; it may be waiting for its caller to ask for the next token. */
  #run: Run | null = null
  #isBusy = false
  readonly #released = deferred()
  #disposed = false
  #finishReason: FinishReason | null = null

  /** @internal Use `Engine.createSequence` or `Model.createSequence`. */
  constructor(host: SequenceHost, context: Context) {
    this.#host = host
    this.#context = context
  }

  /** How its cache is kept. */
  get policy(): CachePolicy {
    return this.#context.policy
  }

  /** Tokens in the cache. */
  get length(): number {
    return this.#context.length
  }

  /** The tokens so far, one that was generated but has not been through the model included. */
  get tokens(): readonly number[] {
    const { tokens, pending } = this.#context
    return pending === null ? tokens.slice() : [...tokens, pending]
  }

  /** Whether it can go on: not disposed of, no call under way, no step that failed on the device. */
  get isUsable(): boolean {
    return !this.#disposed && !this.#isBusy && !this.#context.failure
  }

  /**
   * Why the last generation ended; null before, while it runs, and when it failed or its loop was
   * left.
   */
  get finishReason(): FinishReason | null {
    return this.#finishReason
  }

  /** Precision classes in the cache: compressed segments with their formats, oldest first. */
  get segments(): readonly CacheSegment[] {
    return this.#context.cache.segments
  }

  /** Memory of its cache. Throws `ERR_ZC_HANDLE` once it was disposed of. */
  get bytes(): CacheBytes {
    this.#refuseDisposed()
    return this.#context.bytes
  }

  /** @internal `bytes`, or null once the memory is on its way back. */
  get bytesHeld(): CacheBytes | null {
    return this.#disposed ? null : this.#context.bytes
  }

  /**
   * Runs a prompt through the model and into the cache; called again, it continues over the
   * compressed past.
   *
   * Rejects with `ERR_ZC_ARGUMENT` for an empty prompt or a token out of range,
   * `ERR_ZC_CONTEXT_LENGTH` when it does not fit the model's context, `ERR_ZC_OUT_OF_MEMORY` when
   * it does not fit the cache, `signal.reason` when aborted; the sequence is then as it was before.
   */
  async prefill(prompt: Prompt, options: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    checkOptions(options, ['signal'])
    await this.#append(prompt, options.signal)
  }

  /**
   * `prefill` that returns the logits after every token of the prompt: (prompt tokens, vocab_size),
   * row-major.
   *
   * Attention among the tokens of one prompt is exact under every policy, with one exception: a prompt
   * that goes on in the tail sees its own K and V rounded to the tail's 16 bits. To see what
   * compression costs, prefill a prefix and ask for the logits of what follows.
   */
  async logits(
    prompt: Prompt,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<Float32Array> {
    checkOptions(options, ['signal'])
    const { model } = this.#context
    const { vocabSize } = model.config
    let all = new Float32Array(0)
    await this.#append(prompt, options.signal, async (x, turn) => {
      const nAll = x.shape[0] as number
      const nRows = nAll - (this.#context.pending === null ? 0 : 1)
      all = new Float32Array(nRows * vocabSize)
      for (let row = 0; row < nRows; row += LOGIT_ROWS) {
        await turn()
        const rows = new Int32Array(Math.min(LOGIT_ROWS, nRows - row))
        const scratch = new Scratch(model.device)
        try {
          const wanted = rows.map((_, i) => nAll - nRows + row + i)
          all.set(await logitsOf(model, x, wanted, scratch).read(), row * vocabSize)
        } finally {
          scratch.dispose()
        }
      }
    })
    return all
  }

  /**
   * Generates tokens after a prompt, or after what the sequence holds when `prompt` is null;
   * `finishReason` tells why it ended. Stop tokens and stop texts are not part of the generation. A
   * token that a stop text begins in leaves the sequence again, unless it has been compressed, lies in a
   * row store or has changed the state of recurrent layers. The sequence stays usable when the loop is left early.
   *
   * Throws when it is read: as `prefill`; `ERR_ZC_ARGUMENT` for options out of range,
   * `ERR_ZC_NUMERIC` when the model's logits are NaN.
   */
  generate(prompt: Prompt | null, options?: GenerateOptions): TokenStream
  /** @internal Memory for the answer is promised before the first turn of the prompt runs. */
  generate(prompt: Prompt | null, options: GenerateOptions, course: PromptCourse): TokenStream
  generate(
    prompt: Prompt | null,
    options: GenerateOptions = {},
    course: PromptCourse = {},
  ): TokenStream {
    return tokenStream(this.#generate(prompt, options, course))
  }

  async *#generate(
    prompt: Prompt | null,
    options: GenerateOptions,
    { places = [], anew }: PromptCourse,
  ): AsyncGenerator<GeneratedToken, FinishReason | null, undefined> {
    const { tokenizer } = this.#host
    const plan = planGeneration(options, this.#context.model.config, tokenizer)
    this.#enter()
    this.#finishReason = null
    let run: Run | null = null
    let nAccepted = 0
    /** Where the text of each token ends, in the text of all. */
    const ends: number[] = []
    let nTold = 0
    try {
      plan.signal?.throwIfAborted()
      const ids = this.#idsToRun(prompt === null ? [] : this.#idsOf(prompt))
      const sampling = { ...plan, predicted: this.#predictedBy(options) }
      const parts = { ids, sampling, places: this.#placesOf(places) }
      run = this.#submit({ ...parts, anew: anew && (() => this.#beginAnew(anew)) }, plan.signal)
      let text: TextStream | null = null
      const matcher = new StopMatcher(plan.stopTexts)
      if (plan.maxTokens === 0) await run.finished()

      for (let isLast = plan.maxTokens === 0; !isLast; ) {
        const { isComplete, ...token } = await run.next()
        const { id } = token
        // Those of the prompt are the context's by now.
        const before = plan.continueText ? this.#context.tokens : []
        text ??= tokenizer && new TextStream(tokenizer, { skip: tokenizer.specialIds, before })
        if (plan.stopTokens.has(id)) {
          this.#finishReason = 'stop'
          const rest = (text?.flush() ?? '') as string
          const tail = matcher.push(rest).text + matcher.flush()
          if (tail !== '') yield { ...token, text: tail, isStop: true }
          return this.#finishReason
        }
        isLast = ++nAccepted === run.limit || isComplete === true
        const certain = (text?.push(id) ?? '') + (isLast ? (text?.flush() ?? '') : '')
        ends.push((ends.at(-1) ?? 0) + certain.length)
        const match = matcher.push(certain)
        const held = isLast && match.stop === null ? matcher.flush() : ''
        nTold += match.text.length
        yield { ...token, text: match.text + held }
        if (match.stop !== null) nAccepted = tokensWithin(ends, nTold)
        if (match.stop !== null || isComplete) {
          this.#finishReason = 'stop'
          return this.#finishReason
        }
      }
      this.#finishReason = 'length'
      return this.#finishReason
    } finally {
      run?.close(nAccepted)
      await run?.settled
      this.#leave()
    }
  }

  /**
   * A sequence that goes on from here by itself, with the same tokens as this one would. Pages are
   * shared, and copied when one of the two writes to them.
   *
   * Throws `ERR_ZC_ARGUMENT` while a call is running, `ERR_ZC_OUT_OF_MEMORY`.
   */
  fork(): Sequence {
    this.#refuseUnusable()
    return this.#fork()
  }

  /**
   * Writes the sequence to a file, which `Engine.restore` reads: tokens, packed cache, tail and
   * probes, with a checksum, put in place when it is whole.
   *
   * - `path`: of the file, or its `file:` URL
   *
   * Rejects with `ERR_ZC_ARGUMENT` for a `path` that is none and while a call is running,
   * `ERR_ZC_UNSUPPORTED` under a policy whose attention is `dequantized` or that chose r head by head,
   * `ERR_ZC_OUT_OF_MEMORY`, `ERR_ZC_IO`.
   */
  async save(path: string | URL): Promise<void> {
    const file = checkPath('path', path, 'the path of a file')
    this.#enter()
    let context: Context | null = null
    try {
      // What is saved must outlive the sequence, should it be disposed of meanwhile.
      context = this.#context.fork()
      await saveContext(context, file)
    } finally {
      context?.dispose()
      this.#leave()
    }
  }

  /**
   * Positions of the tokens that were found salient, ascending, for each layer and KV head. Tokens of
   * the 16-bit tail, and of compressions with one class of tokens, are not told apart.
   *
   * Rejects with `ERR_ZC_ARGUMENT` while a call is running.
   */
  async salientTokens(): Promise<readonly (readonly Int32Array[])[]> {
    this.#enter()
    try {
      const { cache, model } = this.#context
      return await salientTokens(cache, model.config)
    } finally {
      this.#leave()
    }
  }

  /**
   * How each token is kept as the cache is now, also while another call is under way: its bits, in
   * how many layers and KV heads it is salient and, where the sequence records them, its scores.
   */
  async tokenMap(): Promise<TokenMap> {
    this.#refuseDisposed()
    const { saliency, tokens, failure } = this.#context
    if (failure) throw failedError(failure)
    const generated = this.#run?.ended === false ? this.#run.known : []
    return mapTokens(this.#context, saliency, [...tokens, ...generated])
  }

  /**
   * @internal A fork of what the cache holds; null for a sequence that cannot go on, or when there
   * is no memory for it.
   */
  past(): Context | null {
    if (this.#disposed || this.#isBusy || this.#context.failure || this.length === 0) return null
    try {
      return this.#context.fork()
    } catch {
      return null
    }
  }

  /**
   * Gives the sequence up and returns its memory to the pool: at once, or when the pass that is
   * under way has noticed; a call that waits for it rejects with `ERR_ZC_HANDLE`. Idempotent.
   */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    const run = this.#run
    if (!run) {
      this.#release()
      return
    }
    run.fail(disposedError('sequence'))
    void run.settled.then(() => this.#release())
  }

  /** Resolves when the memory of a disposed sequence has been returned. */
  get released(): Promise<void> {
    return this.#released.promise
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  // ---- one call ----

  async #append(
    prompt: Prompt,
    signal: AbortSignal | undefined,
    inspect?: RunOptions['inspect'],
  ): Promise<void> {
    this.#enter()
    try {
      const ids = this.#idsOf(prompt)
      if (ids.length === 0) throw argumentError('prompt', 'is empty, expected at least one token')
      signal?.throwIfAborted()
      await this.#submit({ ids: this.#idsToRun(ids), sampling: null, inspect }, signal).finished()
    } finally {
      this.#leave()
    }
  }

  /** The pending token and new ones, or none where the next logits are there. */
  #idsToRun(ids: readonly number[]): Int32Array {
    const context = this.#context
    if (ids.length === 0 && context.pending === null && !context.nextLogits) {
      throw argumentError('prompt', 'is empty, expected at least one token')
    }
    const all = Int32Array.from(context.pending === null ? ids : [context.pending, ...ids])
    checkPromptLength('prompt', context.length + all.length, context.model.config)
    return all
  }

  #fork(): Sequence {
    return this.#host.adopt(this.#context.fork())
  }

  /** A fork while a call is under way: of memory that was promised to nobody. */
  #forkBeside(): Sequence {
    const fork = this.#fork()
    let isKept = false
    try {
      isKept = this.#host.scheduler.keepsPromises()
    } finally {
      if (!isKept) fork.dispose()
    }
    if (isKept) return fork
    const why = 'kvMemory: what is free is promised to requests that run'
    throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', why, { argument: 'kvMemory' })
  }

  #placesOf(places: readonly PromptPlace[]): Place[] {
    const there = { fork: () => this.#forkBeside() }
    return places.map(({ nBehind, reached }) => ({ nBehind, reached: () => reached(there) }))
  }

  /** Gives the past up for a call that waits. Throws `ERR_ZC_OUT_OF_MEMORY`, with the past as it was. */
  #beginAnew({ ids, places, begins }: PromptAnew): RunStart {
    const past = this.#context
    this.#context = past.blank()
    past.dispose()
    begins()
    return { context: this.#context, ids: Int32Array.from(ids), places: this.#placesOf(places) }
  }

  #submit(options: Omit<RunOptions, 'context'>, signal: AbortSignal | undefined): Run {
    const { scheduler } = this.#host
    const run = new Run({ context: this.#context, ...options }, scheduler.wake)
    scheduler.submit(run)
    this.#run = run
    if (!signal) return run
    const abort = () => run.fail(signal.reason)
    const forget = onAbort(signal, abort)
    if (signal.aborted) abort() // by `reclaim`, say, which may have run meanwhile
    void run.settled.then(forget)
    return run
  }

  #enter(): void {
    this.#refuseUnusable()
    this.#isBusy = true
  }

  #leave(): void {
    this.#isBusy = false
    this.#run = null
  }

  #refuseUnusable(): void {
    this.#refuseDisposed()
    const { failure } = this.#context
    if (failure) throw failedError(failure)
    if (this.#isBusy) throw argumentError('sequence', 'is busy with another call')
  }

  #refuseDisposed(): void {
    if (this.#disposed) throw disposedError('sequence')
  }

  #release(): void {
    this.#context.dispose()
    this.#host.released(this)
    this.#released.resolve()
  }

  #predictedBy({ prediction }: GenerateOptions): number[] {
    if (prediction === undefined) return []
    const { vocabSize } = this.#context.model.config
    const style = { argument: 'prediction', addSpecialTokens: false }
    return tokenIds(prediction, this.#host.tokenizer, vocabSize, style)
  }

  #idsOf(prompt: Prompt): number[] {
    const { tokens, model } = this.#context
    const style = { addSpecialTokens: tokens.length === 0 }
    return tokenIds(prompt, this.#host.tokenizer, model.config.vocabSize, style)
  }
}

/** How many tokens, from the first on, have their whole text in the first `length` characters. */
function tokensWithin(ends: readonly number[], length: number): number {
  // The last that added some: what a token without text leaves open may be completed beyond.
  return ends.findLastIndex((end, i) => end <= length && end > (ends[i - 1] ?? 0)) + 1
}
