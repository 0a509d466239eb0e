/** The ops of zipcache as functions over tensors, and the devices they run on. */
export type { Seed } from '../random.js'
export { type AttentionSinksArgs, attentionSinks } from './attention-sinks.js'
export { type CausalConvArgs, causalConv } from './causal-conv.js'
export { convert, countNonFinite, gatherRows } from './copy.js'
export {
  Device,
  type DeviceFacts,
  type DeviceInfo,
  type DeviceMemory,
  type DeviceOptions,
  type MappedFile,
  tensorBytes,
} from './device.js'
export { DTYPE_BYTES, DTYPES, type DType, TYPED_ARRAYS, type TypedArrays } from './dtype.js'
export { type EmbeddingArgs, embedding } from './embedding.js'
export {
  type AddExpertsArgs,
  addExperts,
  type ExpertLinearArgs,
  expertLinear,
  type RouteExpertsArgs,
  routeExperts,
} from './experts.js'
export { type FeedTokensArgs, feedTokens } from './feed-tokens.js'
export { type FlashAttentionArgs, flashAttention } from './flash-attention.js'
export {
  type ClampedSwigluArgs,
  clampedSwiglu,
  type GateArgs,
  geluGate,
  type SigmoidGateArgs,
  sigmoidGate,
  siluGate,
} from './gate.js'
export { type GatedDeltaArgs, gatedDelta } from './gated-delta.js'
export {
  type GroupedLinearArgs,
  groupedLinear,
  type LinearArgs,
  linear,
  type QuantizeWeightArgs,
  quantizeWeight,
  type WeightScales,
} from './linear.js'
export { type MergeAttentionArgs, mergeAttention } from './merge-attention.js'
export { type MixedAttentionArgs, mixedAttention } from './mixed-attention.js'
export { type ProbeAttentionArgs, probeAttention, type SaliencyMetric } from './probe-attention.js'
export { Program } from './program.js'
export {
  type CodeBits,
  codeBytesPerRow,
  type DequantizeArgs,
  dequantize,
  QUANT_SCHEMES,
  type QuantizeArgs,
  type QuantRange,
  type QuantScheme,
  quantize,
} from './quantize.js'
export { type RestoreOutliersArgs, restoreOutliers } from './restore-outliers.js'
export { type RmsNormArgs, rmsNorm } from './rms-norm.js'
export { type RopeArgs, type RopeTableArgs, rope, ropeTable } from './rope.js'
export { type RopeAppendArgs, ropeAppend } from './rope-append.js'
export {
  packSampleParams,
  SAMPLE_PARAMS,
  type SampleArgs,
  type SampleParams,
  sample,
} from './sample.js'
export {
  type AppendKvArgs,
  appendKv,
  type CopyPagesArgs,
  copyPages,
  type ExportSegmentArgs,
  exportSegment,
  type ImportSegmentArgs,
  importSegment,
  type PackSegmentArgs,
  type PackSegmentsArgs,
  packSegment,
  packSegments,
  type SegmentClass,
  type SetTailLengthsArgs,
  setTailLengths,
  type UnpackSegmentArgs,
  unpackSegment,
} from './segment.js'
export { type SelectSalientArgs, selectSalient } from './select-salient.js'
export { type SelectiveScanArgs, selectiveScan } from './selective-scan.js'
export { type SoftCapArgs, softCap } from './soft-cap.js'
export type { StateArgs } from './state-args.js'
export { type StoreProbesArgs, storeProbes } from './store-probes.js'
export { Tensor } from './tensor.js'
