import type { PagePool } from '../cache/index.js'
import { ZipCacheError } from '../errors.js'
import type { ModelConfig } from '../model/config.js'
import type { ForwardModel } from '../model/forward.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import type { ComputeDtype } from '../model/weights.js'
import type { Device } from '../ops/index.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { toSeed } from '../random.js'
import type { GeneratedToken, GenerateOptions } from './generation.js'
import { type Prompt, Sequence } from './sequence.js'

/** Settings of one sequence. */
export interface SequenceOptions {
  /** How its cache is kept; default `zipcache`, the paper's. */
  policy?: PolicySpec
  /** Seed of the probes; default 0. */
  seed?: number
}

/** A checkpoint loaded onto a device, ready to run. Made by `loadModel`. */
export class Model {
  readonly config: ModelConfig
  /** What the model computes in. */
  readonly dtype: ComputeDtype
  readonly device: Device
  /** null when the folder has no tokenizer.json: prompts are token ids then. */
  readonly tokenizer: ModelTokenizer | null
  readonly #forward: ForwardModel
  readonly #pool: PagePool
  readonly #release: () => Promise<void>
  readonly #sequences = new Set<Sequence>()
  #disposed = false

  /** @internal */
  constructor(
    forwardModel: ForwardModel,
    pool: PagePool,
    tokenizer: ModelTokenizer | null,
    release: () => Promise<void>,
  ) {
    this.config = forwardModel.config
    this.dtype = forwardModel.dtype
    this.device = forwardModel.device
    this.tokenizer = tokenizer
    this.#forward = forwardModel
    this.#pool = pool
    this.#release = release
  }

  /** Bytes of cache pages: given out to sequences, and the most there may be. */
  get kvMemory(): { used: number; capacity: number } {
    return { used: this.#pool.usedBytes, capacity: this.#pool.capacityBytes }
  }

  /**
   * An empty context with a cache of its own. Dispose of it when it is no longer needed.
   *
   * Throws `ERR_ZC_ARGUMENT` for an unknown policy or option, `ERR_ZC_HANDLE` when the model was
   * disposed of.
   */
  createSequence(options: SequenceOptions = {}): Sequence {
    if (this.#disposed) {
      throw new ZipCacheError('ERR_ZC_HANDLE', 'model: it was disposed', { argument: 'model' })
    }
    const policy = resolvePolicy(options.policy ?? 'zipcache')
    const host = {
      model: this.#forward,
      pool: this.#pool,
      tokenizer: this.tokenizer,
      released: (gone: Sequence) => this.#sequences.delete(gone),
    }
    const sequence = new Sequence(host, policy, toSeed(options.seed ?? 0))
    this.#sequences.add(sequence)
    return sequence
  }

  /**
   * Tokens after a prompt, as they are generated; the context is let go of at the end.
   * `Sequence.generate` keeps it.
   *
   * Throws as `Sequence.generate` and `createSequence`.
   */
  async *generate(
    prompt: Prompt,
    options: GenerateOptions & SequenceOptions = {},
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    const sequence = this.createSequence(options)
    try {
      yield* sequence.generate(prompt, options)
    } finally {
      sequence.dispose()
    }
  }

  /**
   * Logits after every token of a prompt: (prompt tokens, vocab_size), row-major.
   *
   * Rejects as `Sequence.prefill`.
   */
  async logits(
    prompt: Prompt,
    options: SequenceOptions & { signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const sequence = this.createSequence(options)
    try {
      return await sequence.logits(prompt, options)
    } finally {
      sequence.dispose()
    }
  }

  /** Disposes of the sequences, the weights, and the device if the model opened it. Idempotent. */
  async dispose(): Promise<void> {
    if (this.#disposed) return
    this.#disposed = true
    const released = [...this.#sequences].map((sequence) => {
      sequence.dispose()
      return sequence.released
    })
    await Promise.all(released)
    await this.#release()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}
