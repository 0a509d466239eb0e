import { argumentError, show } from '../errors.js'
import type { ModelConfig } from '../model/config.js'
import { fingerprintOf } from '../model/fingerprint.js'
import type { ForwardModel } from '../model/forward.js'
import type { GenerationConfig } from '../model/generation-config.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import type { ComputeDtype, WeightFormat } from '../model/weights.js'
import type { Device } from '../ops/index.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import {
  type CreateSequenceOptions,
  Engine,
  type EngineOptions,
  type EngineStats,
  type KvMemory,
  type SequenceOptions,
} from './engine.js'
import { estimatePrompt, type MemoryEstimate } from './estimate.js'
import {
  type FinishReason,
  type GeneratedToken,
  type GenerateOptions,
  type TokenStream,
  tokenStream,
} from './generation.js'
import { checkOptions } from './options.js'
import { checkPromptLength, type Prompt } from './prompt.js'
import { disposedError } from './refusals.js'
import type { Sequence } from './sequence.js'

/**
 * A checkpoint loaded onto a device, ready to run. Made by `loadModel`. Its methods use an engine of
 * its own, made when the first of them is called; `createEngine` makes further ones over the same
 * weights.
 */
export class Model {
  /** What config.json says, checked and with the defaults filled in. */
  readonly config: ModelConfig
  /** What the model computes in. */
  readonly dtype: ComputeDtype
  /** How its matrices are kept. */
  readonly weights: WeightFormat
  /** Where its weights lie and where it computes. */
  readonly device: Device
  /** null when the folder has no tokenizer.json: prompts are token ids then. */
  readonly tokenizer: ModelTokenizer | null
  /** What its authors advise of sampling; null when the folder has no generation_config.json. */
  readonly generationConfig: GenerationConfig | null
  readonly #forward: ForwardModel
  /** Of its own engine's caches; null: half of what is free by then. */
  readonly #kvMemory: number | null
  #engine: Engine | null = null
  readonly #engines = new Set<Engine>()
  readonly #release: () => Promise<void>
  #disposal: Promise<void> | null = null

  /** @internal */
  constructor(
    forwardModel: ForwardModel,
    kvMemory: number | null,
    tokenizer: ModelTokenizer | null,
    generationConfig: GenerationConfig | null,
    release: () => Promise<void>,
  ) {
    this.config = forwardModel.config
    this.dtype = forwardModel.dtype
    this.weights = forwardModel.weightFormat
    this.device = forwardModel.device
    this.tokenizer = tokenizer
    this.generationConfig = generationConfig
    this.#forward = forwardModel
    this.#kvMemory = kvMemory
    this.#release = release
    if (kvMemory !== null) this.#ownEngine() // what was asked for is there, or the load fails
  }

  #ownEngine(): Engine {
    this.#engine ??= this.createEngine({
      kvMemory: this.#kvMemory ?? this.device.memory.free / 2,
    })
    return this.#engine
  }

  /**
   * What tells models apart: a SHA-256 over configuration, compute type and samples of all weights.
   */
  async fingerprint(): Promise<string> {
    return fingerprintOf(this.#forward)
  }

  /** Memory of the caches of the model's own engine. */
  get kvMemory(): KvMemory {
    return this.#ownEngine().kvMemory
  }

  /** What the model's own engine is doing. */
  stats(): EngineStats {
    return this.#ownEngine().stats()
  }

  /** @internal Use `createEngine`. */
  createEngine(options: EngineOptions): Engine {
    if (this.#disposal) throw disposedError('model')
    const ended = (gone: Engine) => this.#engines.delete(gone)
    const engine = new Engine(this.#forward, this.tokenizer, options, ended)
    this.#engines.add(engine)
    return engine
  }

  /**
   * What a prompt of so many tokens in an empty context will take: weights, cache, one layer's K and
   * V, activations, and their sum, which is the weights and `Sequence.bytes.peak`. Nothing is
   * allocated. Where r is chosen head by head, the cache is an upper bound. `kvMemory` has to be
   * somewhat larger than `cache`, since pages claim it in blocks (see `EngineOptions`).
   *
   * - `tokens`: 1 or more, as many as the model's context holds at most. `policy`: default `zipcache`
   *
   * Throws `ERR_ZC_ARGUMENT`, `ERR_ZC_CONTEXT_LENGTH`, `ERR_ZC_HANDLE` when the model was disposed of.
   */
  estimate(options: { tokens: number; policy?: PolicySpec | undefined }): MemoryEstimate {
    // A caller without types may leave everything out.
    const { tokens, policy = 'zipcache' } = (options ?? {}) as Partial<typeof options>
    if (this.#disposal) throw disposedError('model')
    checkOptions(options ?? {}, ['tokens', 'policy'])
    if (tokens !== undefined && Number.isInteger(tokens) && tokens > 0) {
      checkPromptLength('tokens', tokens, this.config)
      return estimatePrompt(this.#forward, resolvePolicy(policy), tokens)
    }
    throw argumentError('tokens', `is ${show(tokens)}, expected a whole number above 0`)
  }

  /**
   * An empty context with a cache of its own. Dispose of it when it is no longer needed.
   *
   * Throws `ERR_ZC_ARGUMENT` for an unknown policy or option, `ERR_ZC_HANDLE` when the model was
   * disposed of.
   */
  createSequence(options: CreateSequenceOptions = {}): Sequence {
    if (this.#disposal) throw disposedError('model')
    return this.#ownEngine().createSequence(options)
  }

  /**
   * Tokens after a prompt, as they are generated, and then why they ended (`finishReason`); the
   * context is let go of at the end. `Sequence.generate` keeps it.
   *
   * Throws, once it is read, as `Sequence.generate` and `createSequence`.
   */
  generate(prompt: Prompt, options: GenerateOptions & SequenceOptions = {}): TokenStream {
    return tokenStream(this.#generate(prompt, options))
  }

  async *#generate(
    prompt: Prompt,
    options: GenerateOptions & SequenceOptions,
  ): AsyncGenerator<GeneratedToken, FinishReason | null, undefined> {
    if (this.#disposal) throw disposedError('model')
    const tokens = this.#ownEngine().generate(prompt, options)
    yield* tokens
    return tokens.finishReason
  }

  /**
   * Logits after every token of a prompt: (prompt tokens, vocab_size), row-major.
   *
   * Rejects as `Sequence.prefill`.
   */
  async logits(
    prompt: Prompt,
    options: SequenceOptions & { signal?: AbortSignal | undefined } = {},
  ): Promise<Float32Array> {
    checkOptions(options, ['policy', 'seed', 'signal'])
    const { signal, ...rest } = options
    const sequence = this.createSequence(rest)
    try {
      return await sequence.logits(prompt, { signal })
    } finally {
      sequence.dispose()
    }
  }

  /**
   * Disposes of the engines with their sequences, the weights, and the device if the model opened
   * it. Idempotent.
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
    await Promise.all([...this.#engines].map((engine) => engine.dispose()))
    await this.#release()
  }
}

/**
 * An engine over a model's weights, with cache memory of its own: many sequences at a time, batched.
 *
 * Throws `ERR_ZC_ARGUMENT` for options out of range, `ERR_ZC_HANDLE` when the model was disposed of,
 * `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had.
 */
export function createEngine(options: { model: Model } & EngineOptions): Engine {
  // A caller without types may leave everything out.
  const { model, ...others } = (options ?? {}) as typeof options
  checkModel(model)
  return model.createEngine(others)
}

/** Throws `ERR_ZC_ARGUMENT` for what is no model. */
export function checkModel(model: Model | undefined): asserts model is Model {
  if (typeof model?.createEngine === 'function') return
  throw argumentError('model', 'expected a Model, as loadModel gives one')
}
