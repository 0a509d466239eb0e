import type { ArchitectureTraits } from './architectures.js'
import { ConfigReader } from './config-reader.js'
import { isJsonObject, type JsonObject, quote } from './model-files.js'

/** How positions turn into rotation frequencies; `ropeFrequencies` does the computing. */
export type RopeConfig = {
  /** The base: pair i of d / 2 turns by theta^(-2i / d) radians a position, d channels rotating. */
  readonly theta: number
} & (DefaultRope | LinearRope | Llama3Rope | YarnRope | LongRope | ProportionalRope)

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
  /** Tokens of that context. */
  readonly originalMaxPositions: number
}

/** Rotations divided by a ramp over their turns. Source: YaRN (arXiv 2309.00071) §3. */
export interface YarnRope {
  /** `rope_type`. */
  readonly type: 'yarn'
  /** How much longer the context is than what the model was trained for. */
  readonly factor: number
  /** Tokens that it was trained for. */
  readonly originalMaxPositions: number
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

/** Each rotation divided by a factor of its own. Source: LongRoPE (arXiv 2402.13753); Phi-3. */
export interface LongRope {
  /** `rope_type`. */
  readonly type: 'longrope'
  /** Contexts up to here take `shortFactor`, in tokens. */
  readonly originalMaxPositions: number
  /** (rotaryDim / 2) */
  readonly shortFactor: readonly number[]
  /** (rotaryDim / 2) */
  readonly longFactor: readonly number[]
  /** Multiplies cos and sin. */
  readonly attentionFactor: number
}

/**
 * The first pairs of a head turn as in a head that turns as a whole, the others not at all: pairs of channels i and
 * i + rotaryDim / 2, where a head whose first channels rotate has i and i + half of those. Source: Gemma 4.
 */
export interface ProportionalRope {
  /** `rope_type`. */
  readonly type: 'proportional'
  /** Share of the pairs that turn, at most 1. */
  readonly share: number
  /** What their frequencies are divided by. */
  readonly factor: number
}

const kMaxPositions = 1 << 27
const kDefaultTheta = 10000
/** pow(theta, 1) must stay a finite float32 with room for the yarn factor. */
const kMaxTheta = 1e30

/**
 * Channels of a head that rotate.
 * @throws ERR_ZC_CONFIG naming the key: not a number of pairs, or all channels rotate in this
 *   architecture
 */
export function readRotaryDim(
  read: ConfigReader,
  traits: ArchitectureTraits,
  headDim: number,
): number {
  if (!traits.partialRotary) {
    refusePartialRotary(read)
    return headDim
  }
  const within = parametersOf(read)
  const reader = within.value('partial_rotary_factor') === undefined ? read : within
  // MiniMax-M2 says how many they are.
  const isCounted =
    read.value('rotary_dim') !== undefined && reader.value('partial_rotary_factor') === undefined
  if (isCounted) {
    const rotaryDim = read.integer('rotary_dim', 2, headDim)
    if (rotaryDim % 2 === 0) return rotaryDim
    return read.refuse('rotary_dim', `is ${rotaryDim}, expected an even number`)
  }
  const factor = reader.positive('partial_rotary_factor', 1)
  const rotaryDim = Math.trunc(headDim * factor)
  if (rotaryDim >= 2 && rotaryDim <= headDim && rotaryDim % 2 === 0) return rotaryDim
  const complaint = `is ${factor}, expected an even number of the ${headDim} channels of a head`
  return reader.refuse('partial_rotary_factor', complaint)
}

/**
 * How the queries of far positions are multiplied, which Ministral 3 has among its rope parameters; null: they are
 * not.
 * @throws ERR_ZC_CONFIG naming the key: missing where the architecture has it, or there where it has not
 */
export function readQueryGrowth(
  read: ConfigReader,
  { scalesQueries }: ArchitectureTraits,
): { growth: number; period: number } | null {
  const rope = parametersOf(read)
  const key = 'llama_4_scaling_beta'
  if (!scalesQueries) {
    const value = rope.value(key)
    if (value !== undefined)
      rope.refuse(key, `is ${quote(value)}; queries that grow are not supported`)
    return null
  }
  const growth = rope.number(key, 'a number from 0 to 100', undefined, (x) => x >= 0 && x <= 100)
  const period = rope.integer('original_max_position_embeddings', 1, kMaxPositions)
  return growth === 0 ? null : { growth, period }
}

function refusePartialRotary(reader: ConfigReader): void {
  const factor = reader.value('partial_rotary_factor') ?? 1
  if (factor !== 1) reader.refuse('partial_rotary_factor', `is ${quote(factor)}, expected 1`)
}

/** What is known of a model when its ropes are read. */
export interface RopeFacts {
  readonly traits: ArchitectureTraits
  readonly rotaryDim: number
  /** That of layers that see all tokens. */
  readonly globalRotaryDim: number
  readonly maxPositions: number
  /** (nLayers) whether a layer rotates at all. */
  readonly rotates: readonly boolean[]
  /** (nLayers) its sliding window, 0: none. */
  readonly windows: readonly number[]
}

/**
 * How the positions of each layer rotate, (nLayers); null: not at all.
 * @throws ERR_ZC_CONFIG naming the key
 */
export function readRopes(read: ConfigReader, facts: RopeFacts): (RopeConfig | null)[] {
  const { traits, rotates, windows } = facts
  if (traits.rope !== 'one for windows' && traits.rope !== 'one for each type of layer') {
    const rope = readRope(read, parametersOf(read), facts)
    return rotates.map((turns) => (turns ? rope : null))
  }
  const [full, sliding] = readRopesByType(read, facts)
  return windows.map((window) => (window > 0 ? sliding : full))
}

/** The one object that says how positions rotate, whichever its name. */
function parametersOf(read: ConfigReader): ConfigReader {
  const key = isUsed(read.value('rope_scaling')) ? 'rope_scaling' : 'rope_parameters'
  const parameters = read.value(key) ?? {}
  if (!isJsonObject(parameters)) read.refuse(key, `is ${quote(parameters)}, expected an object`)
  return readerWithin(read, key, parameters)
}

function readerWithin(read: ConfigReader, key: string, value: JsonObject): ConfigReader {
  return new ConfigReader(value, read.path, `${read.prefix}${key}.`)
}

/** Of layers that see everything, and of those with a window. */
function readRopesByType(read: ConfigReader, facts: RopeFacts): [RopeConfig, RopeConfig] {
  const hasOwn = read.value('rope_local_base_freq') !== undefined
  const theta = readTheta(read, hasOwn ? 'rope_local_base_freq' : 'rope_theta')
  const local: RopeConfig = { type: 'default', theta }
  const byType = read.value('rope_parameters')
  const isNeeded = facts.traits.rope === 'one for each type of layer'
  if (!isJsonObject(byType) && !isNeeded) return [readRope(read, parametersOf(read), facts), local]
  if (!isJsonObject(byType)) {
    read.refuse('rope_parameters', `is ${quote(byType)}, expected an object`)
  }
  const [full, sliding] = ['full_attention', 'sliding_attention'].map((type) => {
    const within = readerWithin(read, 'rope_parameters', byType)
    const parameters = within.value(type) ?? (isNeeded ? undefined : {})
    if (isJsonObject(parameters)) return readerWithin(within, type, parameters)
    return within.refuse(type, `is ${quote(parameters)}, expected an object`)
  }) as [ConfigReader, ConfigReader]
  const slidingRope = new ConfigReader(
    { ...sliding.raw, rope_theta: sliding.value('rope_theta') ?? theta },
    sliding.path,
    sliding.prefix,
  )
  const ofFull = { ...facts, rotaryDim: facts.globalRotaryDim }
  return [readRope(read, full, ofFull), readRope(read, slidingRope, facts)]
}

function readTheta(reader: ConfigReader, key = 'rope_theta'): number {
  const isTheta = (value: number) => value > 1 && value <= kMaxTheta
  return reader.number(key, `a number above 1 and at most ${kMaxTheta}`, kDefaultTheta, isTheta)
}

function readRope(read: ConfigReader, rope: ConfigReader, facts: RopeFacts): RopeConfig {
  for (const nested of Object.keys(rope.raw)) {
    if (isJsonObject(rope.raw[nested])) {
      rope.refuse(nested, 'is an object; a rope of its own per layer type is not supported')
    }
  }
  const named = rope.value('rope_type') ?? rope.value('type') ?? 'default'
  // transformers takes both names for it in Phi 3, and in no other.
  const isOldName = named === 'su' || named === 'yarn'
  const longName = isOldName && facts.traits.modelType === 'phi3' ? 'longrope' : named
  // Positions of images have three coordinates, each of which turns pairs of its own. Those of text are
  // one number three times.
  const type = longName === 'mrope' && facts.traits.textOf !== null ? 'default' : longName
  const theta = readTheta(rope.value('rope_theta') === undefined ? read : rope)
  if (!facts.traits.partialRotary && type !== 'proportional') refusePartialRotary(rope)
  switch (type) {
    case 'default':
      return { type: 'default', theta }
    case 'dynamic':
      if (facts.traits.rope !== 'one, of theta by alpha') break
      return { type: 'default', theta: thetaByAlpha(rope, theta, facts) }
    case 'linear':
      return { type: 'linear', theta, factor: rope.positive('factor') }
    case 'llama3':
      return readLlama3Rope(read, rope, theta, facts)
    case 'yarn':
      return readYarnRope(read, rope, theta, facts)
    case 'longrope':
      return readLongRope(read, rope, theta, facts)
    case 'proportional':
      // Its share is of a head's pairs, where other types' is of the channels that rotate.
      if (facts.traits.partialRotary) break
      return readProportionalRope(rope, theta)
  }
  return rope.refuse(
    'rope_type',
    `is ${quote(type)}, expected "default", "linear", "llama3", "yarn", "longrope" or "proportional"`,
  )
}

function readProportionalRope(rope: ConfigReader, theta: number): RopeConfig {
  const isShare = (value: number) => value > 0 && value <= 1
  const expected = 'a number above 0 and at most 1'
  const share = rope.number('partial_rotary_factor', expected, 1, isShare)
  return { type: 'proportional', theta, share, factor: rope.positive('factor', 1) }
}

/**
 * HunYuan's base for long contexts, theta alpha^(d / (d - 2)), whatever their length: transformers has it for as long as
 * the model's longest context.
 */
function thetaByAlpha(rope: ConfigReader, theta: number, { rotaryDim }: RopeFacts): number {
  const scaled = theta * rope.positive('alpha') ** (rotaryDim / (rotaryDim - 2))
  if (scaled > 1 && scaled <= kMaxTheta) return scaled
  return rope.refuse('alpha', `is ${quote(rope.value('alpha'))}; with it rope_theta is ${scaled}`)
}

/** Python's truth: an empty rope_scaling is none at all. */
function isUsed(value: unknown): boolean {
  return value !== undefined && !(isJsonObject(value) && Object.keys(value).length === 0)
}

function readLlama3Rope(
  read: ConfigReader,
  rope: ConfigReader,
  theta: number,
  { maxPositions }: RopeFacts,
): RopeConfig {
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
    originalMaxPositions: readOriginalMaxPositions(read, rope) ?? maxPositions,
  }
}

function readYarnRope(
  read: ConfigReader,
  rope: ConfigReader,
  theta: number,
  { maxPositions }: RopeFacts,
): RopeConfig {
  const factor = rope.optionalPositive('factor')
  const original = readOriginalMaxPositions(read, rope)
  if (factor === null && original === null) {
    rope.refuse('factor', 'is missing, expected it or original_max_position_embeddings')
  }
  const originalMaxPositions = original ?? maxPositions
  // 0 is "not given" to transformers in all four: it asks for Python's truth of the value.
  const orDefault = (key: string, fallback: number): number =>
    rope.value(key) === 0 ? fallback : rope.positive(key, fallback)
  const orNull = (key: string): number | null =>
    rope.value(key) === 0 ? null : rope.optionalPositive(key)
  return {
    type: 'yarn',
    theta,
    factor: factor ?? maxPositions / originalMaxPositions,
    originalMaxPositions,
    attentionFactor: rope.optionalPositive('attention_factor'),
    mscale: orNull('mscale'),
    mscaleAllDim: orNull('mscale_all_dim'),
    betaFast: orDefault('beta_fast', 32),
    betaSlow: orDefault('beta_slow', 1),
    truncate: rope.boolean('truncate', true),
  }
}

function readLongRope(
  read: ConfigReader,
  rope: ConfigReader,
  theta: number,
  { rotaryDim, maxPositions }: RopeFacts,
): RopeConfig {
  const originalMaxPositions = readOriginalMaxPositions(read, rope) ?? maxPositions
  const factor = rope.positive('factor', maxPositions / originalMaxPositions)
  const usual = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPositions))
  return {
    type: 'longrope',
    theta,
    originalMaxPositions,
    shortFactor: rope.positives('short_factor', rotaryDim / 2),
    longFactor: rope.positives('long_factor', rotaryDim / 2),
    attentionFactor: rope.positive('attention_factor', usual),
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
