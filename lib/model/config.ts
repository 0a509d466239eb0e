import { stat } from 'node:fs/promises'
import { ZipCacheError } from '../errors.js'
import { readGenerationConfig, readTokenIds } from './generation-config.js'
import { isJsonObject, type JsonObject, modelFile, quote, readJsonFile } from './model-files.js'

/** The `architectures` entry of config.json, for those we compute. */
export type Architecture =
  | 'LlamaForCausalLM'
  | 'MistralForCausalLM'
  | 'Qwen2ForCausalLM'
  | 'Qwen3ForCausalLM'

/** How positions turn into rotation frequencies; `ropeFrequencies` does the computing. */
export type RopeConfig = {
  /** The base: pair i of d / 2 turns by theta^(-2i / d) radians a position. */
  readonly theta: number
} & (DefaultRope | LinearRope | Llama3Rope | YarnRope)

/** Positions as they are. Source: RoFormer (arXiv 2104.09864) §3.2. */
export interface DefaultRope {
  /** `rope_type`. */
  readonly type: 'default'
}

/** Positions divided by a factor. Source: Chen et al. (arXiv 2306.15595). */
export interface LinearRope {
  /** `rope_type`. */
  readonly type: 'linear'
  /** How much longer the context is than what the model was trained for. */
  readonly factor: number
}

/** Slow rotations divided by a factor, fast ones left alone. Source: LLaMA 3.1's config.json. */
export interface Llama3Rope {
  /** `rope_type`. */
  readonly type: 'llama3'
  /** What slow rotations are divided by. */
  readonly factor: number
  /** Rotations with fewer turns than this in the original context are slow. */
  readonly lowFreqFactor: number
  /** Rotations with more turns than this in it are fast. */
  readonly highFreqFactor: number
  /** null: the model's `maxPositions`. */
  readonly originalMaxPositions: number | null
}

/** Rotations divided by a ramp over their turns. Source: YaRN (arXiv 2309.00071) §3. */
export interface YarnRope {
  /** `rope_type`. */
  readonly type: 'yarn'
  /** null: `maxPositions / originalMaxPositions`. */
  readonly factor: number | null
  /** null: the model's `maxPositions`. */
  readonly originalMaxPositions: number | null
  /** Multiplies cos and sin; null: computed from `factor`, `mscale` and `mscaleAllDim`. */
  readonly attentionFactor: number | null
  /** Of the computed factor's numerator, where `mscaleAllDim` is given, too. */
  readonly mscale: number | null
  /** Of its denominator, where `mscale` is given, too. */
  readonly mscaleAllDim: number | null
  /** Turns in the original context above which a rotation is left alone. */
  readonly betaFast: number
  /** Turns below which it is divided by the whole factor. */
  readonly betaSlow: number
  /** Round the ends of the ramp to whole dimensions. */
  readonly truncate: boolean
}

/**
 * Everything the forward pass needs to know about a model, checked and with the defaults filled in.
 */
export interface ModelConfig {
  /** How the layers are built. */
  readonly architecture: Architecture
  /** Decoder layers. */
  readonly nLayers: number
  /** Width of the residual stream. */
  readonly hiddenSize: number
  /** Width of the gated MLP. */
  readonly intermediateSize: number
  /** Query heads. */
  readonly nHeads: number
  /** Divides `nHeads`. */
  readonly nKvHeads: number
  /** A multiple of 16, at most 256. `nHeads * headDim` need not be `hiddenSize`. */
  readonly headDim: number
  /** Rows of the embedding. */
  readonly vocabSize: number
  /** `max_position_embeddings`: the longest context, in tokens. */
  readonly maxPositions: number
  /** Added to the mean square in each norm. */
  readonly rmsNormEps: number
  /** The output projection is the embedding matrix. */
  readonly tieWordEmbeddings: boolean
  /** The token that begins a text; null: the model names none. */
  readonly bosTokenId: number | null
  /** Tokens that end a text: generation_config.json's where it names any, else config.json's. */
  readonly eosTokenIds: readonly number[]
  /** Which projections of attention have a bias. */
  readonly attentionBias: {
    /** Those of Q, K and V. */
    readonly qkv: boolean
    /** The one of the output. */
    readonly output: boolean
  }
  /** RMS norm over head_dim of each query and key head, before RoPE. */
  readonly qkNorm: boolean
  /** (nLayers): a row sees its last so many keys, itself included; 0 sees all. */
  readonly slidingWindow: readonly number[]
  /** How positions turn into rotations. */
  readonly rope: RopeConfig
}

const kMaxBytes = 1 << 24
const kMaxWidth = 1 << 20
const kMaxLayers = 1024
const kMaxHeads = 1 << 14
const kMaxHeadDim = 256
const kHeadDimStep = 16
const kMaxVocab = 1 << 22
const kMaxPositions = 1 << 27
const kMaxInt32 = 2 ** 31 - 1
/** pow(theta, 1) must stay a finite float32 with room for the yarn factor. */
const kMaxTheta = 1e30

/** Where transformers differs from one architecture to the next. */
interface ArchitectureTraits {
  readonly modelType: string
  /**
   * `num_key_value_heads` when the key is absent: nHeads, or a class default that we do not guess.
   */
  readonly kvHeadsDefaultToHeads: boolean
  readonly defaultHeadDim: number | null
  readonly bias: 'none' | 'qkv' | 'from attention_bias'
  readonly qkNorm: boolean
  readonly window: 'none' | 'all layers' | 'by use_sliding_window'
}

const kArchitectures: Readonly<Record<Architecture, ArchitectureTraits>> = {
  LlamaForCausalLM: {
    modelType: 'llama',
    kvHeadsDefaultToHeads: true,
    defaultHeadDim: null,
    bias: 'from attention_bias',
    qkNorm: false,
    window: 'none',
  },
  MistralForCausalLM: {
    modelType: 'mistral',
    kvHeadsDefaultToHeads: false,
    defaultHeadDim: null,
    bias: 'none',
    qkNorm: false,
    window: 'all layers',
  },
  Qwen2ForCausalLM: {
    modelType: 'qwen2',
    kvHeadsDefaultToHeads: false,
    defaultHeadDim: null,
    bias: 'qkv',
    qkNorm: false,
    window: 'by use_sliding_window',
  },
  Qwen3ForCausalLM: {
    modelType: 'qwen3',
    kvHeadsDefaultToHeads: false,
    // Qwen3Config's own default: a Qwen3 without the key does not have hidden_size / n_heads.
    defaultHeadDim: 128,
    bias: 'from attention_bias',
    qkNorm: true,
    window: 'by use_sliding_window',
  },
}

/** transformers' `sliding_window` where Mistral's and Qwen's configs leave the key out. */
const kDefaultSlidingWindow = 4096
/** transformers' `max_window_layers` where Qwen's configs leave the key out. */
const kDefaultMaxWindowLayers = 28
const kDefaultTheta = 10000
const kDefaultEps = 1e-6

/**
 * Reads and checks config.json of a Hugging Face model folder (LlamaForCausalLM,
 * MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM), in the form of transformers 4
 * (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`). A value that is absent takes
 * transformers' default where that cannot surprise, and is refused where it could.
 * @throws ERR_ZC_CONFIG naming the key, its value and what it must be: the file is missing or
 *   damaged, a size is absurd, or the model needs something that is not computed here; ERR_ZC_IO
 *   when the file cannot be read
 */
export async function readModelConfig(dir: string): Promise<ModelConfig> {
  const path = modelFile(dir, 'config.json')
  const raw = await readJsonFile(path, 'ERR_ZC_CONFIG', kMaxBytes)
  if (raw === null) {
    const message = await whyMissing(dir, path)
    throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: 'config.json' })
  }
  const generation = await readGenerationConfig(dir)
  const config = parseModelConfig(raw, path)
  if (generation === null) return config
  const eosTokenIds =
    generation.eosTokenIds.length > 0 ? generation.eosTokenIds : config.eosTokenIds
  const bosTokenId = generation.bosTokenId ?? config.bosTokenId
  const generationPath = modelFile(dir, 'generation_config.json')
  checkTokenIds(eosTokenIds, 'eos_token_id', config.vocabSize, generationPath)
  if (bosTokenId !== null)
    checkTokenIds([bosTokenId], 'bos_token_id', config.vocabSize, generationPath)
  return { ...config, eosTokenIds, bosTokenId }
}

/** What a caller has named who has named no model folder: a hub's id, say, or a GGUF file. */
async function whyMissing(dir: string, path: string): Promise<string> {
  const expected = 'expected a folder with a Hugging Face model'
  const stats = await stat(dir).catch(() => null)
  if (stats === null) return `${dir}: does not exist; ${expected} (nothing is downloaded)`
  if (!stats.isDirectory()) return `${dir}: is a file; ${expected}: config.json and safetensors`
  return `${path}: does not exist; ${expected}`
}

/**
 * Checks a parsed config.json; `path` only names it in messages.
 * @throws ERR_ZC_CONFIG as `readModelConfig`
 */
export function parseModelConfig(raw: JsonObject, path = 'config.json'): ModelConfig {
  const read = new ConfigReader(raw, path)
  const architecture = readArchitecture(read)
  const traits = kArchitectures[architecture]
  refuseUnsupported(read, traits)

  const nLayers = read.integer('num_hidden_layers', 1, kMaxLayers)
  const hiddenSize = read.integer('hidden_size', 1, kMaxWidth)
  const intermediateSize = read.integer('intermediate_size', 1, kMaxWidth)
  const nHeads = read.integer('num_attention_heads', 1, kMaxHeads)
  const nKvHeads = readKvHeads(read, traits, nHeads)
  const headDim = readHeadDim(read, traits, hiddenSize, nHeads)
  const vocabSize = read.integer('vocab_size', 1, kMaxVocab)
  const maxPositions = read.integer('max_position_embeddings', 1, kMaxPositions)
  const attentionBias = traits.bias !== 'none' && read.boolean('attention_bias', false)
  const bosTokenIds = readTokenIds(raw, 'bos_token_id', path)
  const eosTokenIds = readTokenIds(raw, 'eos_token_id', path)
  checkTokenIds(bosTokenIds, 'bos_token_id', vocabSize, path)
  checkTokenIds(eosTokenIds, 'eos_token_id', vocabSize, path)

  return {
    architecture,
    nLayers,
    hiddenSize,
    intermediateSize,
    nHeads,
    nKvHeads,
    headDim,
    vocabSize,
    maxPositions,
    rmsNormEps: read.number('rms_norm_eps', 'a number above 0 and at most 1', kDefaultEps, isEps),
    tieWordEmbeddings: read.boolean('tie_word_embeddings', false),
    bosTokenId: bosTokenIds[0] ?? null,
    eosTokenIds,
    attentionBias:
      traits.bias === 'qkv'
        ? { qkv: true, output: false }
        : { qkv: attentionBias, output: attentionBias },
    qkNorm: traits.qkNorm,
    slidingWindow: readSlidingWindow(read, traits, architecture, nLayers),
    rope: readRope(read),
  }
}

const isEps = (value: number): boolean => value > 0 && value <= 1
const isPositive = (value: number): boolean => value > 0 && value <= kMaxTheta

/**
 * Typed access to the keys of one JSON object; every complaint names file, key, value and what was
 * expected.
 */
class ConfigReader {
  constructor(
    readonly raw: JsonObject,
    readonly path: string,
    /** `rope_scaling.` for the keys within, nothing at the top. */
    readonly prefix = '',
  ) {}

  refuse(key: string, complaint: string): never {
    const message = `${this.path}: ${this.prefix}${key} ${complaint}`
    throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: `${this.prefix}${key}` })
  }

  /**
   * The value, or undefined where the key is absent or null: Python's None means the same as absent
   * nearly everywhere.
   */
  value(key: string): unknown {
    return this.raw[key] ?? undefined
  }

  integer(key: string, min: number, max: number, fallback?: number): number {
    const value = this.value(key)
    if (value === undefined && fallback !== undefined) return fallback
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) {
      return value
    }
    this.refuse(key, `is ${quote(value)}, expected an integer from ${min} to ${max}`)
  }

  number(
    key: string,
    expected: string,
    fallback: number | undefined,
    accept: (value: number) => boolean,
  ): number {
    const value = this.value(key)
    if (value === undefined && fallback !== undefined) return fallback
    if (typeof value === 'number' && Number.isFinite(value) && accept(value)) return value
    this.refuse(key, `is ${quote(value)}, expected ${expected}`)
  }

  positive(key: string, fallback?: number): number {
    return this.number(key, 'a number > 0', fallback, isPositive)
  }

  optionalPositive(key: string): number | null {
    return this.value(key) === undefined ? null : this.positive(key)
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.value(key)
    if (value === undefined) return fallback
    if (typeof value === 'boolean') return value
    this.refuse(key, `is ${quote(value)}, expected true or false`)
  }
}

function isArchitecture(name: unknown): name is Architecture {
  return typeof name === 'string' && Object.hasOwn(kArchitectures, name)
}

function readArchitecture(read: ConfigReader): Architecture {
  const supported = Object.keys(kArchitectures).join(', ')
  const architectures = read.value('architectures')
  if (!Array.isArray(architectures) || architectures.length !== 1) {
    read.refuse('architectures', `is ${quote(architectures)}, expected one of ${supported}`)
  }
  const name: unknown = architectures[0]
  if (!isArchitecture(name)) {
    read.refuse('architectures', `is ${quote(name)}, expected one of ${supported}`)
  }
  const modelType = read.value('model_type')
  const expected = kArchitectures[name].modelType
  // transformers picks its classes by model_type; a contradiction says the file was edited by hand.
  if (modelType !== undefined && modelType !== expected) {
    read.refuse('model_type', `is ${quote(modelType)}, expected "${expected}" for ${name}`)
  }
  return name
}

/** Refuses, by name, what would change the arithmetic and is not computed here. */
function refuseUnsupported(read: ConfigReader, traits: ArchitectureTraits): void {
  const activation = read.value('hidden_act') ?? 'silu'
  if (activation !== 'silu') {
    read.refuse('hidden_act', `is ${quote(activation)}, expected "silu"`)
  }
  for (const key of ['quantization_config', 'compression_config']) {
    if (read.value(key) !== undefined) {
      read.refuse(key, 'is set; quantized checkpoints are not supported, expected F32, F16 or BF16')
    }
  }
  if (read.boolean('mlp_bias', false)) {
    read.refuse('mlp_bias', 'is true; biases in the MLP are not supported')
  }
  if (traits.bias === 'none' && read.boolean('attention_bias', false)) {
    read.refuse('attention_bias', `is true; ${traits.modelType} has no attention bias`)
  }
  const rotary = read.value('partial_rotary_factor') ?? 1
  if (rotary !== 1) {
    read.refuse('partial_rotary_factor', `is ${quote(rotary)}, expected 1`)
  }
  for (const key of ['attn_logit_softcapping', 'final_logit_softcapping']) {
    if (read.value(key) !== undefined) {
      read.refuse(key, `is ${quote(read.value(key))}; logit soft-capping is not supported`)
    }
  }
}

function readKvHeads(read: ConfigReader, traits: ArchitectureTraits, nHeads: number): number {
  // null means nHeads to transformers; an absent key means a number of its own per architecture (8,
  // 32).
  const isNull = read.raw.num_key_value_heads === null
  const fallback = isNull || traits.kvHeadsDefaultToHeads ? nHeads : undefined
  const nKvHeads = read.integer('num_key_value_heads', 1, nHeads, fallback)
  if (nHeads % nKvHeads !== 0) {
    read.refuse(
      'num_key_value_heads',
      `is ${nKvHeads}, expected a divisor of num_attention_heads ${nHeads}`,
    )
  }
  return nKvHeads
}

function readHeadDim(
  read: ConfigReader,
  traits: ArchitectureTraits,
  hiddenSize: number,
  nHeads: number,
): number {
  const isAbsent = read.raw.head_dim === undefined
  let headDim: number
  if (read.value('head_dim') !== undefined) {
    headDim = read.integer('head_dim', 1, kMaxHeadDim)
  } else if (isAbsent && traits.defaultHeadDim !== null) {
    headDim = traits.defaultHeadDim
  } else {
    if (hiddenSize % nHeads !== 0) {
      read.refuse(
        'hidden_size',
        `is ${hiddenSize}, expected a multiple of num_attention_heads ${nHeads} where head_dim is missing`,
      )
    }
    headDim = hiddenSize / nHeads
  }
  if (headDim % kHeadDimStep !== 0 || headDim > kMaxHeadDim) {
    read.refuse(
      'head_dim',
      `is ${headDim}, expected a multiple of ${kHeadDimStep} up to ${kMaxHeadDim}`,
    )
  }
  if (nHeads * headDim > kMaxWidth) {
    read.refuse(
      'num_attention_heads',
      `is ${nHeads}, expected at most ${kMaxWidth / headDim} with head_dim ${headDim}`,
    )
  }
  return headDim
}

/** Window sizes per layer, exactly as transformers' modeling files choose them. */
function readSlidingWindow(
  read: ConfigReader,
  traits: ArchitectureTraits,
  architecture: Architecture,
  nLayers: number,
): number[] {
  const layerTypes = readLayerTypes(read, nLayers)
  const hasSlidingLayer = layerTypes?.includes('sliding_attention') ?? false
  const full = new Array<number>(nLayers).fill(0)

  if (traits.window === 'none') {
    if (hasSlidingLayer) {
      read.refuse('layer_types', `holds "sliding_attention", which ${architecture} does not have`)
    }
    return full
  }

  const enabled = traits.window === 'all layers' ? true : read.boolean('use_sliding_window', false)
  // null switches the window off, an absent key does not: it means the class default.
  const window =
    read.raw.sliding_window === null
      ? 0
      : read.integer('sliding_window', 1, kMaxInt32, kDefaultSlidingWindow)

  if (traits.window === 'all layers') {
    // transformers' Mistral reads no layer_types: each that differs from what it would do is a
    // contradiction.
    const only = window > 0 ? 'sliding_attention' : 'full_attention'
    if (layerTypes?.some((type) => type !== only)) {
      read.refuse('layer_types', `is ${quote(layerTypes)}, expected "${only}" for every layer`)
    }
    return full.fill(window)
  }

  if (!enabled || window === 0) {
    if (hasSlidingLayer) {
      const why = enabled ? 'sliding_window is null' : 'use_sliding_window is false'
      read.refuse('layer_types', `holds "sliding_attention" while ${why}`)
    }
    return full
  }
  if (layerTypes !== null) {
    return layerTypes.map((type) => (type === 'sliding_attention' ? window : 0))
  }
  const firstLayer = read.integer('max_window_layers', 0, kMaxInt32, kDefaultMaxWindowLayers)
  return full.map((_, layer) => (layer >= firstLayer ? window : 0))
}

function readLayerTypes(read: ConfigReader, nLayers: number): string[] | null {
  const types = read.value('layer_types')
  if (types === undefined) return null
  if (!Array.isArray(types) || types.length !== nLayers) {
    read.refuse(
      'layer_types',
      `is ${quote(types)}, expected one entry for each of ${nLayers} layers`,
    )
  }
  for (const type of types) {
    if (type !== 'full_attention' && type !== 'sliding_attention') {
      read.refuse(
        'layer_types',
        `holds ${quote(type)}, expected "full_attention" or "sliding_attention"`,
      )
    }
  }
  return types as string[]
}

function readRope(read: ConfigReader): RopeConfig {
  const key = isUsed(read.value('rope_scaling')) ? 'rope_scaling' : 'rope_parameters'
  const parameters = read.value(key) ?? {}
  if (!isJsonObject(parameters)) {
    read.refuse(key, `is ${quote(parameters)}, expected an object`)
  }
  const rope: ConfigReader = new ConfigReader(parameters, read.path, `${key}.`)
  for (const nested of Object.keys(parameters)) {
    if (isJsonObject(parameters[nested])) {
      rope.refuse(nested, 'is an object; a rope of its own per layer type is not supported')
    }
  }
  const rotary = rope.value('partial_rotary_factor') ?? 1
  if (rotary !== 1) rope.refuse('partial_rotary_factor', `is ${quote(rotary)}, expected 1`)

  const type = rope.value('rope_type') ?? rope.value('type') ?? 'default'
  const theta = (rope.value('rope_theta') === undefined ? read : rope).number(
    'rope_theta',
    `a number above 1 and at most ${kMaxTheta}`,
    kDefaultTheta,
    (value) => value > 1 && value <= kMaxTheta,
  )
  switch (type) {
    case 'default':
      return { type: 'default', theta }
    case 'linear':
      return { type: 'linear', theta, factor: rope.positive('factor') }
    case 'llama3':
      return readLlama3Rope(read, rope, theta)
    case 'yarn':
      return readYarnRope(read, rope, theta)
    default:
      rope.refuse(
        'rope_type',
        `is ${quote(type)}, expected "default", "linear", "llama3" or "yarn"`,
      )
  }
}

/** Python's truth: an empty rope_scaling is none at all. */
function isUsed(value: unknown): boolean {
  return value !== undefined && !(isJsonObject(value) && Object.keys(value).length === 0)
}

function readLlama3Rope(read: ConfigReader, rope: ConfigReader, theta: number): RopeConfig {
  const lowFreqFactor = rope.positive('low_freq_factor')
  const highFreqFactor = rope.positive('high_freq_factor')
  if (highFreqFactor <= lowFreqFactor) {
    rope.refuse(
      'high_freq_factor',
      `is ${highFreqFactor}, expected more than low_freq_factor ${lowFreqFactor}`,
    )
  }
  return {
    type: 'llama3',
    theta,
    factor: rope.positive('factor'),
    lowFreqFactor,
    highFreqFactor,
    originalMaxPositions: readOriginalMaxPositions(read, rope),
  }
}

function readYarnRope(read: ConfigReader, rope: ConfigReader, theta: number): RopeConfig {
  const factor = rope.optionalPositive('factor')
  const originalMaxPositions = readOriginalMaxPositions(read, rope)
  if (factor === null && originalMaxPositions === null) {
    rope.refuse('factor', 'is missing, expected it or original_max_position_embeddings')
  }
  // 0 is "not given" to transformers in all four: it asks for Python's truth of the value.
  const orDefault = (key: string, fallback: number): number =>
    rope.value(key) === 0 ? fallback : rope.positive(key, fallback)
  const orNull = (key: string): number | null =>
    rope.value(key) === 0 ? null : rope.optionalPositive(key)
  return {
    type: 'yarn',
    theta,
    factor,
    originalMaxPositions,
    attentionFactor: rope.optionalPositive('attention_factor'),
    mscale: orNull('mscale'),
    mscaleAllDim: orNull('mscale_all_dim'),
    betaFast: orDefault('beta_fast', 32),
    betaSlow: orDefault('beta_slow', 1),
    truncate: rope.boolean('truncate', true),
  }
}

/**
 * At the top of the file it outranks the one among the rope parameters (transformers 5, for Phi-3's
 * sake).
 */
function readOriginalMaxPositions(read: ConfigReader, rope: ConfigReader): number | null {
  const key = 'original_max_position_embeddings'
  const reader = read.value(key) === undefined ? rope : read
  return reader.value(key) === undefined ? null : reader.integer(key, 1, kMaxPositions)
}

function checkTokenIds(ids: readonly number[], key: string, vocabSize: number, path: string): void {
  for (const id of ids) {
    if (id >= vocabSize) {
      const message = `${path}: ${key} is ${id}, expected less than vocab_size ${vocabSize}`
      throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: key })
    }
  }
}
