import { ZipCacheError } from '../errors.js'
import type { CODE_LAYOUTS, ZERO_LAYOUTS } from '../ops/unpack-weight.js'
import type { Checkpoint, CheckpointTensor } from './checkpoint.js'
import type { QuantizationConfig } from './quantization-config.js'

/** A tensor of a checkpoint by its name. */
export interface NamedTensor extends CheckpointTensor {
  readonly name: string
}

/** How a matrix (n, k) of quantized weights is stored: value = (code - zero) * scale. */
export interface QuantizedMatrix {
  /** See `StoredWeight`. */
  readonly layout: (typeof CODE_LAYOUTS)[number]
  /** See `StoredWeight`. */
  readonly zeroLayout: (typeof ZERO_LAYOUTS)[number]
  /** Of a code. */
  readonly bits: 4 | 8
  /** Rows that share a scale. */
  readonly blockRows: number
  /** Columns that share a scale, but where `columnGroups` say it. */
  readonly blockColumns: number
  readonly codes: NamedTensor
  readonly scales: NamedTensor
  /** What all scales are multiplied or divided by besides; null: nothing. */
  readonly ofAllScales: { readonly by: 'factor' | 'divisor'; readonly tensor: NamedTensor } | null
  readonly zeros: NamedTensor | null
  readonly columnGroups: NamedTensor | null
}

type Shape = readonly number[]

const kScaleDtypes = ['F32', 'F16', 'BF16']
const kWeight = '.weight'

/**
 * How the matrix that a plain checkpoint calls `name` is stored in a quantized one; null where it is a plain
 * tensor, or not there at all. Names, shapes and dtypes of all that belongs to it are checked; its scales for
 * activations and the cache are left aside.
 *
 * Sources: AutoGPTQ's and GPTQModel's qlinear modules, AutoAWQ's WQLinear_GEMM, compressed-tensors'
 * compressors, transformers' finegrained_fp8, Model Optimizer's NVFP4QTensor.
 * @throws ERR_ZC_CHECKPOINT naming the tensor that is missing or has another shape or dtype
 */
export function findQuantized(
  checkpoint: Checkpoint,
  quantization: QuantizationConfig,
  name: string,
  [n, k]: readonly [n: number, k: number],
): QuantizedMatrix | null {
  const base = name.slice(0, -kWeight.length)
  const tensors = new TensorsOf(checkpoint, base)
  switch (quantization.method) {
    case 'gptq':
    case 'awq':
      return tensors.has('qweight') ? findColumnwise(tensors, quantization, n, k) : null
    case 'compressed-tensors':
      if (tensors.dtypeOf('weight_packed') === 'U8') {
        const name = 'weight_global_scale'
        const isNv = tensors.has(name) || tensors.dtypeOf('weight_scale') === 'F8_E4M3'
        const tensor = isNv ? tensors.get(name, ['F32'], [[], [1]]) : null
        return findFloat4(tensors, 'weight_packed', tensor && { by: 'divisor', tensor }, n, k)
      }
      if (tensors.has('weight_packed')) return findPacked(tensors, quantization.blocks, n, k)
      if (tensors.dtypeOf('weight') === 'I8') {
        const codes = tensors.get('weight', ['I8'], [[n, k]])
        const scales = tensors.get(
          'weight_scale',
          kScaleDtypes,
          scaleShapes(quantization.blocks, n, k),
        )
        const zeros = tensors.find('weight_zero_point', ['I8'], [scales.shape])
        return {
          ...{ layout: 'i8', zeroLayout: zeros ? 'i8' : 'none', bits: 8, codes, scales, zeros },
          ofAllScales: null,
          ...blockOf(scales.shape, quantization.blocks, n, k),
          columnGroups: tensors.find('weight_g_idx', ['I32'], [[k]]),
        }
      }
      return findFloat8(tensors, 'weight_scale', quantization.blocks, n, k)
    case 'fp8': {
      const blocks = quantization.block ? [quantization.block] : []
      const scaleName = tensors.has('weight_scale_inv') ? 'weight_scale_inv' : 'weight_scale'
      return findFloat8(tensors, scaleName, blocks, n, k)
    }
    case 'modelopt': {
      if (tensors.dtypeOf('weight') !== 'U8') return findFloat8(tensors, 'weight_scale', [], n, k)
      const tensor = tensors.get('weight_scale_2', ['F32'], [[], [1]])
      return findFloat4(tensors, 'weight', { by: 'factor', tensor }, n, k)
    }
    case 'mxfp4':
      return null // matrices of experts alone
  }
}

/** Elements of a row that share a scale in NVFP4. */
const kNvBlock = 16

/** Float4 of one matrix: NVFP4, where all scales have a float32 besides, else MXFP4. */
function findFloat4(
  tensors: TensorsOf,
  codesName: string,
  ofAllScales: QuantizedMatrix['ofAllScales'],
  n: number,
  k: number,
): QuantizedMatrix {
  const blockColumns = ofAllScales ? kNvBlock : kMxBlock.elements
  const codes = tensors.get(codesName, ['U8'], [[n, k / 2]])
  const dtypes = ofAllScales ? ['F8_E4M3'] : ['U8', 'F8_E8M0']
  const scales = tensors.get('weight_scale', dtypes, [[n, k / blockColumns]])
  return {
    ...{ layout: ofAllScales ? 'nvfp4' : 'mxfp4', zeroLayout: 'none', bits: 4, blockRows: 1 },
    ...{ blockColumns, codes, scales, ofAllScales, zeros: null, columnGroups: null },
  }
}

/** Elements of a row that share a scale in MXFP4, and the bytes that hold them. */
const kMxBlock = { elements: 32, bytes: 16 }

/**
 * How the matrix of an expert is stored where those of all, (count, n, k), that a plain checkpoint calls
 * `name` are quantized together; null where they are a plain tensor, or not there at all.
 *
 * Source: OCP Microscaling Formats 1.0, §5 and 6; transformers' integrations/mxfp4.py.
 * @throws ERR_ZC_CHECKPOINT naming the tensor that is missing or has another shape or dtype
 */
export function findQuantizedExpert(
  checkpoint: Checkpoint,
  quantization: QuantizationConfig,
  { name, expert, shape }: { name: string; expert: number; shape: Shape },
): QuantizedMatrix | null {
  const tensors = new TensorsOf(checkpoint, name, '_')
  if (quantization.method !== 'mxfp4') return null
  if (!tensors.has('blocks') && !tensors.has('scales')) return null
  const [count, n, k] = shape as [number, number, number]
  const grid = [n, Math.ceil(k / kMxBlock.elements)]
  const own = (suffix: string, rest: Shape): NamedTensor => {
    const all = tensors.get(suffix, ['U8'], [[count, ...rest]])
    const sizeBytes = all.sizeBytes / count
    return { ...all, shape: [...rest], offset: all.offset + expert * sizeBytes, sizeBytes }
  }
  return {
    ...{ layout: 'mxfp4', zeroLayout: 'none', bits: 4, blockRows: 1, zeros: null },
    ...{ blockColumns: kMxBlock.elements, columnGroups: null, ofAllScales: null },
    codes: own('blocks', [...grid, kMxBlock.bytes]),
    scales: own('scales', grid),
  }
}

function findFloat8(
  tensors: TensorsOf,
  scaleName: string,
  blocks: readonly Shape[],
  n: number,
  k: number,
): QuantizedMatrix | null {
  if (tensors.dtypeOf('weight') !== 'F8_E4M3') return null
  const codes = tensors.get('weight', ['F8_E4M3'], [[n, k]])
  const scales = tensors.get(scaleName, kScaleDtypes, scaleShapes(blocks, n, k))
  return {
    ...{ layout: 'f8', zeroLayout: 'none', bits: 8, codes, scales, zeros: null, ofAllScales: null },
    ...blockOf(scales.shape, blocks, n, k),
    columnGroups: null,
  }
}

function findPacked(
  tensors: TensorsOf,
  blocks: readonly Shape[],
  n: number,
  k: number,
): QuantizedMatrix {
  const shapes = ([4, 8] as const).map((bits) => [n, words(k, bits)])
  const codes = tensors.get('weight_packed', ['I32'], shapes)
  const bits = codes.shape[1] === words(k, 8) ? 8 : 4
  const scales = tensors.get('weight_scale', kScaleDtypes, scaleShapes(blocks, n, k))
  const block = blockOf(scales.shape, blocks, n, k)
  // Older files have them unpacked.
  const [rows = 1, columns = 1] = scales.shape
  const zeros =
    tensors.dtypeOf('weight_zero_point') === 'I8'
      ? tensors.get('weight_zero_point', ['I8'], [scales.shape])
      : tensors.find('weight_zero_point', ['I32'], [[words(rows, bits), columns]])
  let zeroLayout: QuantizedMatrix['zeroLayout'] = 'none'
  if (zeros) zeroLayout = zeros.dtype === 'I8' ? 'i8' : 'packed'
  const columnGroups = tensors.find('weight_g_idx', ['I32'], [[k]])
  const rest = { codes, scales, ofAllScales: null, zeros, columnGroups }
  return { layout: 'packed', zeroLayout, bits, ...block, ...rest }
}

function findColumnwise(
  tensors: TensorsOf,
  quantization: Extract<QuantizationConfig, { method: 'gptq' | 'awq' }>,
  n: number,
  k: number,
): QuantizedMatrix {
  const blockColumns = quantization.groupSize ?? k
  const nGroups = Math.ceil(k / blockColumns)
  const scales = tensors.get('scales', kScaleDtypes, [[nGroups, n]])
  const own = { blockRows: 1, blockColumns, scales, ofAllScales: null }
  if (quantization.method === 'awq') {
    const codes = tensors.get('qweight', ['I32'], [[k, words(n, 4)]])
    const zeros = tensors.get('qzeros', ['I32'], [[nGroups, words(n, 4)]])
    return { layout: 'awq', zeroLayout: 'awq', bits: 4, ...own, codes, zeros, columnGroups: null }
  }
  const { bits, zerosLessOne } = quantization
  const codes = tensors.get('qweight', ['I32'], [[words(k, bits), n]])
  const zeros = tensors.get('qzeros', ['I32'], [[nGroups, words(n, bits)]])
  const columnGroups = tensors.find('g_idx', ['I32'], [[k]])
  const zeroLayout = zerosLessOne ? 'gptq - 1' : 'gptq'
  return { layout: 'gptq', zeroLayout, bits, ...own, codes, zeros, columnGroups }
}

/** Words of 32 bits that hold so many codes. */
function words(length: number, bits: number): number {
  return Math.ceil((length * bits) / 32)
}

/** Of a scale for all, for each row, or for each block. */
function scaleShapes(blocks: readonly Shape[], n: number, k: number): Shape[] {
  return [[], [1], [1, 1], [n], [n, 1], ...blocks.map((block) => gridOf(block, n, k))]
}

function gridOf([rows = 1, columns = 1]: Shape, n: number, k: number): Shape {
  return [Math.ceil(n / rows), Math.ceil(k / columns)]
}

function blockOf(shape: Shape, blocks: readonly Shape[], n: number, k: number) {
  const block = blocks.find((own) => isSame(gridOf(own, n, k), shape))
  if (block && shape.length === 2) {
    return { blockRows: block[0] as number, blockColumns: block[1] as number }
  }
  const isOne = shape.every((size) => size === 1)
  return { blockRows: isOne ? n : 1, blockColumns: k }
}

function isSame(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis])
}

/** The tensors of one matrix. */
class TensorsOf {
  constructor(
    readonly checkpoint: Checkpoint,
    readonly base: string,
    readonly joint: '.' | '_' = '.',
  ) {}

  has(suffix: string): boolean {
    return this.dtypeOf(suffix) !== undefined
  }

  dtypeOf(suffix: string): string | undefined {
    return this.checkpoint.tensors.get(this.#nameOf(suffix))?.dtype
  }

  /** The tensor, which must have one of these dtypes and shapes; null where there is none. */
  find(suffix: string, dtypes: readonly string[], shapes: readonly Shape[]): NamedTensor | null {
    return this.has(suffix) ? this.get(suffix, dtypes, shapes) : null
  }

  get(suffix: string, dtypes: readonly string[], shapes: readonly Shape[]): NamedTensor {
    const name = this.#nameOf(suffix)
    const tensor = this.checkpoint.tensors.get(name)
    const text = [...new Set(shapes.map((shape) => `[${shape.join(', ')}]`))].join(' or ')
    if (tensor === undefined) {
      const where = this.checkpoint.files.join(', ')
      refuse(`${where}: ${name} is missing, expected shape ${text}`, name)
    }
    if (!dtypes.includes(tensor.dtype)) {
      const allowed = dtypes.join(', ')
      refuse(`${tensor.file}: ${name} has dtype ${tensor.dtype}, expected one of ${allowed}`, name)
    }
    if (!shapes.some((shape) => isSame(shape, tensor.shape))) {
      const shape = tensor.shape.join(', ')
      refuse(`${tensor.file}: ${name} has shape [${shape}], expected ${text}`, name)
    }
    return { ...tensor, name }
  }

  #nameOf(suffix: string): string {
    return `${this.base}${this.joint}${suffix}`
  }
}

function refuse(message: string, argument: string): never {
  throw new ZipCacheError('ERR_ZC_CHECKPOINT', message, { argument })
}
