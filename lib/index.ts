/**
 * zipcache: language models over a KV cache that keeps salient tokens at high precision and the
 * others at low.
 */
export type { TokenProbability } from './engine/adjust-logits.js'
export type { CacheBytes } from './engine/context.js'
export {
  Engine,
  type EngineOptions,
  type EngineStats,
  type RequestOptions,
  type SequenceOptions,
} from './engine/engine.js'
export type { MemoryEstimate } from './engine/estimate.js'
export type {
  FinishReason,
  GeneratedToken,
  GenerateOptions,
} from './engine/generation.js'
export { type LoadOptions, loadModel } from './engine/load-model.js'
export { createEngine, Model } from './engine/model.js'
export { type Prompt, Sequence } from './engine/sequence.js'
export { ERROR_CODES, type ErrorCode, ZipCacheError } from './errors.js'
export { evaluateLineRetrieval } from './eval/evaluate-line-retrieval.js'
export { generateLineRetrieval } from './eval/line-retrieval-prompt.js'
export type { JsonSchema } from './grammar/index.js'
export type { ModelConfig } from './model/config.js'
export { exampleModel } from './model/example-model.js'
export type { ChatMessage, ModelTokenizer } from './model/tokenizer.js'
export { Device, type DeviceFacts, type DeviceOptions } from './ops/index.js'
export {
  type CachePolicy,
  type Compression,
  type Granularity,
  type H2oOptions,
  type KiviOptions,
  type MikvOptions,
  POLICY_NAMES,
  type PolicySpec,
  type ProbeShares,
  type ProbeStrategy,
  type RotatedOptions,
  type RowPlan,
  resolvePolicy,
  type SaliencyMetric,
  type SnapKvOptions,
  type UniformOptions,
  type ZipCacheOfficialOptions,
  type ZipCacheOptions,
  type ZipCachePlusOptions,
} from './policy/index.js'
