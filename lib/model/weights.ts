import { isDeepStrictEqual } from 'node:util'
import { ZipCacheError } from '../errors.js'
import {
  convert,
  type Device,
  type DType,
  quantizeWeight,
  type Tensor,
  type TypedArrays,
  type WeightScales,
} from '../ops/index.js'
import {
  isExact,
  isMatrix,
  type MatrixRole,
  type ModelWeight,
  type WeightRole,
} from './checkpoint.js'
import type { ModelConfig } from './config.js'
import { rowCountOf, WeightReader } from './weight-reader.js'

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
 * How the matrices of a model are kept: in the type of the file (or rounded to the model's), as codes
 * of 8 bits with a scale for each row, or as codes of 4 bits with a scale and a zero point for each 32
 * elements of a row. Of the latter, matrices whose rows are no multiple of 64 are kept in 8 bits. Codes of
 * the file that have no more bits than are asked for stay what they are.
 */
export type WeightFormat = 'stored' | 'int8' | 'int4'

/** Every `WeightFormat`. */
export const WEIGHT_FORMATS = ['stored', 'int8', 'int4'] as const satisfies readonly WeightFormat[]

/** Elements of a row that share a scale in 4 bits: 4.75 bits an element (docs/decisions.md). */
const INT4_GROUP = 32

/** Codes of 4 bits are packed so many at a time: rows of another length have none. */
const INT4_UNIT = 64

/** Elements of a row that may share a scale in 4 bits. */
const INT4_GROUPS = [128, 64, 32]

/** Elements of a row that share a power of two in MXFP4. */
const FLOAT4_GROUP = 32

/** What a matrix is kept as: codes of 8 bits with a scale a row, or of 4 bits in groups. */
type Codes =
  | { readonly kind: 'int8' }
  | { readonly kind: 'int4'; readonly group: number }
  | { readonly kind: 'mxfp4' }

/** What multiplies activations. */
export interface Matrix {
  /** (out, in), those of experts (n_experts, out, in); codes where there are scales, as `linear` takes them. */
  readonly weight: Tensor
  /**
   * Of codes of 8 bits (out) f32, of codes of 4 (out, in / group) f16, of MXFP4 (out, in / 32) u8, with
   * n_experts in front.
   */
  readonly scales?: WeightScales
  /** (out, in / group), with n_experts in front: beside scales of f16 alone. */
  readonly zeros?: Tensor<'u8'>
}

/** A matrix of codes that `quantizeWeight` makes. */
type RoundedMatrix = Matrix & {
  readonly weight: Tensor<'i8'> | Tensor<'u8'>
  readonly scales: Tensor<'f32'> | Tensor<'f16'>
}

/** What makes channels that rotate. */
const ROTATED: readonly WeightRole[] = ['qProj', 'kProj', 'qBias', 'kBias']

/** Weights that exist once a layer; biases and head norms only where the architecture has them. */
export type LayerWeights = { [Role in MatrixRole]?: Matrix } & {
  [Role in Exclude<WeightRole, MatrixRole>]?: Tensor
}

/** What the vectors are made of that layers read beside the residual stream. */
export interface PerLayerWeights {
  /** (vocab_size, n_layers x width): of tokens, times sqrt(width / 2). */
  readonly embedding: Tensor
  /**
   * (width) f32, times 2^-0.5: of each layer's product (`perLayerModelProj`) of what enters the first layer, divided by
   * the root of hidden_size; as a norm of the product itself it has eps times hidden_size.
   */
  readonly norm: Tensor
}

/** The weights of a model on its device. */
export interface ModelWeights {
  readonly embedding: Tensor
  readonly layers: readonly LayerWeights[]
  /** (n_layers) what the residual stream is multiplied by behind each layer; 1 where the model has no such numbers. */
  readonly layerScales: readonly number[]
  /** Null: layers read the residual stream alone. */
  readonly perLayer: PerLayerWeights | null
  readonly norm: Tensor
  /** The embedding again when they are tied. */
  readonly lmHead: Matrix
  dispose(): void
}

/** How weights are kept. */
export interface WeightOptions {
  readonly config: Pick<
    ModelConfig,
    | 'unitOffsetNorms'
    | 'logitsScale'
    | 'experts'
    | 'interleavedRope'
    | 'headDim'
    | 'rotaryDim'
    | 'hiddenSize'
  >
  readonly dtype: ComputeDtype
  readonly format: WeightFormat
  readonly signal: AbortSignal | undefined
}

/**
 * Maps the weights of a checkpoint into memory. With `f32` every weight stays in the file's own
 * type and is widened where it is used, which loses nothing and copies nothing; with `bf16`
 * matrices of another type are rounded to it, on a GPU what follows attention to float16, unless
 * something in it is too large. With `int8` and `int4` matrices are quantized instead, from what
 * the file says. Those of routers stay what they are: theirs choose; so do those that
 * say how long a recurrent state lasts (`isExact`). Matrices of experts lie in one tensor and are copied there, one
 * after another.
 *
 * Matrices that the checkpoint has quantized are unpacked: `stored` keeps codes of 8 bits where each row has one
 * scale and no zero point, codes of 4 bits in groups of whole 32 elements, and MXFP4; what else there is becomes
 * bfloat16, whatever the model computes in.
 *
 * Rejects with `ERR_ZC_NUMERIC` naming the first tensor that holds NaN or infinity, `ERR_ZC_IO` or
 * `ERR_ZC_CHECKPOINT` when a file has changed since its header was read, the latter also for experts of
 * several types and what is wrong inside quantized weights, and with `signal.reason`
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
  const roomFor = (shape: readonly number[], codes: Codes): Matrix => {
    const [rows, k] = [shape.slice(0, -1), shape.at(-1) as number]
    if (codes.kind === 'int8') return { weight: make('i8', shape), scales: make('f32', rows) }
    const weight = make('u8', [...rows, k / 2])
    if (codes.kind === 'mxfp4') return { weight, scales: make('u8', [...rows, k / FLOAT4_GROUP]) }
    const groups = [...rows, k / codes.group]
    return { weight, scales: make('f16', groups), zeros: make('u8', groups) }
  }
  const roomForRounded = (shape: readonly number[]): RoundedMatrix => {
    const isInt4 = format === 'int4' && (shape.at(-1) as number) % INT4_UNIT === 0
    const codes: Codes = isInt4 ? { kind: 'int4', group: INT4_GROUP } : { kind: 'int8' }
    return roomFor(shape, codes) as RoundedMatrix
  }
  const toMatrix = async (x: Tensor, role: MatrixRole): Promise<Matrix> => {
    if (format !== 'stored' && !isExact(role)) {
      const { weight, ...rest } = roomForRounded(x.shape)
      quantizeWeight({ x, out: weight, ...rest })
      return { weight, ...rest }
    }
    // A router chooses: rounded otherwise than the checkpoint has it, it chooses others. What a state's decay
    // is wrong by grows with each row.
    if (dtype === 'f32' || isExact(role)) return { weight: x }
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
    return format === 'stored'
      ? { weight: make(dtype === 'f32' ? stored : 'bf16', all) }
      : roomForRounded(all)
  }
  /** A vector, which may lie in a row of a matrix, or what else lies in that many elements. */
  const toFloat32 = (x: Tensor, shape: readonly number[] = [x.length]) => {
    const out = make('f32', shape)
    const own = x.view(shape)
    convert({ x: own, out })
    own.dispose()
    discard(x)
    return out
  }
  /** Whatever multiplies what a norm gives alone. */
  const normScales: { readonly [Role in WeightRole]?: number } = {
    norm: config.logitsScale,
    routerNorm: config.hiddenSize ** -0.5,
    perLayerModelNorm: Math.SQRT1_2,
  }
  const toNorm = async (x: Tensor, role: WeightRole): Promise<Tensor> => {
    const scale = normScales[role] ?? 1
    const offset = config.unitOffsetNorms && role !== 'recurrentNorm' ? 1 : 0
    if (scale === 1 && offset === 0) return x
    const out = toFloat32(x)
    out.write((await out.read()).map((weight) => scale * (offset + weight)))
    return out
  }
  const dispose = () => {
    for (const tensor of tensors) tensor.dispose()
  }
  const reader = new WeightReader(device, tensors)
  const discard = (tensor: Tensor) => {
    tensors.delete(tensor)
    tensor.dispose()
  }
  const isReordered = (role: WeightRole) => config.interleavedRope && ROTATED.includes(role)
  const read = async (weight: ModelWeight, wide: 'f32' | 'bf16'): Promise<Tensor> => {
    const x = await reader.values(weight, wide)
    if (!isReordered(weight.role)) return x
    const out = make(x.dtype, x.shape)
    out.write(halvesOf(await x.read(), x.shape[0] as number, config))
    discard(x)
    return out
  }

  /** A matrix, or one of each expert, as the checkpoint's own codes; null where they cannot be kept. */
  const keep = async (parts: readonly ModelWeight[]): Promise<Matrix | null> => {
    const [first] = parts as [ModelWeight]
    const codes = isReordered(first.role) ? null : ownCodes(first)
    if (!codes || (format === 'int4' && codes.kind === 'int8')) return null
    if (!parts.every((part) => isDeepStrictEqual(ownCodes(part), codes))) return null
    const own = [rowCountOf(first), first.shape.at(-1) as number]
    const all = first.expert === null ? own : [config.experts?.count ?? 0, ...own]
    const matrix = roomFor(all, codes)
    for (const part of parts) {
      const views = part.expert === null ? null : expertOf(matrix, part.expert)
      const { weight: out, ...rest } = views ?? matrix
      const fits = await reader.unpack(part, { out, ...rest })
      if (views) for (const view of tensorsOf(views)) view.dispose()
      if (!fits) {
        for (const tensor of tensorsOf(matrix)) discard(tensor)
        return null
      }
      signal?.throwIfAborted()
    }
    return matrix
  }
  const toExperts = async (parts: readonly ModelWeight[], wide: 'f32' | 'bf16') => {
    let matrix: Matrix | undefined
    for (const { name, expert, ...part } of parts) {
      const x = await read({ name, expert, ...part }, wide)
      matrix ??= expertsLike(x)
      if (dtype === 'f32' && format === 'stored' && x.dtype !== matrix.weight.dtype) {
        const expected = `expected ${matrix.weight.dtype}, that of the layer's first expert`
        const message = `${name}: dtype is ${x.dtype}, ${expected}`
        throw new ZipCacheError('ERR_ZC_CHECKPOINT', message, { argument: name })
      }
      putExpert(x, matrix, expert ?? 0)
      discard(x)
      signal?.throwIfAborted()
    }
    return matrix as Matrix
  }
  const load = async (parts: readonly ModelWeight[], role: MatrixRole): Promise<Matrix> => {
    const own = isExact(role) ? null : await keep(parts)
    if (own) return own
    const wide = format === 'stored' || isExact(role) ? 'bf16' : 'f32'
    const [first] = parts as [ModelWeight]
    if (first.expert !== null) return toExperts(parts, wide)
    const x = await read(first, wide)
    const matrix = await toMatrix(x, role)
    if (matrix.weight !== x) discard(x)
    return matrix
  }

  try {
    const once: LayerWeights = {}
    const layers: LayerWeights[] = []
    for (const parts of byPlace(weights)) {
      const [first] = parts as [ModelWeight]
      const { role, layer } = first
      if (layer !== null) layers[layer] ??= {}
      const own = layer === null ? once : (layers[layer] as LayerWeights)
      if (isMatrix(role)) own[role] = await load(parts, role)
      else {
        const x = await read(first, 'bf16')
        if (role === 'recurrentConv')
          own[role] = toFloat32(x, [x.shape[0], x.shape.at(-1)] as number[])
        else own[role] = isWide(role) ? toFloat32(x) : isNorm(role) ? await toNorm(x, role) : x
      }
      signal?.throwIfAborted()
    }
    const { embedding, norm } = once
    if (!embedding || !norm)
      throw new ZipCacheError('ERR_ZC_INTERNAL', 'weights: no embedding or norm')
    const layerScales: number[] = []
    for (const { layerScalar } of layers) {
      layerScales.push(layerScalar ? Number((await layerScalar.read())[0]) : 1)
    }
    // Token embeddings are looked up in the file's own type, whatever they are multiplied in.
    const lmHead =
      once.lmHead ??
      (format === 'stored' ? { weight: embedding } : await toMatrix(embedding, 'lmHead'))
    await device.sync()
    return { embedding, layers, layerScales, perLayer: perLayerOf(once), norm, lmHead, dispose }
  } catch (error) {
    dispose()
    throw error
  }
}

function perLayerOf(once: LayerWeights): PerLayerWeights | null {
  const { perLayerEmbedding: embedding, perLayerModelNorm: norm } = once
  return embedding && norm ? { embedding, norm } : null
}

/** Bytes of a matrix (out, in), or of all experts', that is kept as codes. */
export function codedBytes(format: 'int8' | 'int4', shape: readonly number[]): number {
  const [k, length] = [shape.at(-1) as number, shape.reduce((product, size) => product * size, 1)]
  if (format === 'int8' || k % INT4_UNIT !== 0) return length + 4 * (length / k)
  return length / 2 + 3 * (length / INT4_GROUP)
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
function putExpert(x: Tensor, matrix: Matrix, expert: number): void {
  const own = expertOf(matrix, expert)
  if (own.scales) {
    const { weight, ...rest } = own as RoundedMatrix
    quantizeWeight({ x, out: weight, ...rest })
  } else convert({ x, out: own.weight })
  for (const view of tensorsOf(own)) view.dispose()
}

/** The matrix of one expert among those of all, as views. */
function expertOf({ weight, scales, zeros }: Matrix, expert: number): Matrix {
  const own = <T extends Tensor>(of: T): T => {
    const shape = of.shape.slice(1)
    return of.view(shape, expert * shape.reduce((product, size) => product * size, 1)) as T
  }
  return {
    weight: own(weight),
    ...(scales && { scales: own(scales) }),
    ...(zeros && { zeros: own(zeros) }),
  }
}

function tensorsOf({ weight, scales, zeros }: Matrix): Tensor[] {
  return [weight, scales, zeros].filter((tensor) => tensor !== undefined)
}

/** All tensors of a model by name, each as often as it is used. */
export function namedTensors({
  embedding,
  perLayer,
  norm,
  lmHead,
  layers,
}: ModelWeights): [string, Tensor][] {
  const all: [string, Tensor][] = []
  const add = (name: string, own: Tensor | Matrix) => {
    if ('weight' in own) {
      all.push([name, own.weight])
      if (own.scales) all.push([`${name}.scales`, own.scales])
      if (own.zeros) all.push([`${name}.zeros`, own.zeros])
    } else all.push([name, own])
  }
  add('embedding', embedding)
  for (const [role, own] of Object.entries(perLayer ?? {})) add(`perLayer.${role}`, own)
  add('norm', norm)
  add('lmHead', lmHead)
  for (const [index, layer] of layers.entries()) {
    for (const [role, own] of Object.entries(layer)) add(`${index}.${role}`, own)
  }
  return all
}

const WIDE: readonly WeightRole[] = [
  'expertScales',
  'layerScalar',
  'sinks',
  'routerCorrection',
  'recurrentConvBias',
  'recurrentDecayLog',
  'recurrentDecayBias',
  'recurrentSkip',
]

/** Whether the op that takes it has it in float32. */
function isWide(role: WeightRole): boolean {
  return WIDE.includes(role)
}

function isNorm(role: WeightRole): boolean {
  return role === 'norm' || role.endsWith('Norm')
}

/** Weights of one place in the model together: those of a layer's experts. */
function byPlace(weights: readonly ModelWeight[]): Iterable<readonly ModelWeight[]> {
  const places = new Map<string, ModelWeight[]>()
  for (const weight of weights) {
    const place = `${weight.layer} ${weight.role}`
    const parts = places.get(place)
    if (parts) parts.push(weight)
    else places.set(place, [weight])
  }
  return places.values()
}

/**
 * The codes that are kept of a weight that the checkpoint has quantized; null where they cannot be. A group
 * of the file may be several of ours.
 */
function ownCodes({ quantized, shape }: ModelWeight): Codes | null {
  if (!quantized || quantized.layout === 'f8') return null
  const k = shape.at(-1) as number
  const columns = Math.min(quantized.blockColumns, k)
  if (quantized.bits === 8) return columns === k ? { kind: 'int8' } : null
  if (k % INT4_UNIT !== 0) return null
  if (quantized.layout === 'mxfp4') return columns === FLOAT4_GROUP ? { kind: 'mxfp4' } : null
  const group = INT4_GROUPS.find((own) => columns % own === 0 && k % own === 0)
  return group === undefined ? null : { kind: 'int4', group }
}

/** Whether a float16 is the largest there is, which `convert` makes of all that is larger. */
async function isSaturated(x: Tensor): Promise<boolean> {
  const bits = (await x.read()) as Uint16Array
  // Without a call for each of tens of millions.
  for (let i = 0; i < bits.length; i++) if (((bits[i] as number) & 0x7fff) === 0x7bff) return true
  return false
}
