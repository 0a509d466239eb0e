import { stat } from 'node:fs/promises'
import { ZipCacheError } from '../errors.js'
import {
  ARCHITECTURES,
  type Architecture,
  type ArchitectureTraits,
  type ExpertNames,
  type ExpertTraits,
  type MlpNames,
  type NormNames,
  type QkNormNames,
} from './architectures.js'
import { ConfigReader } from './config-reader.js'
import { readGenerationConfig, readTokenIds } from './generation-config.js'
import {
  type GlobalHeads,
  kHeadDimStep,
  kMaxHeads,
  kMaxWidth,
  readGlobalHeads,
  readHeadDim,
  readKvHeads,
  readKvSources,
} from './heads-config.js'
import { isJsonObject, type JsonObject, modelFile, quote, readJsonFile } from './model-files.js'
import {
  type QuantizationConfig,
  readModelOptFile,
  readQuantization,
} from './quantization-config.js'
import { type RopeConfig, readQueryGrowth, readRopes, readRotaryDim } from './rope-config.js'

export type {
  Architecture,
  BesideMlpNames,
  CorrectionName,
  ExpertNames,
  JointExpertNames,
  MlpNames,
  NormNames,
  OwnExpertNames,
  QkNormNames,
  SharedExpertNames,
} from './architectures.js'
export type { GlobalHeads } from './heads-config.js'
export type {
  AwqQuantization,
  CompressedTensorsQuantization,
  Fp8Quantization,
  GptqQuantization,
  ModelOptQuantization,
  Mxfp4Quantization,
  QuantizationConfig,
} from './quantization-config.js'
export type {
  DefaultRope,
  LinearRope,
  Llama3Rope,
  LongRope,
  ProportionalRope,
  RopeConfig,
  YarnRope,
} from './rope-config.js'

/** MLPs of several experts, of which a router chooses some for each row. */
export interface ExpertsConfig {
  /** Experts of a layer. */
  readonly count: number
  /** How many of them multiply a row. */
  readonly perRow: number
  /** Width of each one's gated MLP. */
  readonly intermediateSize: number
  /** Width of the gated MLP that all rows pass, too; 0: there is none. */
  readonly sharedSize: number
  /**
   * That MLP is the layer's own, and the experts beside it read the residual stream by themselves: the router and they through
   * a norm each. What either gives is normalized before both are added, and that sum once more.
   */
  readonly besideMlp: boolean
  /** What their weights are made of. */
  readonly scores: 'softmax' | 'sigmoid'
  /** The weights of a row's experts are divided by their sum, or by `leastSum` where that is smaller. */
  readonly normalized: boolean
  /** At least 0. */
  readonly leastSum: number
  /** What their weights are multiplied by. */
  readonly scale: number
  /** (nLayers): whether a layer has experts; others have a plain MLP. */
  readonly layers: readonly boolean[]
  /** What the checkpoint calls their tensors. */
  readonly names: ExpertNames
}

/** Layers whose past is a state of one size instead of keys and values. */
export interface RecurrenceConfig {
  /**
   * How a row changes it: gated DeltaNet (arXiv 2412.06464), or Mamba 2 (arXiv 2405.21060), whose groups of B and C
   * are key heads here, and its heads value heads.
   */
  readonly rule: 'gated delta' | 'selective scan'
  /** (nLayers): whether a layer is one of them; others attend. */
  readonly layers: readonly boolean[]
  /** Divides `nValueHeads`. */
  readonly nKeyHeads: number
  /** Each has a state (keyDim, valueDim). */
  readonly nValueHeads: number
  /** Channels of a key head, and of a query's: a power of two, 16 to 256. */
  readonly keyDim: number
  /** Channels of a value head: a multiple of 16, at most 256. */
  readonly valueDim: number
  /** Inputs that the convolution of a channel sees, its own included: 2 to 8. */
  readonly convWidth: number
  /** Added to the mean square in the norm of what is read of a state. */
  readonly normEps: number
  /**
   * Of gated DeltaNet. The checkpoint has queries, keys, values and gates in one tensor, and decays with what enters states in
   * another: each key head's rows together. Else all are apart, but for queries, keys and values.
   */
  readonly byKeyHeads: boolean
}

/** A vector of each layer's for every token, whose product with a gate is added behind the layer's MLP. */
export interface PerLayerInputs {
  /** Of each layer's vector. */
  readonly width: number
  /** Tokens that have one: no fewer than the model's. */
  readonly vocabSize: number
}

/** What queries are multiplied by: 1 + growth ln(1 + floor(position / period)). */
export interface QueryGrowth {
  /** Above 0. */
  readonly growth: number
  /** In tokens. */
  readonly period: number
}

/** The activation of gpt-oss, see `clampedSwiglu`. */
export interface ClampedSwiglu {
  /** Slope of the sigmoid. */
  readonly alpha: number
  /** What the gate is at most, and the size of up. */
  readonly limit: number
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
  /** Width of the gated MLP, in layers without experts: of the widest. */
  readonly intermediateSize: number
  /** (nLayers): that of each layer, whether it has experts or not. */
  readonly intermediateSizes: readonly number[]
  /** Null: no layer has experts. */
  readonly experts: ExpertsConfig | null
  /** Query heads. */
  readonly nHeads: number
  /** Divides `nHeads`. */
  readonly nKvHeads: number
  /** A multiple of 16, at most 512. `nHeads * headDim` need not be `hiddenSize`. */
  readonly headDim: number
  /** Heads of the layers that have others than these; null: all have these. */
  readonly globalHeads: GlobalHeads | null
  /**
   * (nLayers): the layer whose keys and values a layer attends to, with heads and a window as its own; its own number
   * where it makes keys and values itself, or is recurrent.
   */
  readonly kvSources: readonly number[]
  /** Rows of the embedding. */
  readonly vocabSize: number
  /** `max_position_embeddings`: the longest context, in tokens. */
  readonly maxPositions: number
  /**
   * Added to the mean square in each norm; of a model with a `residual_multiplier`, divided by its
   * square, as its stream is by it.
   */
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
  /**
   * RMS norm of queries and keys before RoPE: over head_dim of each head, or over all of a row's heads. "Rotated":
   * of each head behind RoPE, where weights meet other channels.
   */
  readonly qkNorm: 'none' | 'each head' | 'each head, rotated' | 'all heads'
  /** What the checkpoint calls these norms. */
  readonly qkNormNames: QkNormNames
  /** RMS norm of each head's values, which has no weights. */
  readonly normalizesValues: boolean
  /** (nLayers): a row sees its last so many keys, itself included; 0 sees all, or is a recurrent layer's. */
  readonly slidingWindow: readonly number[]
  /** Each head's softmax has a logit more, a learned one that belongs to no key (`attentionSinks`). */
  readonly hasSinks: boolean
  /** `q_proj` has a gate beside each head's query: its sigmoid multiplies what the head attends to. */
  readonly gatesAttention: boolean
  /** Null: every layer attends. */
  readonly recurrence: RecurrenceConfig | null
  /** What products of queries and keys are multiplied by before the softmax. */
  readonly softmaxScale: number
  /** How the queries of far positions are multiplied, see `ropeTable`; null: they are not. */
  readonly queryGrowth: QueryGrowth | null
  /** Of the MLP's gate: x / (1 + e^-x), GELU in its form by tanh, or what `clampedSwiglu` computes. */
  readonly activation: 'silu' | 'gelu_tanh' | ClampedSwiglu
  /** What token embeddings are multiplied by. */
  readonly embeddingScale: number
  /** That scale is rounded to the type that the model computes in. */
  readonly roundsEmbeddingScale: boolean
  /** What logits are multiplied by. */
  readonly logitsScale: number
  /** What bounds logits then: x becomes cap tanh(x / cap); 0: nothing does. */
  readonly logitsCap: number
  /** Null: layers read the residual stream alone. */
  readonly perLayerInputs: PerLayerInputs | null
  /** The residual stream is multiplied by a number of the checkpoint's behind each layer. */
  readonly scalesLayers: boolean
  /** Norms multiply by 1 + weight, not by weight. */
  readonly unitOffsetNorms: boolean
  /** Which norms a layer has. */
  readonly norms: NormNames
  /** What the checkpoint calls the MLP of layers without experts. */
  readonly mlpNames: MlpNames
  /** What lies in one tensor of the checkpoint: gate and up; Q, K and V in another. */
  readonly fusedProjections: 'none' | 'gate and up' | 'all'
  /** How the checkpoint's matrices are quantized; null: they are floats. */
  readonly quantization: QuantizationConfig | null
  /** Channels of a head that rotate: the first so many, `headDim` in most models. */
  readonly rotaryDim: number
  /**
   * In the checkpoint channels 2i and 2i + 1 of a head rotate together. Loaded, they are i and
   * i + rotaryDim / 2, as everyone's: the order of channels is nothing to a product of Q and K.
   */
  readonly interleavedRope: boolean
  /**
   * (nLayers): how positions turn into rotations; null: not at all, as in recurrent layers. Layers alike share
   * an object.
   */
  readonly ropes: readonly (RopeConfig | null)[]
}

const kMaxBytes = 1 << 24
const kMaxLayers = 1024
const kMaxExperts = 1024
/** Channels of keys, and of values, in a recurrent layer's state. */
const kMaxStateDim = 256
const kMaxConvWidth = 8
const kMaxVocab = 1 << 22
const kMaxPositions = 1 << 27
const kMaxInt32 = 2 ** 31 - 1
const kDefaultEps = 1e-6
/** No config says it (transformers' GptOssExperts). */
const kSwigluAlpha = 1.702
const kActivations = { silu: 'silu', gelu_pytorch_tanh: 'gelu_tanh' } as const

/**
 * Reads and checks config.json of a Hugging Face model folder (of an `Architecture`), in the form of
 * transformers 4 (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`). A value that is absent takes
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
  const parsed = parseModelConfig(raw, path)
  const quantization = parsed.quantization ?? (await readModelOptFile(dir))
  const config = { ...parsed, quantization }
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
  const whole = new ConfigReader(raw, path)
  const architecture = readArchitecture(whole)
  const traits = traitsOf(whole, architecture)
  const read = readerOfText(whole, traits)
  refuseUnsupported(read, traits)

  const nLayers = read.integer('num_hidden_layers', 1, kMaxLayers)
  const hiddenSize = read.integer('hidden_size', 1, kMaxWidth)
  const nHeads = read.integer('num_attention_heads', 1, kMaxHeads)
  const nKvHeads = readKvHeads(read, nHeads)
  const headDim = readHeadDim(read, hiddenSize, nHeads)
  const vocabSize = read.integer('vocab_size', 1, kMaxVocab)
  const maxPositions = read.integer('max_position_embeddings', 1, kMaxPositions)
  const [bosTokenIds, eosTokenIds] = ['bos_token_id', 'eos_token_id'].map((key) => {
    const ids = readTokenIds(key in raw ? raw : read.raw, key, path)
    checkTokenIds(ids, key, vocabSize, path)
    return ids
  }) as [number[], number[]]
  const recurrence = readRecurrence(read, traits, nLayers)
  const turning = readRotatingLayers(read, traits, nLayers).map(
    (turns, layer) => turns && !recurrence?.layers[layer],
  )
  const windows = readSlidingWindow(read, traits, architecture, turning)
  const rotates =
    traits.rope === 'windows alone' && read.value('sliding_window') !== undefined
      ? windows.map((window) => window > 0)
      : turning
  const rotaryDim = readRotaryDim(read, traits, headDim)
  const heads = { nHeads, nKvHeads, headDim, windows }
  const globalHeads = traits.isGemma4 ? readGlobalHeads(read, heads) : null
  const globalRotaryDim = globalHeads?.rotaryDim ?? rotaryDim
  const kvSources = readKvSources(read, traits, windows)
  const intermediateSizes = readIntermediateSizes(read, traits, kvSources)
  const experts = readExperts(read, traits, nLayers)
  if (experts?.besideMlp && new Set(intermediateSizes).size > 1) {
    read.refuse(
      'use_double_wide_mlp',
      'is true; MLPs of two widths beside experts are not supported',
    )
  }

  return {
    architecture,
    nLayers,
    hiddenSize,
    intermediateSize: Math.max(...intermediateSizes),
    intermediateSizes,
    experts,
    nHeads,
    nKvHeads,
    headDim,
    globalHeads,
    kvSources,
    vocabSize,
    maxPositions,
    tieWordEmbeddings: readTie(whole, read),
    bosTokenId: bosTokenIds[0] ?? null,
    eosTokenIds,
    attentionBias: readAttentionBias(read, traits),
    qkNorm: readQkNorm(read, traits),
    qkNormNames: traits.qkNormNames,
    normalizesValues: traits.isGemma4,
    // A window as long as the context hides nothing.
    slidingWindow: windows.map((window) => (window < maxPositions ? window : 0)),
    hasSinks: traits.hasSinks,
    gatesAttention: traits.gatesAttention,
    recurrence,
    ...readScales(read, traits, hiddenSize, headDim),
    perLayerInputs: readPerLayerInputs(read, traits, nLayers, vocabSize),
    scalesLayers: traits.isGemma4,
    activation: readActivation(read, traits),
    unitOffsetNorms: traits.unitOffsetNorms,
    norms: traits.norms,
    mlpNames: traits.mlp.names,
    fusedProjections: traits.fusedProjections,
    rotaryDim,
    quantization: readQuantization(whole) ?? (traits.textOf ? readQuantization(read) : null),
    interleavedRope: traits.interleavedRope,
    queryGrowth: readQueryGrowth(read, traits),
    ropes: readRopes(read, { traits, rotaryDim, globalRotaryDim, maxPositions, rotates, windows }),
  }
}

/** Of a model that sees images those of the text model that it has. */
function traitsOf(whole: ConfigReader, architecture: Architecture): ArchitectureTraits {
  const traits = ARCHITECTURES[architecture]
  const text = whole.value('text_config')
  if (!isJsonObject(text)) return traits
  const others = traits.textOf?.others ?? []
  return others.find(({ textOf }) => textOf?.modelType === text.model_type) ?? traits
}

/** The text model's keys, and what its class says where they are absent. */
function readerOfText(whole: ConfigReader, { defaults, textOf }: ArchitectureTraits): ConfigReader {
  const text = whole.value('text_config')
  if (textOf === null || (textOf.mayBeFlat && text === undefined)) {
    return new ConfigReader({ ...defaults, ...whole.raw }, whole.path)
  }
  if (!isJsonObject(text)) whole.refuse('text_config', `is ${quote(text)}, expected an object`)
  const read = new ConfigReader({ ...defaults, ...text }, whole.path, 'text_config.')
  const modelType = read.value('model_type') ?? textOf.modelType
  if (modelType !== textOf.modelType && modelType !== textOf.firstModelType) {
    const others = (textOf.others ?? []).map((other) => other.textOf?.modelType)
    const expected = [textOf.modelType, ...others].map((name) => quote(name)).join(' or ')
    read.refuse('model_type', `is ${quote(modelType)}, expected ${expected}`)
  }
  return read
}

/**
 * Whether embeddings are tied. A model that sees images may say so twice, and transformers 5 writes what
 * a class of its own says where nobody did: a "no" counts.
 */
function readTie(whole: ConfigReader, read: ConfigReader): boolean {
  const own = whole.boolean('tie_word_embeddings', true)
  return own && read.boolean('tie_word_embeddings', whole.boolean('tie_word_embeddings', false))
}

/** (nLayers): layers that attend to others' keys may have an MLP that is twice as wide. */
function readIntermediateSizes(
  read: ConfigReader,
  { mlp, isGemma4 }: ArchitectureTraits,
  kvSources: readonly number[],
): number[] {
  const isDoubled = isGemma4 && read.boolean('use_double_wide_mlp', false)
  const width = read.integer(mlp.widthKey, 1, isDoubled ? kMaxWidth / 2 : kMaxWidth)
  return kvSources.map((source, layer) => (isDoubled && source !== layer ? 2 * width : width))
}

function readPerLayerInputs(
  read: ConfigReader,
  { hasPerLayerInputs }: ArchitectureTraits,
  nLayers: number,
  leastVocab: number,
): PerLayerInputs | null {
  if (!hasPerLayerInputs) return null
  const width = read.integer('hidden_size_per_layer_input', 0, Math.floor(kMaxWidth / nLayers))
  if (width === 0) return null
  const vocabSize = read.integer('vocab_size_per_layer_input', leastVocab, kMaxVocab)
  return { width, vocabSize }
}

function readQkNorm(read: ConfigReader, { qkNorm }: ArchitectureTraits): ModelConfig['qkNorm'] {
  if (qkNorm !== 'each head by use_qk_norm') return qkNorm
  return read.boolean('use_qk_norm', false) ? 'each head' : 'none'
}

function readAttentionBias(
  read: ConfigReader,
  { bias }: ArchitectureTraits,
): ModelConfig['attentionBias'] {
  if (bias === 'none' || bias === 'qkv') return { qkv: bias === 'qkv', output: false }
  if (bias === 'qkv from qkv_bias') return { qkv: read.boolean('qkv_bias', false), output: false }
  const qkv = read.boolean('attention_bias', false)
  if (bias === 'from attention_bias') return { qkv, output: qkv }
  const hasKey = bias === 'from attention_bias and attention_out_bias'
  return { qkv, output: hasKey && read.boolean('attention_out_bias', false) }
}

/**
 * What numbers are multiplied by on their way. A stream x to which r f(norm(x)) is added is r times a
 * stream y to which f(norm(r y)) is, and norm(r y) is norm(y) with eps / r^2: so r costs nothing.
 */
function readScales(
  read: ConfigReader,
  { isGemma, isGemma4, isGranite }: ArchitectureTraits,
  hiddenSize: number,
  headDim: number,
) {
  const eps = readNormEps(read)
  const residual = isGranite ? read.positive('residual_multiplier') : 1
  const embedding = isGranite ? read.positive('embedding_multiplier') : 1
  const hasScalar = isGemma && read.raw.query_pre_attn_scalar !== undefined
  const divisor = hasScalar ? read.positive('query_pre_attn_scalar') : headDim
  const usual = isGemma4 ? 1 : 1 / Math.sqrt(divisor)
  return {
    rmsNormEps: eps / residual ** 2,
    softmaxScale: isGranite ? read.positive('attention_multiplier') : usual,
    embeddingScale: isGemma ? Math.sqrt(hiddenSize) : embedding / residual,
    roundsEmbeddingScale: isGemma,
    logitsScale: isGranite ? 1 / read.positive('logits_scaling') : 1,
    logitsCap: isGemma4 ? (read.optionalPositive('final_logit_softcapping') ?? 0) : 0,
  }
}

function readNormEps(read: ConfigReader): number {
  return read.number('rms_norm_eps', 'a number above 0 and at most 1', kDefaultEps, isEps)
}

const isEps = (value: number): boolean => value > 0 && value <= 1

function isArchitecture(name: unknown): name is Architecture {
  return typeof name === 'string' && Object.hasOwn(ARCHITECTURES, name)
}

function readArchitecture(read: ConfigReader): Architecture {
  const supported = Object.keys(ARCHITECTURES).join(', ')
  const architectures = read.value('architectures')
  if (!Array.isArray(architectures) || architectures.length !== 1) {
    read.refuse('architectures', `is ${quote(architectures)}, expected one of ${supported}`)
  }
  const name: unknown = architectures[0]
  if (!isArchitecture(name)) {
    read.refuse('architectures', `is ${quote(name)}, expected one of ${supported}`)
  }
  const modelType = read.value('model_type')
  const expected = ARCHITECTURES[name].modelType
  // transformers picks its classes by model_type; a contradiction says the file was edited by hand.
  if (modelType !== undefined && modelType !== expected) {
    read.refuse('model_type', `is ${quote(modelType)}, expected "${expected}" for ${name}`)
  }
  return name
}

/** Refuses, by name, what would change the arithmetic and is not computed here. */
function refuseUnsupported(read: ConfigReader, traits: ArchitectureTraits): void {
  for (const key of ['mlp_bias', 'use_bias']) {
    if (read.boolean(key, false)) {
      read.refuse(key, 'is true; biases in the MLP are not supported')
    }
  }
  if (traits.gatesAttention && read.boolean('attention_bias', false)) {
    read.refuse('attention_bias', 'is true; biases beside gates of attention are not supported')
  }
  if (traits.bias === 'none' && read.boolean('attention_bias', false)) {
    read.refuse('attention_bias', `is true; ${traits.modelType} has no attention bias`)
  }
  if (read.value('clip_qkv') !== undefined) {
    read.refuse('clip_qkv', `is ${quote(read.value('clip_qkv'))}; clipping is not supported`)
  }
  const caps = ['attn_logit_softcapping', ...(traits.isGemma4 ? [] : ['final_logit_softcapping'])]
  for (const key of caps) {
    if (read.value(key) !== undefined) {
      read.refuse(key, `is ${quote(read.value(key))}; logit soft-capping is not supported`)
    }
  }
  for (const [key, expected] of Object.entries(traits.expects)) {
    const value = read.value(key) ?? expected
    if (value !== expected) read.refuse(key, `is ${quote(value)}, expected ${quote(expected)}`)
  }
  // Of images alone, in the words of Gemma 4.
  const isAhead = read.value('use_bidirectional_attention') ?? false
  if (isAhead !== false && !(traits.isGemma4 && isAhead === 'vision')) {
    const complaint = `is ${quote(isAhead)}; rows that see later ones are not supported`
    read.refuse('use_bidirectional_attention', complaint)
  }
}

function readActivation(
  read: ConfigReader,
  { activation }: ArchitectureTraits,
): ModelConfig['activation'] {
  const key = activation === 'by hidden_activation' ? 'hidden_activation' : 'hidden_act'
  const name = read.value(key) ?? 'silu'
  if (activation === 'clamped swiglu') {
    if (name !== 'silu') read.refuse(key, `is ${quote(name)}, expected "silu"`)
    return { alpha: kSwigluAlpha, limit: read.positive('swiglu_limit') }
  }
  if (activation === 'by hidden_act, any gelu by tanh' && name === 'gelu') return 'gelu_tanh'
  if (typeof name === 'string' && Object.hasOwn(kActivations, name)) {
    return kActivations[name as keyof typeof kActivations]
  }
  read.refuse(key, `is ${quote(name)}, expected "silu" or "gelu_pytorch_tanh"`)
}

function readExperts(
  read: ConfigReader,
  { experts }: ArchitectureTraits,
  nLayers: number,
): ExpertsConfig | null {
  if (experts === null) return null
  const { enabledKey } = experts
  if (enabledKey !== undefined && !read.boolean(enabledKey, false)) return null
  const named = experts.countKeys.filter((key) => read.value(key) !== undefined)
  const [key = experts.countKeys[0] as string, other] = named
  const count = read.integer(key, experts.isOptional ? 0 : 1, kMaxExperts)
  if (count === 0) return null
  if (other !== undefined && read.value(other) !== count) {
    read.refuse(other, `is ${quote(read.value(other))}, but ${key} is ${count}`)
  }
  // Some are chosen in groups, of which some are chosen before.
  const nGroups = read.value('n_group') ?? 1
  if (nGroups !== 1)
    read.refuse('n_group', `is ${quote(nGroups)}; groups of experts are not supported`)
  const layers = readLayersWithExperts(read, experts, nLayers)
  const intermediateSize = read.integer(experts.widthKey, 1, kMaxWidth)
  const { leastSum } = experts
  const isLeast = (value: number) => value >= 0 && value <= 1
  const config = {
    count,
    perRow: read.integer(experts.perRowKey, 1, count),
    intermediateSize,
    sharedSize: readSharedSize(read, experts, intermediateSize),
    besideMlp: experts.names.besideMlp !== undefined,
    scores: experts.scores,
    normalized: experts.normalized === 'yes' || read.boolean('norm_topk_prob', false),
    leastSum:
      typeof leastSum === 'number'
        ? leastSum
        : read.number(leastSum, 'a number from 0 to 1', undefined, isLeast),
    scale: read.positive(experts.scaleKey, 1),
    layers,
    names: experts.names,
  }
  return layers.includes(true) ? config : null
}

/** (nLayers): whether a layer has experts. */
function readLayersWithExperts(
  read: ConfigReader,
  experts: ExpertTraits,
  nLayers: number,
): boolean[] {
  const all = new Array<boolean>(nLayers).fill(true)
  const types = read.value('mlp_layer_types')
  if (types !== undefined && experts.layers.endsWith('or by mlp_layer_types')) {
    const isType = (type: unknown) => type === 'dense' || type === 'sparse'
    if (Array.isArray(types) && types.length === nLayers && types.every(isType)) {
      return types.map((type) => type === 'sparse')
    }
    const expected = `expected "dense" or "sparse" for each of ${nLayers} layers`
    read.refuse('mlp_layer_types', `is ${quote(types)}, ${expected}`)
  }
  if (experts.layers.startsWith('from first_k_dense_replace')) {
    const first = read.integer('first_k_dense_replace', 0, kMaxInt32)
    return all.map((_, layer) => layer >= first)
  }
  if (experts.layers === 'by moe_layer_interval') {
    const first = read.integer('moe_layer_start_index', 0, kMaxInt32)
    const end = read.integer('moe_layer_end_index', -1, kMaxInt32)
    const last = end === -1 ? nLayers - 1 : end
    const interval = read.integer('moe_layer_interval', 1, kMaxInt32)
    return all.map((_, layer) => (layer + 1) % interval === 0 && layer >= first && layer <= last)
  }
  if (experts.layers === 'by decoder_sparse_step') {
    const step = read.integer('decoder_sparse_step', 1, kMaxInt32)
    const plain = read.value('mlp_only_layers') ?? []
    if (!Array.isArray(plain) || !plain.every(Number.isInteger)) {
      read.refuse('mlp_only_layers', `is ${quote(plain)}, expected an array of layers`)
    }
    return all.map((_, layer) => (layer + 1) % step === 0 && !plain.includes(layer))
  }
  return all
}

/** Width of the MLP of all rows: said, or that of so many experts. */
function readSharedSize(
  read: ConfigReader,
  { sharedKey }: ExpertTraits,
  intermediateSize: number,
): number {
  if (sharedKey === null) return 0
  if ('width' in sharedKey) return read.integer(sharedKey.width, 1, kMaxWidth)
  return intermediateSize * read.integer(sharedKey.count, 0, kMaxWidth / intermediateSize)
}

/** Layers with a recurrent state; null: there are none. */
function readRecurrence(
  read: ConfigReader,
  { recurrence }: ArchitectureTraits,
  nLayers: number,
): RecurrenceConfig | null {
  if (recurrence === 'none') return null
  if (recurrence === 'mamba') return readMamba(read, nLayers)
  const layers = readRecurrentLayers(read, nLayers)
  const nKeyHeads = read.integer('linear_num_key_heads', 1, kMaxHeads)
  const nValueHeads = read.integer('linear_num_value_heads', 1, kMaxHeads)
  if (nValueHeads % nKeyHeads !== 0) {
    const expected = `expected a multiple of linear_num_key_heads ${nKeyHeads}`
    read.refuse('linear_num_value_heads', `is ${nValueHeads}, ${expected}`)
  }
  const keyDim = readKeyDim(read, 'linear_key_head_dim')
  const valueDim = read.integer('linear_value_head_dim', kHeadDimStep, kMaxStateDim)
  checkValueDim(read, 'linear_value_head_dim', valueDim)
  const width = 2 * nKeyHeads * keyDim + nValueHeads * valueDim
  if (width > kMaxWidth) {
    const sizes = `${nKeyHeads} key heads of ${keyDim} channels and values of ${valueDim}`
    const complaint = `is ${nValueHeads}; with ${sizes} a row has ${width}, expected at most ${kMaxWidth}`
    read.refuse('linear_num_value_heads', complaint)
  }
  const convWidth = read.integer('linear_conv_kernel_dim', 2, kMaxConvWidth)
  const byKeyHeads = recurrence === 'projections by key heads'
  const sizes = { nKeyHeads, nValueHeads, keyDim, valueDim, convWidth }
  const normEps = readNormEps(read)
  const rule = 'gated delta'
  return layers.includes(true) ? { rule, layers, ...sizes, normEps, byKeyHeads } : null
}

/** Mamba 2's. */
function readMamba(read: ConfigReader, nLayers: number): RecurrenceConfig | null {
  const types = readLayerTypes(read, nLayers, 'linear_attention')
  if (types === null) read.refuse('layer_types', 'is missing: no layer would attend')
  const layers = types.map((type) => type === 'linear_attention')
  if (!layers.includes(true)) return null
  if (!layers.includes(false)) {
    read.refuse('layer_types', 'holds no "full_attention", expected it once at least')
  }
  const nValueHeads = read.integer('mamba_n_heads', 1, kMaxHeads)
  const nKeyHeads = read.integer('mamba_n_groups', 1, kMaxHeads)
  if (nValueHeads % nKeyHeads !== 0) {
    const expected = `expected a multiple of mamba_n_groups ${nKeyHeads}`
    read.refuse('mamba_n_heads', `is ${nValueHeads}, ${expected}`)
  }
  const keyDim = readKeyDim(read, 'mamba_d_state')
  const width = read.integer('mamba_expand', 1, 16) * read.integer('hidden_size', 1, kMaxWidth)
  const valueDim =
    read.value('mamba_d_head') === 'auto'
      ? width / nValueHeads
      : read.integer('mamba_d_head', kHeadDimStep, kMaxStateDim)
  if (valueDim * nValueHeads !== width) {
    const expected = `expected ${width} channels, mamba_expand times hidden_size`
    read.refuse('mamba_n_heads', `is ${nValueHeads}, of ${valueDim} each, ${expected}`)
  }
  checkValueDim(read, 'mamba_d_head', valueDim)
  const convWidth = read.integer('mamba_d_conv', 2, kMaxConvWidth)
  const limit = read.value('time_step_limit')
  // Infinity, which JSON has no number for, stands there as several things.
  if (Array.isArray(limit) && (limit[0] !== 0 || typeof limit[1] === 'number')) {
    read.refuse('time_step_limit', `is ${quote(limit)}; limits of steps are not supported`)
  }
  const sizes = { nKeyHeads, nValueHeads, keyDim, valueDim, convWidth }
  const normEps = readNormEps(read)
  return { rule: 'selective scan', layers, ...sizes, normEps, byKeyHeads: false }
}

function readKeyDim(read: ConfigReader, key: string): number {
  const keyDim = read.integer(key, kHeadDimStep, kMaxStateDim)
  if (Number.isInteger(Math.log2(keyDim))) return keyDim
  const expected = `expected a power of two from ${kHeadDimStep} to ${kMaxStateDim}`
  return read.refuse(key, `is ${keyDim}, ${expected}`)
}

function checkValueDim(read: ConfigReader, key: string, valueDim: number): void {
  if (valueDim % kHeadDimStep === 0 && valueDim <= kMaxStateDim) return
  const expected = `expected a multiple of ${kHeadDimStep} up to ${kMaxStateDim}`
  read.refuse(key, `is ${valueDim}, ${expected}`)
}

/** (nLayers): whether a layer has a recurrent state. */
function readRecurrentLayers(read: ConfigReader, nLayers: number): boolean[] {
  const types = readLayerTypes(read, nLayers, 'linear_attention')
  const interval = read.integer('full_attention_interval', 1, kMaxInt32)
  const layers = Array.from({ length: nLayers }, (_, layer) =>
    types === null ? (layer + 1) % interval !== 0 : types[layer] === 'linear_attention',
  )
  if (layers.includes(false)) return layers
  if (types) read.refuse('layer_types', 'holds no "full_attention", expected it once at least')
  const expected = `expected at most num_hidden_layers ${nLayers}: no layer would attend`
  return read.refuse('full_attention_interval', `is ${interval}, ${expected}`)
}

/** Whether what attention or the MLP adds to the residual stream passes a norm first. */
export function hasOutputNorms({ norms }: ModelConfig): boolean {
  return norms.attentionOutput !== null || norms.mlpOutput !== null
}

/** The heads whose keys and values a layer has, or would have. */
export function headsOf(
  { nKvHeads, headDim, rotaryDim, globalHeads }: ModelConfig,
  layer: number,
): Omit<GlobalHeads, 'layers'> {
  if (globalHeads?.layers[layer]) return globalHeads
  return { nKvHeads, headDim, rotaryDim, valuesAreKeys: false }
}

/** Elements a row of the widest gate of any layer. */
export function gateWidth({
  intermediateSize,
  experts,
  perLayerInputs,
}: Pick<ModelConfig, 'intermediateSize' | 'experts' | 'perLayerInputs'>): number {
  const ofExperts = experts
    ? Math.max(experts.perRow * experts.intermediateSize, experts.sharedSize)
    : 0
  const isPlain = experts === null || experts.layers.includes(false)
  return Math.max(ofExperts, isPlain ? intermediateSize : 0, perLayerInputs?.width ?? 0)
}

/** Which layers rotate. */
function readRotatingLayers(
  read: ConfigReader,
  traits: ArchitectureTraits,
  nLayers: number,
): boolean[] {
  const all = new Array<boolean>(nLayers).fill(true)
  if (traits.rope === 'one by position_embedding_type') {
    return all.fill(read.value('position_embedding_type') === 'rope')
  }
  if (traits.rope !== 'some layers') return all
  const flags = read.value('no_rope_layers')
  if (flags === undefined) {
    const interval = read.integer('no_rope_layer_interval', 1, kMaxInt32)
    return all.map((_, layer) => (layer + 1) % interval !== 0)
  }
  // Its name notwithstanding, 1 says that a layer rotates.
  const isFlag = (flag: unknown) => flag === 0 || flag === 1
  if (Array.isArray(flags) && flags.length >= nLayers && flags.every(isFlag)) {
    return all.map((_, layer) => flags[layer] === 1)
  }
  const expected = `expected a 0 or 1 for each of ${nLayers} layers`
  read.refuse('no_rope_layers', `is ${quote(flags)}, ${expected}`)
}

/** Window sizes per layer, exactly as transformers' modeling files choose them; 0: none. */
function readSlidingWindow(
  read: ConfigReader,
  traits: ArchitectureTraits,
  architecture: Architecture,
  rotates: readonly boolean[],
): number[] {
  const nLayers = rotates.length
  const full = new Array<number>(nLayers).fill(0)
  if (traits.recurrence !== 'none') return full
  const layerTypes = readLayerTypes(read, nLayers, 'sliding_attention')
  const hasSlidingLayer = layerTypes?.includes('sliding_attention') ?? false

  if (traits.window === 'none' || traits.window === 'none, as layer_types says') {
    if (traits.window !== 'none' && layerTypes === null) {
      read.refuse('layer_types', `is missing, expected "full_attention" for every layer`)
    }
    if (hasSlidingLayer) {
      read.refuse('layer_types', `holds "sliding_attention", which ${architecture} does not have`)
    }
    return full
  }

  const isInAll = traits.window.startsWith('all layers')
  // What such a class writes of a window that is off is 0.
  const isOff =
    (traits.window === 'all layers by use_sliding_window' ||
      traits.window === 'every other layer by use_sliding_window') &&
    !read.boolean('use_sliding_window', false)
  // null switches the window off, where the file says so or the class.
  const window =
    isOff || read.raw.sliding_window === null ? 0 : read.integer('sliding_window', 1, kMaxInt32)
  const byType = (types: readonly string[]) =>
    types.map((type) => (type === 'sliding_attention' ? window : 0))
  const byPattern = () => {
    const pattern = read.integer('sliding_window_pattern', 1, kMaxInt32)
    return full.map((_, layer) => ((layer + 1) % pattern === 0 ? 0 : window))
  }

  if (traits.window === 'all layers or by layer_types' && layerTypes !== null) {
    if (window === 0 && hasSlidingLayer) {
      read.refuse('layer_types', 'holds "sliding_attention" while sliding_window is null')
    }
    return byType(layerTypes)
  }
  if (isInAll) {
    // transformers reads no layer_types here: each that differs from what it would do is a
    // contradiction.
    const only = window > 0 ? 'sliding_attention' : 'full_attention'
    if (layerTypes?.some((type) => type !== only)) {
      read.refuse('layer_types', `is ${quote(layerTypes)}, expected "${only}" for every layer`)
    }
    return full.fill(window)
  }

  if (traits.window === 'by pattern or none' && window === 0) {
    if (hasSlidingLayer) {
      read.refuse('layer_types', 'holds "sliding_attention" while sliding_window is null')
    }
    return full
  }
  if (traits.window.startsWith('by pattern')) {
    if (window === 0) read.refuse('sliding_window', 'is null, expected an integer')
    const own = layerTypes ? byType(layerTypes) : byPattern()
    if (traits.window === 'by pattern, but for the last layer') own[nLayers - 1] = 0
    return own
  }

  const isOfLast = traits.window === 'from max_window_layers'
  const enabled = isOfLast || read.boolean('use_sliding_window', false)
  if (!enabled || window === 0) {
    if (hasSlidingLayer) {
      const why = enabled ? 'sliding_window is null' : 'use_sliding_window is false'
      read.refuse('layer_types', `holds "sliding_attention" while ${why}`)
    }
    return full
  }
  if (layerTypes !== null) return byType(layerTypes)
  if (traits.rope === 'some layers') return rotates.map((turns) => (turns ? 0 : window))
  const firstLayer = read.integer('max_window_layers', 0, kMaxInt32)
  if (traits.window === 'every other layer by use_sliding_window') {
    return full.map((_, layer) => (layer % 2 === 0 && layer < firstLayer ? window : 0))
  }
  return full.map((_, layer) => (layer >= firstLayer ? window : 0))
}

/** (nLayers): "full_attention", or what else a layer may be; null: the file does not say. */
function readLayerTypes(
  read: ConfigReader,
  nLayers: number,
  other: 'sliding_attention' | 'linear_attention',
): string[] | null {
  const types = read.value('layer_types')
  if (types === undefined) return null
  if (!Array.isArray(types) || types.length !== nLayers) {
    read.refuse(
      'layer_types',
      `is ${quote(types)}, expected one entry for each of ${nLayers} layers`,
    )
  }
  return types.map((type) => {
    if (type === 'full_attention' || type === other) return type
    if (type === 'attention') return 'full_attention' // Granite 4's own words
    if (type === 'mamba' && other === 'linear_attention') return other
    return read.refuse(
      'layer_types',
      `holds ${quote(type)}, expected "full_attention" or "${other}"`,
    )
  })
}

function checkTokenIds(ids: readonly number[], key: string, vocabSize: number, path: string): void {
  for (const id of ids) {
    if (id >= vocabSize) {
      const message = `${path}: ${key} is ${id}, expected less than vocab_size ${vocabSize}`
      throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: key })
    }
  }
}
