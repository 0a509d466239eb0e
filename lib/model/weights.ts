import { ZipCacheError } from '../errors.js'
import {
  convert,
  countNonFinite,
  type Device,
  type DType,
  type MappedFile,
  type Tensor,
} from '../ops/index.js'
import type { ModelWeight, WeightRole } from './checkpoint.js'

/**
 * What the model computes in: the type of activations that enter products and attention; sums are
 * float32.
 */
export type ComputeDtype = 'f32' | 'bf16'

/**
 * Type of Q, K, V and attention's output. A model that computes in bfloat16 attends in float16,
 * which is as small and rounds eight times finer: with bfloat16 there, the argmax of a near tie
 * moves.
 */
export type AttentionDtype = 'f32' | 'f16'

export function attentionDtypeOf(dtype: ComputeDtype): AttentionDtype {
  return dtype === 'f32' ? 'f32' : 'f16'
}

/** Weights that exist once a layer; biases and head norms only where the architecture has them. */
export type LayerWeights = Partial<Record<WeightRole, Tensor>>

/** The weights of a model on its device. */
export interface ModelWeights {
  readonly embedding: Tensor
  readonly layers: readonly LayerWeights[]
  readonly norm: Tensor
  /** The embedding again when they are tied. */
  readonly lmHead: Tensor
  dispose(): void
}

const DTYPE_OF: Record<string, DType> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

const MATRICES: readonly WeightRole[] = [
  'qProj',
  'kProj',
  'vProj',
  'oProj',
  'gateProj',
  'upProj',
  'downProj',
  'lmHead',
]

/**
 * Maps the weights of a checkpoint into memory. With `f32` every weight stays in the file's own
 * type and is widened where it is used, which loses nothing and copies nothing; with `bf16`
 * matrices of another type are rounded to it.
 *
 * Rejects with `ERR_ZC_NUMERIC` naming the first tensor that holds NaN or infinity, `ERR_ZC_IO` or
 * `ERR_ZC_CHECKPOINT` when a file has changed since its header was read, and with `signal.reason`
 * when aborted; nothing stays allocated then.
 */
export async function loadWeights(
  device: Device,
  weights: readonly ModelWeight[],
  dtype: ComputeDtype,
  signal?: AbortSignal,
): Promise<ModelWeights> {
  const tensors = new Set<Tensor>()
  const dispose = () => {
    for (const tensor of tensors) tensor.dispose()
  }
  try {
    const files = new Map<string, MappedFile>()
    const byRole: Partial<Record<WeightRole, Tensor>> = {}
    const layers: LayerWeights[] = []
    for (const weight of weights) {
      const { file: path, offset } = weight.tensor
      const file = files.get(path) ?? device.mapFile(path)
      files.set(path, file)
      let tensor: Tensor = device.fromFile(file, offset, storedDtype(weight), weight.shape)
      tensors.add(tensor)
      await refuseNonFinite(tensor, weight.name)
      if (dtype === 'bf16' && tensor.dtype !== 'bf16' && MATRICES.includes(weight.role)) {
        const stored = tensor
        tensor = device.tensor('bf16', weight.shape)
        tensors.add(tensor)
        convert({ x: stored, out: tensor })
        stored.dispose()
      }
      if (weight.layer === null) byRole[weight.role] = tensor
      else {
        layers[weight.layer] ??= {}
        ;(layers[weight.layer] as LayerWeights)[weight.role] = tensor
      }
      signal?.throwIfAborted()
    }
    await device.sync()
    const { embedding, norm } = byRole
    if (!embedding || !norm)
      throw new ZipCacheError('ERR_ZC_INTERNAL', 'weights: no embedding or norm')
    return { embedding, layers, norm, lmHead: byRole.lmHead ?? embedding, dispose }
  } catch (error) {
    dispose()
    throw error
  }
}

function storedDtype({ name, tensor }: ModelWeight): DType {
  const dtype = DTYPE_OF[tensor.dtype]
  if (dtype) return dtype
  throw new ZipCacheError(
    'ERR_ZC_CHECKPOINT',
    `${name}: dtype is ${tensor.dtype}, expected F32, F16 or BF16`,
  )
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
        {
          argument: name,
        },
      )
    }
  } finally {
    count.dispose()
  }
}
