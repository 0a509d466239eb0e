import { ConfigReader } from './config-reader.js'
import { isJsonObject, modelFile, quote, readJsonFile } from './model-files.js'

/**
 * How the matrices of a checkpoint are quantized: what its files cannot say by themselves. A matrix that has
 * a `.weight` of floats is not.
 */
export type QuantizationConfig =
  | Fp8Quantization
  | CompressedTensorsQuantization
  | GptqQuantization
  | AwqQuantization
  | Mxfp4Quantization
  | ModelOptQuantization

/** Float8, by transformers and DeepSeek (a scale for each block) or AutoFP8 (one for all). */
export interface Fp8Quantization {
  /** `quant_method`. */
  readonly method: 'fp8'
  /** Rows and columns that share a scale; null: no blocks. */
  readonly block: readonly [rows: number, columns: number] | null
}

/** By compressed-tensors, as LLM Compressor writes it. Tensors say which of these a matrix has. */
export interface CompressedTensorsQuantization {
  /** `quant_method`. */
  readonly method: 'compressed-tensors'
  /** Rows and columns that share a scale, where there are more than one a row. */
  readonly blocks: readonly (readonly [rows: number, columns: number])[]
}

/** By GPTQ. */
export interface GptqQuantization {
  /** `quant_method`. */
  readonly method: 'gptq'
  /** Of a code. */
  readonly bits: 4 | 8
  /** Columns that share a scale; null: all. */
  readonly groupSize: number | null
  /** Zero points are stored less 1: all but `gptq_v2`. */
  readonly zerosLessOne: boolean
}

/** By AWQ, in the layout for its GEMM. */
export interface AwqQuantization {
  /** `quant_method`. */
  readonly method: 'awq'
  /** Columns that share a scale; null: all. */
  readonly groupSize: number | null
}

/** Experts' matrices in MXFP4: float4 with a scale for each 32 elements, as gpt-oss is published. */
export interface Mxfp4Quantization {
  /** `quant_method`. */
  readonly method: 'mxfp4'
}

/** By NVIDIA's Model Optimizer: float8 with a scale for all, or NVFP4. */
export interface ModelOptQuantization {
  /** `quant_method`. */
  readonly method: 'modelopt'
}

const kKeys = ['quantization_config', 'compression_config']
const kMaxBlock = 1 << 20
const kMaxFileBytes = 1 << 24
const kFormats = [
  ...['int-quantized', 'float-quantized', 'naive-quantized', 'pack-quantized'],
  ...['nvfp4-pack-quantized', 'mxfp4-pack-quantized'],
]
const kMethods = ['fp8', 'compressed-tensors', 'gptq', 'awq', 'mxfp4', 'modelopt']

/**
 * What config.json says of quantized weights; null: nothing. How activations and the cache were
 * quantized is left aside, as weights alone are taken. So are lists of modules that are not: what the files
 * hold decides.
 * @throws ERR_ZC_CONFIG naming the key, its value and what it must be
 */
export function readQuantization(read: ConfigReader): QuantizationConfig | null {
  const key = kKeys.find((key) => read.value(key) !== undefined)
  if (key === undefined) return null
  const raw = read.value(key)
  if (!isJsonObject(raw)) read.refuse(key, `is ${quote(raw)}, expected an object`)
  const own: ConfigReader = new ConfigReader(raw, read.path, `${read.prefix}${key}.`)
  const method = own.value('quant_method') ?? (own.value('config_groups') && kMethods[1])
  switch (method) {
    case 'fp8':
      return readFp8(own)
    case 'compressed-tensors':
      return readCompressedTensors(own)
    case 'gptq':
      return readGptq(own)
    case 'awq':
      return readAwq(own)
    case 'mxfp4':
      return { method }
    case 'modelopt':
      return readModelOpt(own)
    default:
      own.refuse('quant_method', `is ${quote(method)}, expected one of ${kMethods.join(', ')}`)
  }
}

/**
 * What hf_quant_config.json says, where Model Optimizer once wrote what config.json has now; null where there
 * is none.
 * @throws ERR_ZC_CONFIG naming the key, its value and what it must be; ERR_ZC_IO when it cannot be read
 */
export async function readModelOptFile(dir: string): Promise<ModelOptQuantization | null> {
  const path = modelFile(dir, 'hf_quant_config.json')
  const raw = await readJsonFile(path, 'ERR_ZC_CONFIG', kMaxFileBytes)
  if (raw === null) return null
  const read: ConfigReader = new ConfigReader(raw, path)
  const own = read.value('quantization')
  if (!isJsonObject(own)) read.refuse('quantization', `is ${quote(own)}, expected an object`)
  return readModelOpt(new ConfigReader(own, path, 'quantization.'))
}

function readModelOpt(read: ConfigReader): ModelOptQuantization {
  refuseOthers(read, 'quant_algo', ['FP8', 'NVFP4'])
  return { method: 'modelopt' }
}

function readFp8(read: ConfigReader): Fp8Quantization {
  refuseOthers(read, 'fmt', ['e4m3', 'float8_e4m3fn'])
  refuseOthers(read, 'scale_fmt', ['float'])
  const block = read.value('weight_block_size')
  return { method: 'fp8', block: block === undefined ? null : readBlock(read, 'weight_block_size') }
}

function readCompressedTensors(read: ConfigReader): CompressedTensorsQuantization {
  refuseOthers(read, 'format', [...kFormats, 'mixed-precision', 'dense'])
  const transforms = read.value('transform_config')
  if (transforms !== undefined && !isEmpty(transforms) && !isEmpty(groupsOf(transforms))) {
    read.refuse('transform_config', 'is set; transforms of activations are not supported')
  }
  const sparsity = read.value('sparsity_config')
  if (isJsonObject(sparsity) && !isEmpty(sparsity)) {
    refuseOthers(
      new ConfigReader(sparsity, read.path, `${read.prefix}sparsity_config.`),
      'format',
      ['dense'],
    )
  }
  const groups = read.value('config_groups')
  if (!isJsonObject(groups)) read.refuse('config_groups', `is ${quote(groups)}, expected an object`)
  const blocks: (readonly [number, number])[] = []
  for (const [name, group] of Object.entries(groups)) {
    const key = `config_groups.${name}`
    if (!isJsonObject(group)) read.refuse(key, `is ${quote(group)}, expected an object`)
    const own: ConfigReader = new ConfigReader(group, read.path, `${read.prefix}${key}.`)
    refuseOthers(own, 'format', [...kFormats, 'dense'])
    const weights = own.value('weights')
    if (weights === undefined) continue // activations alone
    if (!isJsonObject(weights)) own.refuse('weights', `is ${quote(weights)}, expected an object`)
    const block = readWeightArgs(new ConfigReader(weights, read.path, `${own.prefix}weights.`))
    if (block) blocks.push(block)
  }
  return { method: 'compressed-tensors', blocks }
}

/** Rows and columns that share a scale, where a row has several. */
function readWeightArgs(read: ConfigReader): readonly [number, number] | null {
  const type = read.value('type') ?? 'int'
  if (type !== 'int' && type !== 'float') {
    read.refuse('type', `is ${quote(type)}, expected "int" or "float"`)
  }
  readBits(read, 'num_bits', [4, 8])
  const size = read.value('group_size')
  const hasGroups = size !== undefined && size !== -1
  const strategy = read.value('strategy') ?? (hasGroups ? 'group' : 'tensor')
  switch (strategy) {
    case 'tensor':
    case 'channel':
      return null
    case 'group':
    case 'tensor_group':
      return hasGroups ? [1, read.integer('group_size', 1, kMaxBlock)] : null
    case 'block':
      return readBlock(read, 'block_structure')
    default:
      read.refuse(
        'strategy',
        `is ${quote(strategy)}, expected "tensor", "channel", "group", "tensor_group" or "block"`,
      )
  }
}

function readGptq(read: ConfigReader): GptqQuantization {
  const format = read.value('checkpoint_format') ?? read.value('format') ?? 'gptq'
  if (format !== 'gptq' && format !== 'gptq_v2') {
    read.refuse('checkpoint_format', `is ${quote(format)}, expected "gptq" or "gptq_v2"`)
  }
  if (read.boolean('is_marlin_format', false)) {
    read.refuse('is_marlin_format', 'is true; the layout of Marlin is not supported')
  }
  return {
    method: 'gptq',
    bits: readBits(read, 'bits', [4, 8]),
    groupSize: readGroupSize(read, 'group_size'),
    zerosLessOne: format === 'gptq',
  }
}

function readAwq(read: ConfigReader): AwqQuantization {
  const versionKey = read.value('version') === undefined ? 'format' : 'version'
  const version = read.value(versionKey) ?? 'gemm'
  if (typeof version !== 'string' || version.toLowerCase() !== 'gemm') {
    read.refuse(versionKey, `is ${quote(version)}, expected "gemm"`)
  }
  if (read.value('backend') === 'llm-awq') {
    read.refuse('backend', 'is "llm-awq", whose layout is not supported')
  }
  if (!read.boolean('zero_point', true)) {
    read.refuse('zero_point', 'is false, expected true: AWQ without zero points is not supported')
  }
  readBits(read, read.value('bits') === undefined ? 'w_bit' : 'bits', [4])
  const groupKey = read.value('group_size') === undefined ? 'q_group_size' : 'group_size'
  return { method: 'awq', groupSize: readGroupSize(read, groupKey) }
}

function refuseOthers(read: ConfigReader, key: string, known: readonly string[]): void {
  const value = read.value(key)
  if (value === undefined || (typeof value === 'string' && known.includes(value))) return
  const expected = known.length === 1 ? `"${known[0]}"` : `one of ${known.join(', ')}`
  read.refuse(key, `is ${quote(value)}, expected ${expected}`)
}

function readBits<B extends number>(read: ConfigReader, key: string, allowed: readonly B[]): B {
  const value = read.value(key)
  const bits = allowed.find((own) => own === value)
  return bits ?? read.refuse(key, `is ${quote(value)}, expected ${allowed.join(' or ')}`)
}

function readGroupSize(read: ConfigReader, key: string): number | null {
  return read.value(key) === -1 ? null : read.integer(key, 1, kMaxBlock)
}

function readBlock(read: ConfigReader, key: string): readonly [number, number] {
  const value = read.value(key)
  const isSize = (size: unknown): size is number =>
    typeof size === 'number' && Number.isInteger(size) && size >= 1 && size <= kMaxBlock
  if (Array.isArray(value) && value.length === 2 && value.every(isSize)) {
    return [value[0] as number, value[1] as number]
  }
  read.refuse(key, `is ${quote(value)}, expected two integers from 1 to ${kMaxBlock}`)
}

function isEmpty(value: unknown): boolean {
  return isJsonObject(value) && Object.keys(value).length === 0
}

/** What a `transform_config` transforms; itself where that cannot be told. */
function groupsOf(transforms: unknown): unknown {
  return isJsonObject(transforms) ? (transforms.config_groups ?? transforms) : transforms
}
