import type { KvShape } from '../cache/index.js'
import { hadamard } from '../model/hadamard.js'
import type { Scratch } from '../model/scratch.js'
import {
  codeBytesPerRow,
  convert,
  dequantize,
  gatherRows,
  linear,
  quantize,
  restoreOutliers,
  type Tensor,
} from '../ops/index.js'
import type { RowCodec } from '../policy/policy.js'
import { lowRank } from './low-rank.js'
import { outliersPerLine, takeOutliers } from './outliers.js'
import type { NewTensors } from './row-store.js'

/** Rows that were quantized together. */
export interface Chunk {
  readonly nRows: number
  /** (nRows, bytes of a row) u8 */
  readonly codes: Tensor<'u8'>
  /** Scales, zeros and, with `cst`, channel normalisers of every token group. */
  readonly params: Tensor<'f16'>
  readonly correction: CorrectionTensors | null
  /** Stores that hold it: chunks are never written again. */
  nHolders: number
}

/** GEAR's S and L. */
interface CorrectionTensors {
  /** Outliers, as `restoreOutliers` takes them. */
  readonly values: Tensor<'f16'>
  readonly places: Tensor<'u8'>
  /** (nRows, n_kv_heads rank) and (n_kv_heads head_dim, rank): L of head h is left_h right_h^T. */
  readonly left: Tensor<'f16'>
  readonly right: Tensor<'f16'>
}

/** What `#byHead` works with, for one rank. */
interface HeadBlocks {
  readonly rowsAndZero: Tensor<'f16'>
  readonly rows: Tensor<'i32'>
  readonly matrix: Tensor<'f16'>
}

/** An outlier's place has 16 bits. */
const MAX_CORRECTED_ROWS = 65_536

/** The rows of the chunks that so many are quantized in. */
export function chunkRows({ correction }: RowCodec, nRows: number): number[] {
  const most = correction ? MAX_CORRECTED_ROWS : nRows
  const chunks: number[] = []
  for (let left = nRows; left > 0; left -= most) chunks.push(Math.min(most, left))
  return chunks
}

/** Bytes of a chunk of so many rows. */
export function chunkBytes(codec: RowCodec, shape: KvShape, nRows: number): number {
  const { codes, params, correction } = chunkShapes(codec, shape, nRows)
  const size = (of: readonly number[]) => of.reduce((product, n) => product * n, 1)
  const bytes = size(codes) + 2 * size(params)
  if (!correction) return bytes
  const { values, places, left, right } = correction
  return bytes + size(places) + 2 * (size(values) + size(left) + size(right))
}

/** A chunk whose content is not there yet. */
export function makeChunk(
  codec: RowCodec,
  shape: KvShape,
  nRows: number,
  tensors: NewTensors,
): Chunk {
  const { codes, params, correction } = chunkShapes(codec, shape, nRows)
  return {
    nRows,
    codes: tensors.make('u8', codes),
    params: tensors.make('f16', params),
    correction: correction && {
      values: tensors.make('f16', correction.values),
      places: tensors.make('u8', correction.places),
      left: tensors.make('f16', correction.left),
      right: tensors.make('f16', correction.right),
    },
    nHolders: 1,
  }
}

/** All tensors of a chunk, its codes first. */
export function tensorsOf({ codes, params, correction }: Chunk): [Tensor, ...Tensor[]] {
  return [codes, params, ...(correction ? Object.values(correction) : [])]
}

function chunkShapes(codec: RowCodec, shape: KvShape, nRows: number) {
  const { scheme, bits, groupSize, tokenGroup, correction } = codec
  const { nKvHeads, headDim } = shape
  const width = nKvHeads * headDim
  const nTokenGroups = Math.ceil(nRows / (tokenGroup || nRows))
  const perScheme = {
    channelwise: 2 * width * nTokenGroups,
    tokenwise: 2 * nRows,
    groupwise: (2 * nRows * width) / (groupSize || headDim),
    cst: 2 * nRows + width * nTokenGroups,
  }
  const [nLines, length] = linesOf(codec) === 'channelwise' ? [width, nRows] : [nRows, width]
  const perLine = outliersPerLine(outlierShare(codec), length)
  const rank = Math.min(correction?.rank(nRows) ?? 0, nRows, headDim)
  return {
    codes: [nRows, codeBytesPerRow(width, bits)],
    params: [perScheme[scheme]],
    correction: correction && {
      values: [nLines, perLine],
      places: [nLines, perLine, 2],
      left: [nRows, nKvHeads * rank],
      right: [width, rank],
    },
  }
}

/** Which lines outliers are taken of. */
function linesOf({ scheme }: RowCodec): 'channelwise' | 'tokenwise' {
  return scheme === 'channelwise' ? scheme : 'tokenwise'
}

function outlierShare({ correction }: RowCodec): number {
  return correction?.outliers ?? 0
}

/** Moves rows between tensors (rows, n_kv_heads, head_dim), blocks and chunks. */
export class RowCoder {
  readonly width: number
  readonly #shape: KvShape
  readonly #scratch: Scratch
  #room: Tensor<'f32'> | null = null
  #matrix: Tensor<'f32'> | null = null
  readonly #blocks = new Map<number, HeadBlocks>()

  constructor(shape: KvShape, scratch: Scratch) {
    this.#shape = shape
    this.#scratch = scratch
    this.width = shape.nKvHeads * shape.headDim
  }

  copy(from: Tensor, fromRow: number, to: Tensor, toRow: number, nRows: number): void {
    convert({ x: this.#rows(from, fromRow, nRows), out: this.#rows(to, toRow, nRows) })
  }

  /** Rows [first, first + chunk.nRows) of x to codes, and what corrects them. */
  async encode(chunk: Chunk, codec: RowCodec, x: Tensor, first: number): Promise<void> {
    const from = this.#rows(x, first, chunk.nRows)
    if (codec.rotated) {
      const room = this.#roomFor(chunk.nRows)
      this.#rotate(from, room)
      this.#quantize(chunk, codec, room)
    } else if (codec.correction && chunk.correction) {
      await this.#encodeCorrected(chunk, chunk.correction, codec, from)
    } else {
      this.#quantize(chunk, codec, from)
    }
  }

  /** The inverse of `encode`. */
  decode(chunk: Chunk, codec: RowCodec, x: Tensor, first: number): void {
    const to = this.#rows(x, first, chunk.nRows)
    const out = codec.rotated ? this.#roomFor(chunk.nRows) : to
    this.#dequantize(chunk, codec, out)
    if (codec.rotated) this.#rotate(out, to)
    if (chunk.correction) this.#correct(chunk.correction, codec, to)
  }

  #quantize(chunk: Chunk, codec: RowCodec, x: Tensor): void {
    for (const { rows, ...codes } of this.#groups(chunk, codec)) {
      quantize({ x: this.#view(x, rows.first, rows.n), ...codes, range: codec.range })
    }
  }

  #dequantize(chunk: Chunk, codec: RowCodec, out: Tensor): void {
    for (const { rows, ...codes } of this.#groups(chunk, codec)) {
      dequantize({ out: this.#view(out, rows.first, rows.n), ...codes })
    }
  }

  /** GEAR's X = D + L + S, L and S being found on the host. */
  async #encodeCorrected(
    chunk: Chunk,
    { values, places, left, right }: CorrectionTensors,
    codec: RowCodec,
    x: Tensor,
  ): Promise<void> {
    const { nKvHeads, headDim } = this.#shape
    const room = this.#roomFor(chunk.nRows)
    convert({ x, out: room })
    const filled = await room.read()
    const outliers = takeOutliers(filled, this.width, linesOf(codec), outlierShare(codec))
    room.write(filled)
    this.#quantize(chunk, codec, room)
    this.#dequantize(chunk, codec, room)
    const restored = await room.read()
    const rank = right.shape[1] as number
    const lefts = new Float32Array(left.length)
    const rights = new Float32Array(right.length)
    for (let head = 0; head < nKvHeads; head++) {
      const own = lowRank(chunk.nRows, headDim, rank, (row, channel) => {
        const at = row * this.width + head * headDim + channel
        return (filled[at] as number) - (restored[at] as number)
      })
      for (let row = 0; row < chunk.nRows; row++) {
        const values = own.left.subarray(row * rank, (row + 1) * rank)
        lefts.set(values, (row * nKvHeads + head) * rank)
      }
      rights.set(own.right, head * headDim * rank)
    }
    places.write(outliers.places)
    for (const [source, out] of [
      [outliers.values, values],
      [lefts, left],
      [rights, right],
    ] as const) {
      // What was quantized is no longer needed, and no smaller than any of these.
      const staged = this.#scratch.keep(room.view(out.shape))
      convert({ x: staged.write(source), out })
    }
  }

  /** Adds L to dequantized rows, and puts S over them. */
  #correct({ values, places, left, right }: CorrectionTensors, codec: RowCodec, out: Tensor): void {
    if (left.length > 0) linear({ x: left, weight: this.#byHead(right), out, accumulate: true })
    if (values.length > 0) restoreOutliers({ values, places, out, scheme: linesOf(codec) })
  }

  /**
   * The factors of every head as one matrix (width, n_kv_heads rank) that leaves other heads alone:
   * zero but for each head's own block.
   */
  #byHead(right: Tensor<'f16'>): Tensor<'f16'> {
    const { nKvHeads, headDim } = this.#shape
    const { width } = this
    const rank = right.shape[1] as number
    let blocks = this.#blocks.get(rank)
    if (!blocks) {
      const zeros = new Uint16Array((width + 1) * rank)
      const own = (i: number) => {
        const channel = Math.floor(i / nKvHeads)
        return i % nKvHeads === Math.floor(channel / headDim) ? channel : width
      }
      blocks = {
        rowsAndZero: this.#scratch.tensor('f16', [width + 1, rank]).write(zeros),
        rows: this.#scratch.ints(new Int32Array(width * nKvHeads).map((_, i) => own(i))),
        matrix: this.#scratch.tensor('f16', [width * nKvHeads, rank]),
      }
      this.#blocks.set(rank, blocks)
    }
    const { rowsAndZero, rows, matrix } = blocks
    convert({ x: right, out: this.#scratch.keep(rowsAndZero.view(right.shape)) })
    gatherRows({ x: rowsAndZero, rows, out: matrix })
    return this.#scratch.keep(matrix.view([width, nKvHeads * rank]))
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

  /** Work space in float32 for so many rows: the same for all that use it, one after another. */
  #roomFor(nRows: number): Tensor<'f32'> {
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
