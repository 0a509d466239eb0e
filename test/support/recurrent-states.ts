import type { Tensor } from '../../lib/ops/index.js'
import type { DeviceTensors } from './device-tensors.js'
import { kvTable, stackTables } from './packed-cache.js'

/** How many states there are, and how large they are. */
export interface StatesShape {
  nSeqs: number
  nHeads: number
  nLayers?: number
  /** of a convolution page: (width - 1) channels */
  convFloats: number
  /** of a head page: key_dim value_dim */
  headFloats: number
}

/**
 * A pool and the state tables of some sequences, as csrc/ops/state_table.h describes them. Pages are handed out
 * with gaps and in no order, and all that is never written reads as NaN.
 */
export class RecurrentStates {
  readonly words: Int32Array
  readonly starts: Int32Array
  /** What the pool holds. */
  readonly bytes: Uint8Array
  readonly #shape: Required<StatesShape>

  constructor(shape: StatesShape) {
    this.#shape = { nLayers: 2, ...shape }
    const { nSeqs, nLayers, nHeads, convFloats, headFloats } = this.#shape
    const pages = Array.from({ length: nSeqs * nLayers * (1 + nHeads) }, (_, i) => ({
      word: i,
      units: Math.ceil(
        (4 * (i % (1 + nHeads) === 0 ? convFloats : headFloats)) / kvTable.unitBytes,
      ),
    }))
    let end = 1
    const addresses = new Int32Array(pages.length)
    // Every third page from the first, the second, the third one on.
    for (const { word, units } of [0, 1, 2].flatMap((r) => pages.filter((_, i) => i % 3 === r))) {
      addresses[word] = end
      end += units + 1
    }
    const perTable = nLayers * (1 + nHeads)
    const tables = Array.from({ length: nSeqs }, (_, seq) =>
      addresses.subarray(seq * perTable, (seq + 1) * perTable),
    )
    const stacked = stackTables(tables)
    this.words = stacked.words
    this.starts = stacked.starts
    this.bytes = new Uint8Array(end * kvTable.unitBytes).fill(0xff)
  }

  /** A sequence's convolution page, in `bytes` or in what a pool was read as. */
  conv(seq: number, layer: number, bytes = this.bytes): Float32Array {
    return this.#page(this.wordOf(seq, layer), this.#shape.convFloats, bytes)
  }

  /** The page of one head of it. */
  head(seq: number, layer: number, head: number, bytes = this.bytes): Float32Array {
    return this.#page(this.wordOf(seq, layer) + 1 + head, this.#shape.headFloats, bytes)
  }

  /** Where the words of a layer begin in `words`. */
  wordOf(seq: number, layer: number): number {
    return (this.starts[seq] as number) + layer * (1 + this.#shape.nHeads)
  }

  /** The tensors that an op is given; the sequences of `masked` have no table. */
  on(tensors: DeviceTensors, masked: readonly number[] = []) {
    const pool: Tensor<'u8'> = tensors.own(tensors.device.tensor('u8', [this.bytes.length]))
    pool.write(this.bytes)
    const states = tensors.i32(this.starts.map((start, seq) => (masked.includes(seq) ? -1 : start)))
    return { pool, tables: tensors.i32(this.words), states }
  }

  #page(word: number, floats: number, bytes: Uint8Array): Float32Array {
    const at = bytes.byteOffset + (this.words[word] as number) * kvTable.unitBytes
    return new Float32Array(bytes.buffer, at, floats)
  }
}
