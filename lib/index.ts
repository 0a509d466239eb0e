/**
 * zipcache: language models over a KV cache that keeps salient tokens at high precision and the
 * others at low.
 */
export type { BytesByClass, CacheSegment, Format } from './cache/index.js'
export type { TokenProbability } from './engine/adjust-logits.js'
export type { CacheBytes } from './engine/context.js'
export {
  type CreateSequenceOptions,
  Engine,
  type EngineOptions,
  type EngineStats,
  type KvMemory,
  type OpenedPrefix,
  type PrefixOptions,
  type RequestOptions,
  type SequenceOptions,
} from './engine/engine.js'
export type { MemoryEstimate } from './engine/estimate.js'
export type {
  FinishReason,
  GeneratedToken,
  GenerateOptions,
  TokenStream,
} from './engine/generation.js'
export type { HarmonyOptions } from './engine/harmony-constraint.js'
export { type LoadOptions, loadModel } from './engine/load-model.js'
export { createEngine, Model } from './engine/model.js'
export type { Prompt } from './engine/prompt.js'
export { Sequence } from './engine/sequence.js'
export type { ThoughtOptions } from './engine/thought-constraint.js'
export type { TokenMap } from './engine/token-map.js'
export { ERROR_CODES, type ErrorCode, ZipCacheError, type ZipCacheErrorFields } from './errors.js'
export {
  evaluateLineRetrieval,
  type LineRetrievalEvaluation,
  type LineRetrievalResult,
  type LineRetrievalRow,
} from './eval/evaluate-line-retrieval.js'
export {
  generateLineRetrieval,
  type LineRetrievalOptions,
  type LineRetrievalPrompt,
  type LineRetrievalRecord,
} from './eval/line-retrieval-prompt.js'
export type { JsonSchema } from './grammar/index.js'
export type {
  Architecture,
  AwqQuantization,
  BesideMlpNames,
  ClampedSwiglu,
  CompressedTensorsQuantization,
  CorrectionName,
  DefaultRope,
  ExpertNames,
  ExpertsConfig,
  Fp8Quantization,
  GlobalHeads,
  GptqQuantization,
  JointExpertNames,
  LinearRope,
  Llama3Rope,
  LongRope,
  MlpNames,
  ModelConfig,
  ModelOptQuantization,
  Mxfp4Quantization,
  NormNames,
  OwnExpertNames,
  PerLayerInputs,
  ProportionalRope,
  QkNormNames,
  QuantizationConfig,
  QueryGrowth,
  RecurrenceConfig,
  RopeConfig,
  SharedExpertNames,
  YarnRope,
} from './model/config.js'
export { exampleModel } from './model/example-model.js'
export type { GenerationConfig } from './model/generation-config.js'
export type { TokenDecoder } from './model/text-stream.js'
export type { ChatMessage, ChatTemplateOptions, ModelTokenizer } from './model/tokenizer.js'
export type { ComputeDtype, WeightFormat } from './model/weights.js'
export {
  Device,
  type DeviceFacts,
  type DeviceInfo,
  type DeviceMemory,
  type DeviceOptions,
} from './ops/index.js'
export {
  type AutoRatio,
  type ByClass,
  type CachePolicy,
  type CodeBits,
  type Compression,
  type Correction,
  type Fp16Options,
  type FullOptions,
  type GearOptions,
  type Granularity,
  type H2oOptions,
  type KeptFacts,
  type KeptPlan,
  type KiviOptions,
  type MikvOptions,
  type MikvPaperOptions,
  type MikvZipCacheOptions,
  POLICY_NAMES,
  type PolicySpec,
  type PrecisionClass,
  type ProbeShares,
  type ProbeStrategy,
  type QuantizedPlan,
  type QuantRange,
  type RotatedOptions,
  type RowCodec,
  type RowPlan,
  resolvePolicy,
  type SaliencyMetric,
  type SaliencyOptions,
  type SnapKvOptions,
  type TieredPlan,
  type UniformOptions,
  type ZipCacheOfficialOptions,
  type ZipCacheOptions,
  type ZipCachePlusOptions,
} from './policy/index.js'
export type { Seed } from './random.js'
