import type { CacheMemory, KvShape } from '../cache/index.js'
import { hadamard } from '../model/hadamard.js'
import type { Scratch } from '../model/scratch.js'
import {
  codeBytesPerRow,
  convert,
  dequantize,
  linear,
  quantize,
  type Tensor,
} from '../ops/index.js'
import type { QuantizedPlan, RowCodec } from '../policy/policy.js'
import type { RowBytes, RowStore, RowWriter } from './row-store.js'

/** Rows of a block of the 16-bit residual. */
export const BLOCK_ROWS = 16

/** Rows that were quantized together. */
interface Chunk {
  readonly nRows: number
  /** (nRows, bytes of a row) u8 */
  readonly codes: Tensor<'u8'>
  /** Scales, zeros and, with `cst`, channel normalisers of every token group. */
  readonly params: Tensor<'f16'>
  /** Stores that hold it: chunks are never written again. */
  nHolders: number
}

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
    this.#layers = Array.from({ length: memory.shape.nLayers }, () => ({
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
    const bytes = { rows: 0, params: 0, tail: 0, scores: 0 }
    for (const layer of this.#layers) {
      for (const { chunks, blocks } of [layer.key, layer.value]) {
        for (const { codes, params } of chunks) {
          bytes.rows += codes.sizeBytes
          bytes.params += params.sizeBytes
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
    const made: Tensor[] = []
    const make = <D extends 'u8' | 'f16'>(dtype: D, shape: readonly number[]) => {
      const tensor = memory.rowTensor(dtype, shape)
      made.push(tensor)
      return tensor
    }
    const rows = new RowCoder(memory.shape, scratch)
    return {
      nObservers: 0,
      get bytes() {
        return made.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
      },
      read: (layer, k, v) => {
        const { key, value } = this.#layers[layer] as Layer
        this.#readPart(key, this.plan.key, k, rows)
        this.#readPart(value, this.plan.value, v, rows)
      },
      write: async (layer, k, v) => {
        const held = this.#layers[layer] as Layer
        const grow = (part: Part, codec: RowCodec, x: Tensor) =>
          this.#grow(part, codec, x, nTokens, rows, replaced, make)
        added.push({
          key: grow(held.key, this.plan.key, k),
          value: grow(held.value, this.plan.value, v),
        })
      },
      publish: () => {
        for (const free of replaced) free()
        for (const [layer, parts] of added.entries()) this.#layers[layer] = parts
        this.#length += nTokens
      },
      discard: () => {
        for (const tensor of made) memory.freeRows(tensor)
      },
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
    this.#memory.freeRows(chunk.codes)
    this.#memory.freeRows(chunk.params)
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
  #grow(
    part: Part,
    codec: RowCodec,
    x: Tensor,
    nTokens: number,
    rows: RowCoder,
    replaced: (() => void)[],
    make: <D extends 'u8' | 'f16'>(dtype: D, shape: readonly number[]) => Tensor<D>,
  ): Part {
    const memory = this.#memory
    const total = this.#length + nTokens
    const nQuantized = codec.nQuantized(total, part.nQuantized)
    const chunks = [...part.chunks]
    let blocks = [...part.blocks]
    if (nQuantized > part.nQuantized) {
      const size = chunkSize(codec, nQuantized - part.nQuantized, memory.shape)
      const chunk = {
        nRows: nQuantized - part.nQuantized,
        codes: make('u8', size.codes),
        params: make('f16', [size.params]),
        nHolders: 1,
      }
      rows.encode(chunk, codec, x, part.nQuantized)
      chunks.push(chunk)
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
        block = make('f16', [BLOCK_ROWS, rows.width])
        blocks.push(block)
      }
      const n = Math.min(BLOCK_ROWS - at, total - row)
      rows.copy(x, row, block, at, n)
      row += n
    }
    return { chunks, nQuantized, blocks }
  }
}

/** Shape of a chunk's codes, and the number of its parameters. */
export function chunkSize(
  { scheme, bits, groupSize, tokenGroup }: RowCodec,
  nRows: number,
  { nKvHeads, headDim }: KvShape,
): { codes: [number, number]; params: number } {
  const width = nKvHeads * headDim
  const nTokenGroups = Math.ceil(nRows / (tokenGroup || nRows))
  const perScheme = {
    channelwise: 2 * width * nTokenGroups,
    tokenwise: 2 * nRows,
    groupwise: (2 * nRows * width) / (groupSize || headDim),
    cst: 2 * nRows + width * nTokenGroups,
  }
  return { codes: [nRows, codeBytesPerRow(width, bits)], params: perScheme[scheme] }
}

/** Moves rows between tensors (rows, n_kv_heads, head_dim), blocks and chunks. */
class RowCoder {
  readonly width: number
  readonly #shape: KvShape
  readonly #scratch: Scratch
  #room: Tensor<'f32'> | null = null
  #matrix: Tensor<'f32'> | null = null

  constructor(shape: KvShape, scratch: Scratch) {
    this.#shape = shape
    this.#scratch = scratch
    this.width = shape.nKvHeads * shape.headDim
  }

  copy(from: Tensor, fromRow: number, to: Tensor, toRow: number, nRows: number): void {
    convert({ x: this.#rows(from, fromRow, nRows), out: this.#rows(to, toRow, nRows) })
  }

  /** Rows [first, first + chunk.nRows) of x to codes. */
  encode(chunk: Chunk, codec: RowCodec, x: Tensor, first: number): void {
    let from = this.#rows(x, first, chunk.nRows)
    if (codec.rotated) {
      const room = this.#rotated(chunk.nRows)
      this.#rotate(from, room)
      from = room
    }
    for (const { rows, ...codes } of this.#groups(chunk, codec)) {
      const own = this.#view(from, rows.first, rows.n)
      quantize({ x: own, ...codes, range: codec.range })
    }
  }

  /** The inverse of `encode`. */
  decode(chunk: Chunk, codec: RowCodec, x: Tensor, first: number): void {
    const to = this.#rows(x, first, chunk.nRows)
    const out = codec.rotated ? this.#rotated(chunk.nRows) : to
    for (const { rows, ...codes } of this.#groups(chunk, codec)) {
      dequantize({ out: this.#view(out, rows.first, rows.n), ...codes })
    }
    if (codec.rotated) this.#rotate(out, to)
  }

  /** The arguments of quantize for each token group of a chunk. */
  *#groups({ nRows, codes, params }: Chunk, codec: RowCodec) {
    const { scheme, bits } = codec
    const { headDim } = this.#shape
    const groupSize = codec.groupSize || headDim
    const perGroup = codec.tokenGroup || nRows
    let at = 0
    const take = (shape: number[]) => {
      const view = this.#scratch.keep(params.view(shape, at))
      at += shape.reduce((product, size) => product * size, 1)
      return view
    }
    for (let first = 0; first < nRows; first += perGroup) {
      const n = Math.min(perGroup, nRows - first)
      const shape = {
        channelwise: [this.width],
        tokenwise: [n],
        groupwise: [n, this.width / groupSize],
        cst: [n],
      }[scheme]
      yield {
        rows: { first, n },
        scheme,
        bits,
        ...(scheme === 'groupwise' && { groupSize }),
        codes: this.#view(codes, first, n),
        scale: take(shape),
        zero: take(shape),
        ...(scheme === 'cst' && { channel: take([this.width]) }),
      }
    }
  }

  /** to = from H, head by head; H is its own inverse. */
  #rotate(from: Tensor, to: Tensor): void {
    const { headDim, nKvHeads } = this.#shape
    const heads = (x: Tensor) => {
      const nRows = x.shape[0] as number
      return this.#scratch.keep(x.view([nRows * nKvHeads, headDim]))
    }
    this.#matrix ??= this.#scratch.tensor('f32', [headDim, headDim]).write(hadamard(headDim))
    linear({ x: heads(from), weight: this.#matrix, out: heads(to) })
  }

  #rotated(nRows: number): Tensor<'f32'> {
    if ((this.#room?.shape[0] ?? 0) < nRows) {
      this.#room = this.#scratch.tensor('f32', [nRows, this.width])
    }
    return this.#view(this.#room as Tensor<'f32'>, 0, nRows)
  }

  /** Rows of a tensor of `width` elements a row, whatever its shape. */
  #rows<T extends Tensor>(x: T, first: number, nRows: number): T {
    return this.#scratch.keep(x.view([nRows, this.width], first * this.width) as T)
  }

  #view<T extends Tensor>(x: T, first: number, nRows: number): T {
    const width = x.shape[1] as number
    return this.#scratch.keep(x.view([nRows, width], first * width) as T)
  }
}
