import type { CacheMemory } from '../cache/index.js'
import type { Scratch } from '../model/scratch.js'
import { convert, type Tensor } from '../ops/index.js'
import type { QuantizedPlan, RowCodec } from '../policy/policy.js'
import { type Chunk, chunkRows, makeChunk, RowCoder, tensorsOf } from './row-coder.js'
import { NewTensors, type RowBytes, type RowStore, type RowWriter, rowShape } from './row-store.js'

/** Rows of a block of the 16-bit residual. */
export const BLOCK_ROWS = 16

/** K or V of one layer: quantized rows, then those in 16 bits. */
interface Part {
  readonly chunks: readonly Chunk[]
  readonly nQuantized: number
  readonly blocks: readonly Tensor<'f16'>[]
}

interface Layer {
  readonly key: Part
  readonly value: Part
}

const EMPTY: Part = { chunks: [], nQuantized: 0, blocks: [] }
const PARTS = ['key', 'value'] as const

/** `QuantizedPlan` at work: codes, and the newest rows in 16 bits. */
export class QuantizedRows implements RowStore {
  readonly plan: QuantizedPlan
  readonly #memory: CacheMemory
  readonly #layers: Layer[]
  #length = 0

  constructor(memory: CacheMemory, plan: QuantizedPlan) {
    this.#memory = memory
    this.plan = plan
    this.#layers = Array.from({ length: rowShape(memory).nLayers }, () => ({
      key: EMPTY,
      value: EMPTY,
    }))
  }

  get length(): number {
    return this.#length
  }

  get nRows(): number {
    return this.#length
  }

  get bytes(): RowBytes {
    const bytes = { rows: 0, low: 0, params: 0, tail: 0, scores: 0 }
    for (const layer of this.#layers) {
      for (const { chunks, blocks } of [layer.key, layer.value]) {
        for (const chunk of chunks) {
          const [codes, ...others] = tensorsOf(chunk)
          bytes.rows += codes.sizeBytes
          for (const tensor of others) bytes.params += tensor.sizeBytes
        }
        for (const block of blocks) bytes.tail += block.sizeBytes
      }
    }
    return bytes
  }

  begin(nTokens: number, _isPrompt: boolean, scratch: Scratch): RowWriter {
    const memory = this.#memory
    const added: Layer[] = []
    /** What publishing makes superfluous. */
    const replaced: (() => void)[] = []
    const tensors = new NewTensors(memory)
    const rows = new RowCoder(rowShape(memory), scratch)
    return {
      nObservers: 0,
      get bytes() {
        return tensors.bytes
      },
      read: (layer, k, v) => {
        const { key, value } = this.#layers[layer] as Layer
        this.#readPart(key, this.plan.key, k, rows)
        this.#readPart(value, this.plan.value, v, rows)
      },
      write: async (layer, k, v) => {
        const held = this.#layers[layer] as Layer
        const grow = (part: Part, codec: RowCodec, x: Tensor) =>
          this.#grow(part, codec, x, nTokens, rows, replaced, tensors)
        const key = await grow(held.key, this.plan.key, k)
        added.push({ key, value: await grow(held.value, this.plan.value, v) })
      },
      publish: () => {
        for (const free of replaced) free()
        for (const [layer, parts] of added.entries()) this.#layers[layer] = parts
        this.#length += nTokens
      },
      discard: () => tensors.discard(),
    }
  }

  fork(): RowStore {
    const copy = new QuantizedRows(this.#memory, this.plan)
    try {
      for (const [index, layer] of this.#layers.entries()) {
        for (const name of PARTS) {
          const { chunks, nQuantized, blocks } = layer[name]
          const own: Tensor<'f16'>[] = []
          // Chunks are shared; the last block will be written.
          copy.#layers[index] = {
            ...(copy.#layers[index] as Layer),
            [name]: { chunks, nQuantized, blocks: own },
          }
          for (const chunk of chunks) chunk.nHolders++
          for (const block of blocks) {
            const same = this.#memory.rowTensor('f16', block.shape)
            own.push(same)
            convert({ x: block, out: same })
          }
        }
      }
    } catch (error) {
      copy.dispose()
      throw error
    }
    copy.#length = this.#length
    return copy
  }

  dispose(): void {
    for (const layer of this.#layers.splice(0)) {
      for (const { chunks, blocks } of [layer.key, layer.value]) {
        for (const chunk of chunks) this.#freeChunk(chunk)
        for (const block of blocks) this.#memory.freeRows(block)
      }
    }
  }

  #freeChunk(chunk: Chunk): void {
    if (--chunk.nHolders > 0) return
    for (const tensor of tensorsOf(chunk)) this.#memory.freeRows(tensor)
  }

  #readPart(part: Part, codec: RowCodec, out: Tensor, rows: RowCoder): void {
    let first = 0
    for (const chunk of part.chunks) {
      rows.decode(chunk, codec, out, first)
      first += chunk.nRows
    }
    for (const block of part.blocks) {
      const n = Math.min(BLOCK_ROWS, this.#length - first)
      rows.copy(block, 0, out, first, n)
      first += n
    }
  }

  /** The part with `nTokens` more rows, which are those of x after the ones that it has. */
  async #grow(
    part: Part,
    codec: RowCodec,
    x: Tensor,
    nTokens: number,
    rows: RowCoder,
    replaced: (() => void)[],
    tensors: NewTensors,
  ): Promise<Part> {
    const memory = this.#memory
    const total = this.#length + nTokens
    const nQuantized = codec.nQuantized(total, part.nQuantized)
    const chunks = [...part.chunks]
    let blocks = [...part.blocks]
    if (nQuantized > part.nQuantized) {
      let first = part.nQuantized
      for (const nRows of chunkRows(codec, nQuantized - part.nQuantized)) {
        const chunk = makeChunk(codec, rowShape(memory), nRows, tensors)
        await rows.encode(chunk, codec, x, first)
        chunks.push(chunk)
        first += nRows
      }
      // A plan leaves the residual at a block's beginning, or empty.
      const nGone = Math.ceil((nQuantized - part.nQuantized) / BLOCK_ROWS)
      const gone = blocks.slice(0, nGone)
      blocks = blocks.slice(nGone)
      replaced.push(() => {
        for (const block of gone) memory.freeRows(block)
      })
    }
    let row = Math.max(this.#length, nQuantized)
    while (row < total) {
      const at = (row - nQuantized) % BLOCK_ROWS
      const index = Math.floor((row - nQuantized) / BLOCK_ROWS)
      let block = blocks[index]
      if (!block) {
        block = tensors.make('f16', [BLOCK_ROWS, rows.width])
        blocks.push(block)
      }
      const n = Math.min(BLOCK_ROWS - at, total - row)
      rows.copy(x, row, block, at, n)
      row += n
    }
    return { chunks, nQuantized, blocks }
  }
}
