import type { Tensor } from '../ops/index.js'
import type { CacheDemand } from './cache-demand.js'
import type { CacheMemory } from './cache-memory.js'
import { PAGE_UNIT_BYTES } from './format.js'
import { TableArena } from './table-arena.js'

/** What the recurrent layers of a model keep of a sequence: as much after any number of tokens. */
export interface StateShape {
  /** Recurrent layers. */
  readonly nLayers: number
  /** Value heads of one. */
  readonly nHeads: number
  /** A layer's last inputs of its convolution: (conv_width - 1, channels) f32, in whole units. */
  readonly convBytes: number
  /** A head's state: (key_dim, value_dim) f32. */
  readonly headBytes: number
}

/** Bytes of a state, its table aside. */
export function stateBytes({ nLayers, nHeads, convBytes, headBytes }: StateShape): number {
  return nLayers * (convBytes + nHeads * headBytes)
}

/** Adds so many states. */
export function addStates(demand: CacheDemand, shape: StateShape, n: number): void {
  const { nLayers, nHeads, convBytes, headBytes } = shape
  demand.addPages(convBytes, n * nLayers)
  demand.addPages(headBytes, n * nLayers * nHeads)
  demand.otherBytes += n * stateTableBytes(shape)
}

/** Bytes of a state's table. */
export function stateTableBytes(shape: StateShape): number {
  return 4 * TableArena.capacityOf(tableWords(shape))
}

/** Words of a state's table: for each layer the page of its convolution, then one for each head. */
function tableWords({ nLayers, nHeads }: StateShape): number {
  return nLayers * (1 + nHeads)
}

/**
 * The state of one sequence in a model's recurrent layers: pages of the pool, which ops find through
 * the words at `start` of the tables (`gatedDelta`, `causalConv`). Ops write it in place, so that who
 * may have to go back makes a copy first.
 */
export class RecurrentState {
  readonly #memory: CacheMemory
  readonly #shape: StateShape
  /** (n_layers) */
  readonly #convPages: Int32Array
  /** (n_layers, n_heads) */
  readonly #headPages: Int32Array
  /** The word of `memory.tables` where its table begins. */
  readonly start: number

  /** Takes pages over. Throws `ERR_ZC_OUT_OF_MEMORY`, with the pages freed. */
  private constructor(
    memory: CacheMemory,
    shape: StateShape,
    convPages: Int32Array,
    headPages: Int32Array,
  ) {
    this.#memory = memory
    this.#shape = shape
    this.#convPages = convPages
    this.#headPages = headPages
    try {
      this.start = memory.tables.allocate(tableWords(shape))
    } catch (error) {
      this.#freePages()
      throw error
    }
    const words = new Int32Array(tableWords(shape))
    for (let layer = 0; layer < shape.nLayers; layer++) {
      const at = layer * (1 + shape.nHeads)
      words[at] = convPages[layer] as number
      words.set(headPages.subarray(layer * shape.nHeads, (layer + 1) * shape.nHeads), at + 1)
    }
    memory.tables.memory.write(words, this.start)
  }

  /**
   * Room for a state, which holds anything.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  static make(memory: CacheMemory, shape: StateShape): RecurrentState {
    const { pool } = memory
    const { nLayers, nHeads, convBytes, headBytes } = shape
    const convPages = pool.allocateMany(nLayers, convBytes)
    let headPages: Int32Array
    try {
      headPages = pool.allocateMany(nLayers * nHeads, headBytes)
    } catch (error) {
      pool.freeMany(convPages, convBytes)
      throw error
    }
    return new RecurrentState(memory, shape, convPages, headPages)
  }

  /**
   * A state of the same content and pages of its own.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  copy(): RecurrentState {
    const { convBytes, headBytes } = this.#shape
    const copy = RecurrentState.make(this.#memory, this.#shape)
    try {
      this.#memory.copyPages(this.#convPages, copy.#convPages, convBytes)
      this.#memory.copyPages(this.#headPages, copy.#headPages, headBytes)
      return copy
    } catch (error) {
      copy.dispose()
      throw error
    }
  }

  /**
   * The same state for another holder: neither may write it before a `copy`.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its table.
   */
  share(): RecurrentState {
    const { pool } = this.#memory
    for (const page of this.#convPages) pool.retain(page, this.#shape.convBytes)
    for (const page of this.#headPages) pool.retain(page, this.#shape.headBytes)
    return new RecurrentState(this.#memory, this.#shape, this.#convPages, this.#headPages)
  }

  /** Whether it has another holder, too. */
  get isShared(): boolean {
    return this.#memory.pool.isShared(this.#convPages[0] as number, this.#shape.convBytes)
  }

  /** Bytes of its pages. */
  get bytes(): number {
    return stateBytes(this.#shape)
  }

  get tableBytes(): number {
    return stateTableBytes(this.#shape)
  }

  /** Its pages, (bytes) u8 each, for the caller to dispose of: those of a layer together. */
  *pagesOfLayers(): Generator<Tensor<'u8'>[]> {
    const { nLayers, nHeads, convBytes, headBytes } = this.#shape
    const { memory } = this.#memory.pool
    const view = (page: number, bytes: number) => memory.view([bytes], page * PAGE_UNIT_BYTES)
    for (let layer = 0; layer < nLayers; layer++) {
      const heads = this.#headPages.subarray(layer * nHeads, (layer + 1) * nHeads)
      const conv = view(this.#convPages[layer] as number, convBytes)
      yield [conv, ...Array.from(heads, (page) => view(page, headBytes))]
    }
  }

  dispose(): void {
    this.#memory.tables.free(this.start, tableWords(this.#shape))
    this.#freePages()
  }

  #freePages(): void {
    const { pool } = this.#memory
    pool.freeMany(this.#convPages, this.#shape.convBytes)
    pool.freeMany(this.#headPages, this.#shape.headBytes)
  }
}
