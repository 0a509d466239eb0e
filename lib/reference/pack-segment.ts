import { ZipCacheError } from '../errors.js'
import { convert, type FloatDtype } from './convert.js'
import type { Segment } from './mixed-attention.js'
import { type Bits, unpackCodes } from './pack-codes.js'
import { type QuantizeRange, type QuantizeScheme, quantize } from './quantize.js'

/** How a segment stores K or V: unsigned codes of 2, 3, 4 or 8 bits, or floats. */
export type SegmentFormat = 'u2' | 'u3' | 'u4' | 'u8' | FloatDtype

/** Arguments of `packSegment`. */
export interface PackSegmentOptions {
  /** (n, n_kv_heads, head_dim), after RoPE */
  k: ArrayLike<number>
  /** (n, n_kv_heads, head_dim) */
  v: ArrayLike<number>
  /**
   * (n_kv_heads, n_tokens): the rows of k and v that each KV head takes, as `selectSalient` lists
   * them
   */
  rows: ArrayLike<number>
  /** KV heads. */
  nKvHeads: number
  /** Channels of a head. */
  headDim: number
  /** How K is stored. */
  keyFormat: SegmentFormat
  /** How V is stored. */
  valueFormat: SegmentFormat
  /** default 'minmax' */
  keyRange?: QuantizeRange
  /** default 'minmax' */
  valueRange?: QuantizeRange
}

/**
 * Compresses one precision class: the chosen tokens of each KV head, K channelwise and V
 * channel-separable tokenwise, with parameters of the head's own. The rows become the segment's
 * positions.
 *
 * Departure from the paper, which shares V's scale and zero over all heads of a token: each KV head
 * has its own tokens, so each has its own token parameters.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown format.
 *
 * Source: ZipCache (arXiv 2405.14256) alg. 2, ChannelQuant(K) and CSTQuant(V) of one subset.
 */
export function packSegment(options: PackSegmentOptions): Segment {
  const { rows, nKvHeads } = options
  return {
    nTokens: rows.length / nKvHeads,
    positions: rows,
    ...packKeys(options),
    ...packValues(options),
  }
}

function packKeys({ k, rows, nKvHeads, headDim, keyFormat, keyRange }: PackSegmentOptions) {
  const heads = gatherHeads(k, rows, nKvHeads, headDim)
  const bits = bitsOf(keyFormat)
  if (bits === undefined) return { k: convert({ x: heads.flat(), dtype: keyFormat as FloatDtype }) }

  const quantized = heads.map((x) => quantizeHead(x, headDim, bits, 'channelwise', keyRange))
  return {
    kCodes: quantized.flatMap((head) => head.codes), // (n_kv_heads, n_tokens, head_dim)
    kScale: quantized.flatMap((head) => head.scale), // (n_kv_heads, head_dim)
    kZero: quantized.flatMap((head) => head.zero), // (n_kv_heads, head_dim)
  }
}

function packValues({ v, rows, nKvHeads, headDim, valueFormat, valueRange }: PackSegmentOptions) {
  const heads = gatherHeads(v, rows, nKvHeads, headDim)
  const bits = bitsOf(valueFormat)
  if (bits === undefined)
    return { v: convert({ x: heads.flat(), dtype: valueFormat as FloatDtype }) }

  const quantized = heads.map((x) => quantizeHead(x, headDim, bits, 'cst', valueRange))
  return {
    vCodes: quantized.flatMap((head) => head.codes), // (n_kv_heads, n_tokens, head_dim)
    vScale: quantized.flatMap((head) => head.scale), // (n_kv_heads, n_tokens)
    vZero: quantized.flatMap((head) => head.zero), // (n_kv_heads, n_tokens)
    vChannel: quantized.flatMap((head) => head.channel), // (n_kv_heads, head_dim)
  }
}

/** Quantizes one head's rows (n_tokens, head_dim); the codes unpacked, for `Segment`. */
function quantizeHead(
  x: number[],
  headDim: number,
  bits: Bits,
  scheme: QuantizeScheme,
  range: QuantizeRange = 'minmax',
) {
  const shape = { rows: x.length / headDim, channels: headDim, bits }
  const quantized = quantize({ x, ...shape, scheme, range })
  return {
    codes: [...unpackCodes({ packed: quantized.codes, ...shape })],
    scale: [...quantized.scale],
    zero: [...quantized.zero],
    channel: [...quantized.channel],
  }
}

/** Each KV head's own rows of x (n, n_kv_heads, head_dim), as (n_tokens, head_dim). */
function gatherHeads(
  x: ArrayLike<number>,
  rows: ArrayLike<number>,
  nKvHeads: number,
  headDim: number,
): number[][] {
  const nTokens = rows.length / nKvHeads
  return Array.from({ length: nKvHeads }, (_, kvHead) =>
    Array.from({ length: nTokens * headDim }, (_, i) => {
      const row = rows[kvHead * nTokens + Math.floor(i / headDim)]
      return x[(row * nKvHeads + kvHead) * headDim + (i % headDim)]
    }),
  )
}

/** Code width of a format; undefined for floats. */
function bitsOf(format: SegmentFormat): Bits | undefined {
  switch (format) {
    case 'u2':
      return 2
    case 'u3':
      return 3
    case 'u4':
      return 4
    case 'u8':
      return 8
    case 'f32':
    case 'f16':
    case 'bf16':
      return undefined
    default:
      throw new ZipCacheError(
        'ERR_ZC_ARGUMENT',
        `format: is ${format}, expected u2, u3, u4, u8, f16, bf16 or f32`,
        { op: 'packSegment', argument: 'format' },
      )
  }
}
