/**
 * Every op again in plain TypeScript and double precision, written to be read: what all backends
 * are judged by. Shapes are trusted here; the ops themselves check theirs.
 */
export * from './convert.js'
export * from './dequantize.js'
export * from './embedding.js'
export * from './experts.js'
export * from './flash-attention.js'
export * from './float16.js'
export * from './gate.js'
export * from './linear.js'
export * from './merge-attention.js'
export * from './mixed-attention.js'
export * from './pack-codes.js'
export * from './pack-segment.js'
export * from './probe-attention.js'
export * from './quantize.js'
export * from './restore-outliers.js'
export * from './rms-norm.js'
export * from './roofline.js'
export * from './rope.js'
export * from './sample.js'
export * from './select-salient.js'
