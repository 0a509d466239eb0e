import { ZipCacheError } from '../errors.js'
import {
  countNonFinite,
  type Device,
  DTYPE_BYTES,
  type DType,
  gatherRows,
  type MappedFile,
  type Tensor,
  type TypedArrays,
} from '../ops/index.js'
import { type StoredWeight, UNPACKED, unpackWeight } from '../ops/unpack-weight.js'
import type { CheckpointTensor, ModelWeight } from './checkpoint.js'
import type { NamedTensor, QuantizedMatrix } from './quantized-matrix.js'

const DTYPE_OF = { F32: 'f32', F16: 'f16', BF16: 'bf16' } as const

/** What codes are unpacked into, see `unpackWeight`. */
interface UnpackedTensors {
  readonly out: Tensor
  readonly scales?: Tensor
  readonly zeros?: Tensor<'u8'>
}

/** Reads weights from mapped files. */
export class WeightReader {
  readonly #device: Device
  readonly #tensors: Set<Tensor>
  readonly #files = new Map<string, MappedFile>()

  /** `tensors`: where what is made is noted. */
  constructor(device: Device, tensors: Set<Tensor>) {
    this.#device = device
    this.#tensors = tensors
  }

  /**
   * The values of a weight: floats as they are, on a CPU in the file's own memory, but for a weight of several
   * pieces, codes unpacked to `wide`.
   *
   * Rejects with `ERR_ZC_NUMERIC` naming the tensor that holds NaN or infinity, `ERR_ZC_CHECKPOINT` naming
   * one that is damaged, `ERR_ZC_IO`.
   */
  async values(weight: ModelWeight, wide: 'f32' | 'bf16'): Promise<Tensor> {
    const { name, tensor, quantized } = weight
    let x: Tensor
    if (quantized) {
      x = this.#device.tensor(wide, [rowCountOf(weight), weight.shape.at(-1) as number])
      this.#tensors.add(x)
      await this.unpack(weight, { out: x })
    } else if (weight.pieces) x = this.#joined(weight)
    else {
      const { at, shape } = placeOf(weight)
      x = this.#floats(tensor, name, at, shape)
      this.#tensors.add(x)
    }
    await refuseNonFinite(x, name)
    if (quantized) return x
    if (weight.isTransposed) return this.#transposed(x, weight)
    return weight.everyOther === undefined ? x : this.#everyOther(x, weight.everyOther)
  }

  /**
   * Unpacks a quantized matrix, or says that it does not fit.
   *
   * Rejects as `values`.
   */
  async unpack(weight: ModelWeight, to: UnpackedTensors): Promise<boolean> {
    const { shape, name, quantized } = weight
    if (!quantized) throw new ZipCacheError('ERR_ZC_INTERNAL', `${name}: is not quantized`)
    const range = (tensor: CheckpointTensor) => ({
      file: this.#fileOf(tensor),
      offset: tensor.offset,
    })
    const { codes, scales, ofAllScales, zeros, columnGroups, ...layout } = quantized
    const ofAll = ofAllScales && (await this.#numberOf(ofAllScales.tensor))
    const from: StoredWeight = {
      ...layout,
      n: shape.at(-2) as number,
      k: shape.at(-1) as number,
      scaleDtype: quantized.layout.endsWith('fp4')
        ? ('u8' as const)
        : floatType(scales, scales.name),
      scaleFactor: ofAllScales?.by === 'factor' ? (ofAll as number) : 1,
      scaleDivisor: ofAllScales?.by === 'divisor' ? (ofAll as number) : 1,
      codes: range(codes),
      scales: range(scales),
      zeros: zeros && range(zeros),
      columnGroups: columnGroups && range(columnGroups),
    }
    const ranges = rangesOf(weight)
    let row = 0
    for (const rows of ranges) {
      const own = ranges.length === 1 ? null : viewsOf(to, row, countOf(rows))
      try {
        if (!(await this.#unpackRows(quantized, { from, ...(own ?? to) }, rows))) return false
      } finally {
        for (const view of Object.values(own ?? {})) view.dispose()
      }
      row += countOf(rows)
    }
    return true
  }

  async #unpackRows(
    quantized: QuantizedMatrix,
    args: UnpackedTensors & { from: StoredWeight },
    { begin, step }: Rows,
  ): Promise<boolean> {
    const status = this.#device.tensor('i32', [1])
    try {
      unpackWeight(this.#device, { ...args, firstRow: begin, rowStep: step, status })
      const [result] = await status.read()
      const outcome = UNPACKED[result as number]
      if (outcome !== 'done' && outcome !== 'does not fit') refuse(quantized, outcome)
      return outcome === 'done'
    } finally {
      status.dispose()
    }
  }

  /** Elements of a tensor of floats, from one on. */
  #floats(tensor: CheckpointTensor, name: string, at: number, shape: readonly number[]): Tensor {
    const type = floatType(tensor, name)
    const offset = tensor.offset + at * DTYPE_BYTES[type]
    return this.#device.fromFile(this.#fileOf(tensor), offset, type, shape)
  }

  /** The rows of a matrix of floats that lie in several pieces. */
  #joined(weight: ModelWeight): Tensor {
    const { name, tensor, shape } = weight
    const indices = rangesOf(weight).flatMap((rows) =>
      Array.from({ length: countOf(rows) }, (_, i) => rows.begin + i),
    )
    const x = this.#floats(tensor, name, 0, shape)
    const rows = this.#device.tensor('i32', [indices.length])
    try {
      rows.write(Int32Array.from(indices))
      const out = this.#device.tensor(x.dtype, [indices.length, shape.at(-1) as number])
      this.#tensors.add(out)
      gatherRows({ x, rows, out })
      return out
    } finally {
      x.dispose()
      rows.dispose()
    }
  }

  /** The number that a tensor of one element holds. */
  async #numberOf(tensor: NamedTensor): Promise<number> {
    const x = this.#device.fromFile(this.#fileOf(tensor), tensor.offset, 'f32', [1])
    try {
      const [value] = await x.read()
      if (Number.isFinite(value) && value !== 0) return value as number
      const message = `${tensor.file}: ${tensor.name} is ${value}, expected a finite number other than 0`
      throw new ZipCacheError('ERR_ZC_NUMERIC', message, { argument: tensor.name })
    } finally {
      x.dispose()
    }
  }

  /** x (in, out) as (out, in), of which rows may be chosen. x is disposed. */
  async #transposed(x: Tensor, weight: ModelWeight): Promise<Tensor> {
    const [nColumns, nRows] = x.shape as [number, number]
    const rows = rowsOf(weight)
    return this.#replaced(
      x,
      [countOf(rows), nColumns],
      transposedOf(await x.read(), [nColumns, nRows], rows),
    )
  }

  /** Every other column of x, from one on. x is disposed. */
  async #everyOther(x: Tensor, first: 0 | 1): Promise<Tensor> {
    const [nRows, nColumns] = x.shape as [number, number]
    const own = (await x.read()).filter((_, i) => i % 2 === first)
    return this.#replaced(x, [nRows, nColumns / 2], own)
  }

  #replaced(x: Tensor, shape: readonly number[], values: TypedArrays[DType]): Tensor {
    const out = this.#device.tensor(x.dtype, shape)
    this.#tensors.add(out)
    out.write(values)
    this.#tensors.delete(x)
    x.dispose()
    return out
  }

  #fileOf({ file: path }: CheckpointTensor): MappedFile {
    const file = this.#files.get(path) ?? this.#device.mapFile(path)
    this.#files.set(path, file)
    return file
  }
}

/** Rows from `begin` to before `end`, each `step` behind the one before. */
interface Rows {
  readonly begin: number
  readonly end: number
  readonly step: 1 | 2
}

/** Which rows of its matrix a weight is. */
function rowsOf({ rows, everyOther, shape, expert }: ModelWeight): Rows {
  const height = shape[shape.length > 2 && expert !== null ? 1 : 0] as number
  if (everyOther !== undefined) return { begin: everyOther, end: height, step: 2 }
  const [begin, end] = rows ?? [0, height]
  return { begin, end, step: 1 }
}

/** The same where they may lie in several ranges, in order. */
function rangesOf(weight: ModelWeight): Rows[] {
  const { pieces } = weight
  if (!pieces) return [rowsOf(weight)]
  return pieces.map(([begin, end]) => ({ begin, end, step: 1 }))
}

/** How many rows a weight has. */
export function rowCountOf(weight: ModelWeight): number {
  return rangesOf(weight).reduce((sum, rows) => sum + countOf(rows), 0)
}

/** Some rows of what a matrix is unpacked into, from one on. */
function viewsOf({ out, scales, zeros }: UnpackedTensors, row: number, nRows: number) {
  const own = <T extends Tensor>(of: T): T => {
    const rest = of.shape.slice(1)
    const width = rest.reduce((product, size) => product * size, 1)
    return of.view([nRows, ...rest], row * width) as T
  }
  return {
    out: own(out),
    ...(scales && { scales: own(scales) }),
    ...(zeros && { zeros: own(zeros) }),
  }
}

function countOf({ begin, end, step }: Rows): number {
  return Math.ceil((end - begin) / step)
}

/**
 * Which elements of its tensor a weight is: the first one and the shape. What lies transposed, and what
 * shares a tensor of biases, is all of it.
 */
function placeOf(weight: ModelWeight): { at: number; shape: number[] } {
  const { shape, expert, everyOther, isTransposed } = weight
  const [count, ...rest] = shape as [number, ...number[]]
  const { begin, end } = rowsOf(weight)
  if (shape.length < 3 || expert === null) {
    if (everyOther !== undefined) return { at: 0, shape: [count, ...rest] }
    const width = rest.reduce((product, size) => product * size, 1)
    return { at: begin * width, shape: [end - begin, ...rest] }
  }
  const [height, width] = rest as [number, number]
  const first = expert * height * width
  if (isTransposed) return { at: first, shape: [width, height] }
  return { at: first + begin * width, shape: [end - begin, width] }
}

/** Columns of x (nRows, nColumns), each a row. */
function transposedOf<T extends TypedArrays[DType]>(
  x: T,
  [nRows, nColumns]: readonly [number, number],
  rows: Rows,
): T {
  const { begin, end, step } = rows
  const out = x.slice(0, nRows * countOf(rows)) as T
  // In squares, so that what is read and what is written stay in the cache.
  const kSquare = 32
  for (let row = 0; row < nRows; row += kSquare) {
    const rowsEnd = Math.min(nRows, row + kSquare)
    for (let column = begin; column < end; column += kSquare) {
      const columnsEnd = Math.min(end, column + kSquare)
      for (let c = column; c < columnsEnd; c += step) {
        const to = ((c - begin) / step) * nRows
        for (let r = row; r < rowsEnd; ++r) out[to + r] = x[r * nColumns + c] as number
      }
    }
  }
  return out
}

function floatType({ dtype }: CheckpointTensor, name: string): 'f32' | 'f16' | 'bf16' {
  const type: DType | undefined = DTYPE_OF[dtype as keyof typeof DTYPE_OF]
  if (type) return type
  const message = `${name}: dtype is ${dtype}, expected F32, F16 or BF16`
  throw new ZipCacheError('ERR_ZC_CHECKPOINT', message, { argument: name })
}

/** Complains about the tensor that is at fault. */
function refuse(matrix: QuantizedMatrix, outcome: (typeof UNPACKED)[number] | undefined): never {
  const { codes, scales, zeros, columnGroups } = matrix
  const complain = (
    code: 'ERR_ZC_CHECKPOINT' | 'ERR_ZC_NUMERIC',
    { file, name } = codes,
    complaint: string,
  ): never => {
    throw new ZipCacheError(code, `${file}: ${name} ${complaint}`, { argument: name })
  }
  switch (outcome) {
    case 'bad group':
      return complain('ERR_ZC_CHECKPOINT', columnGroups ?? codes, 'holds a group without a scale')
    case 'bad zero':
      return complain('ERR_ZC_CHECKPOINT', zeros ?? codes, 'holds a zero point that is no code')
    case 'bad scale':
      return complain('ERR_ZC_NUMERIC', scales, 'holds a scale that is NaN or infinite')
    default:
      return complain('ERR_ZC_CHECKPOINT', codes, 'cannot be unpacked')
  }
}

async function refuseNonFinite(x: Tensor, name: string): Promise<void> {
  const count = x.device.tensor('i32', [1])
  try {
    countNonFinite({ x, count })
    const [bad] = await count.read()
    if (bad) {
      throw new ZipCacheError(
        'ERR_ZC_NUMERIC',
        `${name}: ${bad} of its ${x.length} elements are NaN or infinite`,
        { argument: name },
      )
    }
  } finally {
    count.dispose()
  }
}
