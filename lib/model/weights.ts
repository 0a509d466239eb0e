import { ZipCacheError } from '../errors.js'
import {
  convert,
  countNonFinite,
  type Device,
  DTYPE_BYTES,
  type DType,
  type MappedFile,
  quantizeWeight,
  type Tensor,
  type TypedArrays,
} from '../ops/index.js'
import type { ModelWeight, WeightRole } from './checkpoint.js'
import type { ModelConfig } from './config.js'

/**
 * What the model computes in: the type of activations that enter products and attention; sums are
 * float32.
 */
export type ComputeDtype = 'f32' | 'bf16'

/** What a model computes in where nothing else is asked for. */
export function usualDtype(device: Device): ComputeDtype {
  return device.info.kind === 'gpu' ? 'bf16' : 'f32'
}

/**
 * Type of Q, K, V and attention's output. A model that computes in bfloat16 attends in float16,
 * which is as small and rounds eight times finer: with bfloat16 there, the argmax of a near tie
 * moves.
 */
export type AttentionDtype = 'f32' | 'f16'

export function attentionDtypeOf(dtype: ComputeDtype): AttentionDtype {
  return dtype === 'f32' ? 'f32' : 'f16'
}

/**
 * How the matrices of a model are kept: in the type of the file (or rounded to the model's), or as
 * codes of 8 bits with a scale for each row.
 */
export type WeightFormat = 'stored' | 'int8'

/** What multiplies activations. */
export interface Matrix {
  /** (out, in), those of experts (n_experts, out, in); i8 where there are scales. */
  readonly weight: Tensor
  /** (out), those of experts (n_experts, out). */
  readonly scales?: Tensor<'f32'>
}

const MATRICES = [
  'qProj',
  'kProj',
  'vProj',
  'oProj',
  'router',
  'gateProj',
  'upProj',
  'downProj',
  'lmHead',
] as const satisfies readonly WeightRole[]

/** What makes channels that rotate. */
const ROTATED: readonly WeightRole[] = ['qProj', 'kProj', 'qBias', 'kBias']

type MatrixRole = (typeof MATRICES)[number]

/** Weights that exist once a layer; biases and head norms only where the architecture has them. */
export type LayerWeights = { [Role in MatrixRole]?: Matrix } & {
  [Role in Exclude<WeightRole, MatrixRole>]?: Tensor
}

/** The weights of a model on its device. */
export interface ModelWeights {
  readonly embedding: Tensor
  readonly layers: readonly LayerWeights[]
  readonly norm: Tensor
  /** The embedding again when they are tied. */
  readonly lmHead: Matrix
  dispose(): void
}

/** How weights are kept. */
export interface WeightOptions {
  readonly config: Pick<
    ModelConfig,
    'unitOffsetNorms' | 'logitsScale' | 'experts' | 'interleavedRope' | 'headDim' | 'rotaryDim'
  >
  readonly dtype: ComputeDtype
  readonly format: WeightFormat
  readonly signal: AbortSignal | undefined
}

const DTYPE_OF: Record<string, DType> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

/**
 * Maps the weights of a checkpoint into memory. With `f32` every weight stays in the file's own
 * type and is widened where it is used, which loses nothing and copies nothing; with `bf16`
 * matrices of another type are rounded to it, on a GPU what follows attention to float16, unless
 * something in it is too large. With `int8` matrices are quantized instead, from what
 * the file says, but for routers': theirs choose. Matrices of experts lie in one tensor and are copied there,
 * one after another.
 *
 * Rejects with `ERR_ZC_NUMERIC` naming the first tensor that holds NaN or infinity, `ERR_ZC_IO` or
 * `ERR_ZC_CHECKPOINT` when a file has changed since its header was read, the latter also for experts of
 * several types, and with `signal.reason`
 * when aborted; nothing stays allocated then.
 */
export async function loadWeights(
  device: Device,
  weights: readonly ModelWeight[],
  { config, dtype, format, signal }: WeightOptions,
): Promise<ModelWeights> {
  const tensors = new Set<Tensor>()
  const make = <D extends DType>(dtype: D, shape: readonly number[]) => {
    const tensor = device.tensor(dtype, shape)
    tensors.add(tensor)
    return tensor
  }
  const toMatrix = async (x: Tensor, role: MatrixRole): Promise<Matrix> => {
    if (format === 'int8' && role !== 'router') {
      const matrix = { weight: make('i8', x.shape), scales: make('f32', x.shape.slice(0, 1)) }
      quantizeWeight({ x, out: matrix.weight, scales: matrix.scales })
      return matrix
    }
    if (dtype === 'f32') return { weight: x }
    const rounded = (dtype: 'f16' | 'bf16') => {
      if (x.dtype === dtype) return x
      const out = make(dtype, x.shape)
      convert({ x, out })
      return out
    }
    // Attention's output is float16. Factors of two types are two products of a GPU's tensor cores;
    // of a bfloat16 below 2^-17 float16 loses up to 2^-25.
    if (role === 'oProj' && device.info.kind === 'gpu') {
      const weight = rounded('f16')
      if (weight === x || !(await isSaturated(weight))) return { weight }
      weight.dispose()
    }
    return { weight: rounded('bf16') }
  }
  const expertsLike = ({ dtype: stored, shape }: Tensor): Matrix => {
    const all = [config.experts?.count ?? 0, ...shape]
    if (format !== 'int8') return { weight: make(dtype === 'f32' ? stored : 'bf16', all) }
    return { weight: make('i8', all), scales: make('f32', all.slice(0, 2)) }
  }
  const toNorm = async (x: Tensor, role: WeightRole): Promise<Tensor> => {
    // Logits are products with what the last norm gives.
    const scale = role === 'norm' ? config.logitsScale : 1
    const offset = config.unitOffsetNorms ? 1 : 0
    if (scale === 1 && offset === 0) return x
    const out = make('f32', x.shape)
    convert({ x, out })
    out.write((await out.read()).map((weight) => scale * (offset + weight)))
    x.dispose()
    return out
  }
  const inHalves = async (x: Tensor): Promise<Tensor> => {
    const out = make(x.dtype, x.shape)
    out.write(halvesOf(await x.read(), x.shape[0] as number, config))
    x.dispose()
    return out
  }
  const transposedRows = async (x: Tensor, rows: ModelWeight['rows']): Promise<Tensor> => {
    const [nColumns, nRows] = x.shape as [number, number]
    const [begin, end] = rows ?? [0, nRows]
    const out = device.tensor(x.dtype, [end - begin, nColumns])
    tensors.add(out)
    out.write(transposedOf(await x.read(), [nColumns, nRows], [begin, end]))
    tensors.delete(x)
    x.dispose()
    return out
  }
  const dispose = () => {
    for (const tensor of tensors) tensor.dispose()
  }
  try {
    const files = new Map<string, MappedFile>()
    const once: LayerWeights = {}
    const layers: LayerWeights[] = []
    for (const weight of weights) {
      const { file: path, offset } = weight.tensor
      const file = files.get(path) ?? device.mapFile(path)
      files.set(path, file)
      const type = storedDtype(weight)
      const { role, layer, expert } = weight
      const { at, shape } = placeOf(weight)
      let stored: Tensor = device.fromFile(file, offset + at * DTYPE_BYTES[type], type, shape)
      tensors.add(stored)
      await refuseNonFinite(stored, weight.name)
      if (weight.isTransposed) stored = await transposedRows(stored, weight.rows)
      if (config.interleavedRope && ROTATED.includes(role)) stored = await inHalves(stored)
      if (layer !== null) layers[layer] ??= {}
      const own = layer === null ? once : (layers[layer] as LayerWeights)
      if (isMatrix(role) && expert !== null) {
        const matrix = own[role] ?? expertsLike(stored)
        own[role] = matrix
        if (dtype === 'f32' && format !== 'int8' && type !== matrix.weight.dtype) {
          const expected = `expected ${matrix.weight.dtype}, that of the layer's first expert`
          const message = `${weight.name}: dtype is ${type}, ${expected}`
          throw new ZipCacheError('ERR_ZC_CHECKPOINT', message, { argument: weight.name })
        }
        putExpert(stored, matrix, expert)
        tensors.delete(stored)
        stored.dispose()
      } else if (isMatrix(role)) {
        const matrix = await toMatrix(stored, role)
        if (matrix.weight !== stored) stored.dispose()
        own[role] = matrix
      } else own[role] = isNorm(role) ? await toNorm(stored, role) : stored
      signal?.throwIfAborted()
    }
    const { embedding, norm } = once
    if (!embedding || !norm)
      throw new ZipCacheError('ERR_ZC_INTERNAL', 'weights: no embedding or norm')
    // Token embeddings are looked up in the file's own type, whatever they are multiplied in.
    const lmHead =
      once.lmHead ??
      (format === 'int8' ? await toMatrix(embedding, 'lmHead') : { weight: embedding })
    await device.sync()
    return { embedding, layers, norm, lmHead, dispose }
  } catch (error) {
    dispose()
    throw error
  }
}

/**
 * Which elements of its tensor a weight is: the first one and the shape. What lies transposed is all of
 * its expert's matrix.
 */
function placeOf(weight: ModelWeight): { at: number; shape: number[] } {
  const { shape, rows, expert, isTransposed } = weight
  const [count, ...rest] = shape as [number, ...number[]]
  if (shape.length < 3 || expert === null) {
    const [begin, end] = rows ?? [0, count]
    const width = rest.reduce((product, size) => product * size, 1)
    return { at: begin * width, shape: [end - begin, ...rest] }
  }
  const [height, width] = rest as [number, number]
  const first = expert * height * width
  if (isTransposed) return { at: first, shape: [width, height] }
  const [begin, end] = rows ?? [0, height]
  return { at: first + begin * width, shape: [end - begin, width] }
}

/** Columns of x (nRows, nColumns) from `begin` to before `end`, each a row. */
function transposedOf<T extends TypedArrays[DType]>(
  x: T,
  [nRows, nColumns]: readonly [number, number],
  [begin, end]: readonly [number, number],
): T {
  const out = x.slice(0, nRows * (end - begin)) as T
  // In squares, so that what is read and what is written stay in the cache.
  const kSquare = 32
  for (let row = 0; row < nRows; row += kSquare) {
    const rowsEnd = Math.min(nRows, row + kSquare)
    for (let column = begin; column < end; column += kSquare) {
      const columnsEnd = Math.min(end, column + kSquare)
      for (let c = column; c < columnsEnd; ++c) {
        for (let r = row; r < rowsEnd; ++r) {
          out[(c - begin) * nRows + r] = x[r * nColumns + c] as number
        }
      }
    }
  }
  return out
}

/**
 * Rows of heads, of which 2i and 2i + 1 rotate together, in the order in which i and
 * i + rotaryDim / 2 do.
 */
function halvesOf<T extends TypedArrays[DType]>(
  x: T,
  nRows: number,
  { headDim, rotaryDim }: Pick<ModelConfig, 'headDim' | 'rotaryDim'>,
): T {
  const width = x.length / nRows
  const out = x.slice() as T
  for (let row = 0; row < nRows; ++row) {
    const channel = row % headDim
    if (channel >= rotaryDim) continue
    const to = row - channel + (channel >> 1) + (channel % 2) * (rotaryDim / 2)
    out.set(x.subarray(row * width, (row + 1) * width), to * width)
  }
  return out
}

/** Writes the matrix of one expert among those of all. */
function putExpert(x: Tensor, { weight, scales }: Matrix, expert: number): void {
  const rows = x.shape.slice(0, 1)
  const out = weight.view(x.shape, expert * x.length)
  if (scales) {
    const own = scales.view(rows, expert * (rows[0] as number))
    quantizeWeight({ x, out: out as Tensor<'i8'>, scales: own })
    own.dispose()
  } else convert({ x, out })
  out.dispose()
}

/** All tensors of a model by name, each as often as it is used. */
export function namedTensors({
  embedding,
  norm,
  lmHead,
  layers,
}: ModelWeights): [string, Tensor][] {
  const all: [string, Tensor][] = []
  const add = (name: string, own: Tensor | Matrix) => {
    if ('weight' in own) {
      all.push([name, own.weight])
      if (own.scales) all.push([`${name}.scales`, own.scales])
    } else all.push([name, own])
  }
  add('embedding', embedding)
  add('norm', norm)
  add('lmHead', lmHead)
  for (const [index, layer] of layers.entries()) {
    for (const [role, own] of Object.entries(layer)) add(`${index}.${role}`, own)
  }
  return all
}

function isMatrix(role: WeightRole): role is MatrixRole {
  return (MATRICES as readonly WeightRole[]).includes(role)
}

function isNorm(role: WeightRole): boolean {
  return role === 'norm' || role.endsWith('Norm')
}

function storedDtype({ name, tensor }: ModelWeight): DType {
  const dtype = DTYPE_OF[tensor.dtype]
  if (dtype) return dtype
  throw new ZipCacheError(
    'ERR_ZC_CHECKPOINT',
    `${name}: dtype is ${tensor.dtype}, expected F32, F16 or BF16`,
  )
}

/** Whether a float16 is the largest there is, which `convert` makes of all that is larger. */
async function isSaturated(x: Tensor): Promise<boolean> {
  const bits = (await x.read()) as Uint16Array
  // Without a call for each of tens of millions.
  for (let i = 0; i < bits.length; i++) if (((bits[i] as number) & 0x7fff) === 0x7bff) return true
  return false
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
