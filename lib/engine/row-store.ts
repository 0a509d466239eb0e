import type { CacheMemory, KvShape } from '../cache/index.js'
import type { Scratch } from '../model/scratch.js'
import type { DType, Tensor } from '../ops/index.js'
import type { RowPlan } from '../policy/policy.js'
import type { Probes } from './compress.js'

/** Bytes of a row store by what they hold. */
export interface RowBytes {
  /** Codes (`quantized`), or rows that are kept in 16 bits (`kept`, `tiered`). */
  readonly rows: number
  /** Codes of rows that are not among those in 16 bits (`tiered`). */
  readonly low: number
  /** Scales, zeros and normalisers, and what corrects codes. */
  readonly params: number
  /** Rows in 16 bits that wait to be quantized. */
  readonly tail: number
  /** Attention that kept rows have received so far. */
  readonly scores: number
}

/**
 * The cache of a policy whose rows are dequantized before they are attended to: tensors of its own,
 * out of the pages' sight but within `kvMemory`. Rows of all KV heads are equally many.
 */
export interface RowStore {
  readonly plan: RowPlan
  /** Tokens that came, those included that were dropped. */
  readonly length: number
  /** Rows that the next token attends to. */
  readonly nRows: number
  readonly bytes: RowBytes
  /**
   * Begins to take `nTokens` more tokens, layer by layer. At most one writer at a time;
   * `isPrompt`: whether they are a prompt's, not generated.
   */
  begin(nTokens: number, isPrompt: boolean, scratch: Scratch): RowWriter
  /**
   * A store of the same content.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  fork(): RowStore
  dispose(): void
}

/** New tokens on their way into a store, which is as before until `publish`. */
export interface RowWriter {
  /** How many of the newest rows are looked at, to score the others; 0: none. */
  readonly nObservers: number
  /** Puts the rows that are held into rows [0, nRows) of k and v (rows, n_kv_heads, head_dim). */
  read(layer: number, k: Tensor, v: Tensor): void
  /**
   * Takes the rows [nRows, nRows + nTokens) of k and v, whose first rows are those that `read` put
   * there. `probes` where there are observers.
   *
   * Rejects with `ERR_ZC_OUT_OF_MEMORY`.
   */
  write(layer: number, k: Tensor, v: Tensor, probes: Probes | null): Promise<void>
  /** Bytes that were allocated for the new tokens so far. */
  readonly bytes: number
  /** Makes the new tokens the store's. */
  publish(): void
  /** Frees what was written and will not be published. */
  discard(): void
}

/** The heads whose rows a store keeps: `makeRowStore` refuses models of more than one shape. */
export function rowShape({ shapes }: CacheMemory): KvShape {
  return shapes[0] as KvShape
}

/** The tensors that a writer makes: counted together, and freed together when they are discarded. */
export class NewTensors {
  readonly #memory: CacheMemory
  readonly #made: Tensor[] = []

  constructor(memory: CacheMemory) {
    this.#memory = memory
  }

  get bytes(): number {
    return this.#made.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  }

  /** Throws `ERR_ZC_OUT_OF_MEMORY`. */
  make<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const tensor = this.#memory.rowTensor(dtype, shape)
    this.#made.push(tensor)
    return tensor
  }

  discard(): void {
    for (const tensor of this.#made) this.#memory.freeRows(tensor)
  }
}
