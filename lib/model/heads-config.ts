import type { ArchitectureTraits } from './architectures.js'
import { ConfigReader } from './config-reader.js'
import { isJsonObject, quote } from './model-files.js'

/** Heads of another shape than most layers', which layers have that see all tokens. */
export interface GlobalHeads {
  /** (nLayers): whether a layer has them. */
  readonly layers: readonly boolean[]
  /** Divides `nHeads`. */
  readonly nKvHeads: number
  /** A multiple of 16, at most 512. */
  readonly headDim: number
  /** Channels of a head that rotate. */
  readonly rotaryDim: number
  /** There are no weights of values: they are what keys are before norm and RoPE, with a norm of their own. */
  readonly valuesAreKeys: boolean
}

/** Elements of a row, of whatever it is. */
export const kMaxWidth = 1 << 20
export const kMaxHeads = 1 << 14
/** What divides channels of a head. */
export const kHeadDimStep = 16
const kMaxHeadDim = 512

/**
 * @throws ERR_ZC_CONFIG naming the key: no divisor of `nHeads`
 */
export function readKvHeads(
  read: ConfigReader,
  nHeads: number,
  key = 'num_key_value_heads',
): number {
  // null means nHeads to transformers; an absent key means a number of its own per architecture (8,
  // 32).
  const fallback = read.raw[key] === null ? nHeads : undefined
  const nKvHeads = read.integer(key, 1, nHeads, fallback)
  if (nHeads % nKvHeads !== 0) {
    read.refuse(key, `is ${nKvHeads}, expected a divisor of num_attention_heads ${nHeads}`)
  }
  return nKvHeads
}

/**
 * Channels of a head: where the file does not say, those of a row divided among heads.
 * @throws ERR_ZC_CONFIG naming the key
 */
export function readHeadDim(read: ConfigReader, hiddenSize: number, nHeads: number): number {
  if (read.value('head_dim') !== undefined) return readOwnHeadDim(read, nHeads)
  if (hiddenSize % nHeads !== 0) {
    read.refuse(
      'hidden_size',
      `is ${hiddenSize}, expected a multiple of num_attention_heads ${nHeads} where head_dim is missing`,
    )
  }
  return checkHeadDim(read, nHeads, hiddenSize / nHeads)
}

function readOwnHeadDim(read: ConfigReader, nHeads: number, key = 'head_dim'): number {
  return checkHeadDim(read, nHeads, read.integer(key, 1, kMaxHeadDim), key)
}

function checkHeadDim(
  read: ConfigReader,
  nHeads: number,
  headDim: number,
  key = 'head_dim',
): number {
  if (headDim % kHeadDimStep !== 0 || headDim > kMaxHeadDim) {
    const expected = `expected a multiple of ${kHeadDimStep} up to ${kMaxHeadDim}`
    read.refuse(key, `is ${headDim}, ${expected}`)
  }
  if (nHeads * headDim > kMaxWidth) {
    read.refuse(
      'num_attention_heads',
      `is ${nHeads}, expected at most ${kMaxWidth / headDim} with ${key} ${headDim}`,
    )
  }
  return headDim
}

/** The heads of most layers, and the windows by which the others are told from them. */
interface UsualHeads {
  readonly nHeads: number
  readonly nKvHeads: number
  readonly headDim: number
  /** (nLayers) 0: the layer sees all tokens. */
  readonly windows: readonly number[]
}

type HeadShape = Pick<GlobalHeads, 'nKvHeads' | 'headDim'>

/**
 * The heads of layers that see all tokens; null where they are as others'. Files have them as `global_head_dim` and
 * `num_global_key_value_heads`, those that transformers 5 writes for each layer in `per_layer_config`.
 * @throws ERR_ZC_CONFIG naming the key: layers of one kind that differ, or by something else than their heads; no layer
 * of the usual ones
 */
export function readGlobalHeads(read: ConfigReader, usual: UsualHeads): GlobalHeads | null {
  const layers = usual.windows.map((window) => window === 0)
  const valuesAreKeys = read.boolean('attention_k_eq_v', false)
  const { nKvHeads, headDim } =
    read.value('per_layer_config') === undefined
      ? readGlobalShape(read, usual, valuesAreKeys)
      : readShapeByLayer(read, usual, layers)
  const isUsual = nKvHeads === usual.nKvHeads && headDim === usual.headDim
  if ((isUsual && !valuesAreKeys) || !layers.includes(true)) return null
  if (!layers.includes(false)) {
    read.refuse('layer_types', 'holds no "sliding_attention", expected it once at least')
  }
  return { layers, nKvHeads, headDim, rotaryDim: headDim, valuesAreKeys }
}

function readGlobalShape(
  read: ConfigReader,
  { nHeads, nKvHeads }: UsualHeads,
  valuesAreKeys: boolean,
): HeadShape {
  const key = 'num_global_key_value_heads'
  // Of a model that has weights of values transformers does not read it.
  const hasOwn = valuesAreKeys && read.value(key) !== undefined
  return {
    nKvHeads: hasOwn ? readKvHeads(read, nHeads, key) : nKvHeads,
    headDim: readOwnHeadDim(read, nHeads, 'global_head_dim'),
  }
}

function readShapeByLayer(
  read: ConfigReader,
  usual: UsualHeads,
  layers: readonly boolean[],
): HeadShape {
  const key = 'per_layer_config'
  const byLayer = read.value(key)
  if (!isJsonObject(byLayer)) read.refuse(key, `is ${quote(byLayer)}, expected an object`)
  const shapes = layers.map((): HeadShape => usual)
  for (const [name, own] of Object.entries(byLayer)) {
    const layer = Number(name)
    if (!(layer in shapes)) {
      read.refuse(
        key,
        `holds ${quote(name)}, expected the number of one of ${layers.length} layers`,
      )
    }
    if (!isJsonObject(own)) read.refuse(`${key}.${name}`, `is ${quote(own)}, expected an object`)
    const reader = new ConfigReader(own, read.path, `${read.prefix}${key}.${name}.`)
    shapes[layer] = readLayerShape(reader, usual)
  }
  const globalShape = shapes[layers.indexOf(true)] ?? usual
  for (const [layer, isGlobal] of layers.entries()) {
    const [own, other] = [shapes[layer] as HeadShape, isGlobal ? globalShape : usual]
    if (own.nKvHeads === other.nKvHeads && own.headDim === other.headDim) continue
    const like = isGlobal ? 'others without a window' : 'head_dim and num_key_value_heads say'
    read.refuse(key, `gives layer ${layer} heads of its own, expected them as ${like}`)
  }
  return globalShape
}

function readLayerShape(own: ConfigReader, usual: UsualHeads): HeadShape {
  const [dimKey, kvKey] = ['head_dim', 'num_key_value_heads']
  for (const key of Object.keys(own.raw)) {
    if (key === dimKey || key === kvKey) continue
    own.refuse(key, `is ${quote(own.raw[key])}; layers that differ in it are not supported`)
  }
  const { nHeads } = usual
  return {
    nKvHeads: own.value(kvKey) === undefined ? usual.nKvHeads : readKvHeads(own, nHeads, kvKey),
    headDim: own.value(dimKey) === undefined ? usual.headDim : readOwnHeadDim(own, nHeads, dimKey),
  }
}

/**
 * (nLayers): the layer whose keys and values each attends to. Of the last `num_kv_shared_layers` that is the last layer of
 * their kind before them.
 * @throws ERR_ZC_CONFIG naming the key: there is no such layer
 */
export function readKvSources(
  read: ConfigReader,
  { isGemma4 }: ArchitectureTraits,
  windows: readonly number[],
): number[] {
  const nLayers = windows.length
  const key = 'num_kv_shared_layers'
  const nShared = isGemma4 ? read.integer(key, 0, nLayers - 1, 0) : 0
  const first = nLayers - nShared
  const isGlobal = windows.map((window) => window === 0)
  return isGlobal.map((kind, layer) => {
    if (layer < first) return layer
    const source = isGlobal.lastIndexOf(kind, first - 1)
    if (source >= 0) return source
    const expected = `expected a layer before them ${kind ? 'without' : 'with'} a window`
    return read.refuse(key, `is ${nShared}, ${expected}, as layer ${layer} is`)
  })
}
