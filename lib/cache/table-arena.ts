import { ZipCacheError } from '../errors.js'
import type { Device, Tensor } from '../ops/index.js'

/** The least a table takes. */
const MIN_WORDS = 256

/**
 * Room for the page tables of all sequences in one tensor of fixed address, so that a batch is one
 * call and a recorded step finds them. Sizes are rounded up to four steps an octave; room that is
 * given back is given out again for the same size.
 */
export class TableArena {
  /** (words) i32; on the CPU memory stands behind what was written only. */
  readonly memory: Tensor<'i32'>
  readonly #free = new Map<number, number[]>()
  #end = 0
  #usedWords = 0
  #blank = new Int32Array(0)

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had. */
  constructor(device: Device, capacityWords: number) {
    this.memory = device.reserve('i32', [capacityWords])
  }

  /** Bytes of tables that are given out. */
  get usedBytes(): number {
    return this.#usedWords * 4
  }

  /** Words that a table of at least `nWords` is given. */
  static capacityOf(nWords: number): number {
    const octave = 2 ** Math.floor(Math.log2(Math.max(nWords, MIN_WORDS)))
    const step = octave / 4
    return Math.max(MIN_WORDS, Math.ceil(nWords / step) * step)
  }

  /**
   * The word where a table of `capacityOf` words may be written.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when the arena is full.
   */
  allocate(nWords: number): number {
    const capacity = TableArena.capacityOf(nWords)
    let start = this.#free.get(capacity)?.pop()
    if (start === undefined) {
      if (this.#end + capacity > this.memory.length) {
        throw new ZipCacheError(
          'ERR_ZC_OUT_OF_MEMORY',
          `kvMemory: the page tables of all sequences take ${this.memory.sizeBytes} bytes already`,
          { argument: 'kvMemory' },
        )
      }
      start = this.#end
      this.#end += capacity
    }
    this.#usedWords += capacity
    return start
  }

  /** Takes back what `allocate` gave for as many words. */
  free(start: number, nWords: number): void {
    const capacity = TableArena.capacityOf(nWords)
    const list = this.#free.get(capacity)
    if (list) list.push(start)
    else this.#free.set(capacity, [start])
    this.#usedWords -= capacity
  }

  /** Zeros to compose a table in before it is written: the same array each time. */
  blank(nWords: number): Int32Array {
    if (nWords > this.#blank.length) this.#blank = new Int32Array(TableArena.capacityOf(nWords))
    return this.#blank.subarray(0, nWords).fill(0)
  }

  dispose(): void {
    this.memory.dispose()
  }
}
