import { attend, dot } from './attend.js'
import type { AttentionResult } from './flash-attention.js'

/** Keys of a segment as plain rows. */
export interface PlainKeys {
  /** (n_kv_heads, n_tokens, head_dim) */
  k: ArrayLike<number>
}

/** Keys of a segment quantized channelwise: k^_jc = kCodes_jc kScale_c + kZero_c. */
export interface CodedKeys {
  /** (n_kv_heads, n_tokens, head_dim), unpacked */
  kCodes: ArrayLike<number>
  /** (n_kv_heads, head_dim) */
  kScale: ArrayLike<number>
  /** (n_kv_heads, head_dim) */
  kZero: ArrayLike<number>
}

/** Values of a segment as plain rows. */
export interface PlainValues {
  /** (n_kv_heads, n_tokens, head_dim) */
  v: ArrayLike<number>
}

/** Values of a segment quantized CST: v^_jc = vChannel_c (vCodes_jc vScale_j + vZero_j). */
export interface CodedValues {
  /** (n_kv_heads, n_tokens, head_dim), unpacked */
  vCodes: ArrayLike<number>
  /** (n_kv_heads, n_tokens) */
  vScale: ArrayLike<number>
  /** (n_kv_heads, n_tokens) */
  vZero: ArrayLike<number>
  /** (n_kv_heads, head_dim) */
  vChannel: ArrayLike<number>
}

/**
 * Tokens of a cache that share their K channel parameters: one compression of one precision class,
 * or the tail. Each KV head holds tokens of its own choice, in any order; K and V have formats of
 * their own.
 */
export type Segment = {
  /** Tokens of each KV head. */
  nTokens: number
  /** (n_kv_heads, n_tokens) absolute positions; without them every row sees every token */
  positions?: ArrayLike<number>
} & (PlainKeys | CodedKeys) &
  (PlainValues | CodedValues)

/** Arguments of `mixedAttention`. */
export interface MixedAttentionOptions {
  /** (q_len, n_heads, head_dim) */
  q: ArrayLike<number>
  /** What attention is over; their order does not matter. */
  segments: readonly Segment[]
  /** Query heads. */
  nHeads: number
  /** KV heads, a divisor of `nHeads`. */
  nKvHeads: number
  /** Channels of a head. */
  headDim: number
  /** softmax scale, usually 1 / sqrt(head_dim) */
  scale: number
  /**
   * (q_len) absolute positions of the rows; with a segment's own positions they bound what a row
   * sees
   */
  queryPositions?: ArrayLike<number>
  /** W: with positions, a row at t sees t - W < position <= t; 0 = every position <= t */
  slidingWindow?: number
}

/**
 * Attention of q_len >= 1 rows over all segments of a cache in one softmax, over dequantized
 * values:
 *
 *     O = softmax(scale * Q K^^T) V^,   K^, V^ = the dequantized rows of all segments in a row
 *
 * The order of tokens does not matter: softmax is invariant to it, and positions are in K already
 * (RoPE comes before quantization). A row that sees no token: out 0, lse -infinity.
 *
 * Source: ZipCache (arXiv 2405.14256) alg. 3; here computed after full dequantization, the plain
 * way.
 */
export function mixedAttention(options: MixedAttentionOptions): AttentionResult {
  const { segments, nHeads, nKvHeads, headDim, scale } = options
  const q = new Float64Array(options.q)
  const qLen = q.length / (nHeads * headDim)
  const group = nHeads / nKvHeads
  const nTokens = segments.reduce((sum, segment) => sum + segment.nTokens, 0)
  const out = new Float64Array(q.length) // (q_len, n_heads, head_dim)
  const lse = new Float64Array(qLen * nHeads)

  for (let kvHead = 0; kvHead < nKvHeads; kvHead++) {
    // (n_tokens, head_dim), all segments one after another
    const k = concat(segments.map((segment) => keyRows(segment, kvHead, headDim)))
    const v = concat(segments.map((segment) => valueRows(segment, kvHead, headDim)))
    const scores = new Float64Array(nTokens)
    for (let i = 0; i < qLen; i++) {
      const seen = segments.flatMap((segment) => visibility(segment, kvHead, i, options))
      for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
        const row = i * nHeads + head
        for (let j = 0; j < nTokens; j++) {
          scores[j] = seen[j]
            ? scale * dot(q, row * headDim, k, j * headDim, headDim)
            : Number.NEGATIVE_INFINITY
        }
        const rows = { values: v, offset: 0, stride: headDim }
        lse[row] = attend(scores, rows, headDim, out, row * headDim)
      }
    }
  }
  return { out, lse }
}

/**
 * The same attention straight over the codes, as the kernels compute it: no element is dequantized.
 *
 * Per KV head and segment, with lambda = scale * log2(e):
 *
 *     Q'_c = lambda Q_c kScale_c            beta = lambda sum_c Q_c kZero_c
 *     s_j  = sum_c Q'_c kCodes_jc + beta    m = max s_j over all segments
 *     p_j  = 2^(s_j - m)                    l = sum p_j over all segments
 *     a_c  = sum_j (p_j vScale_j) vCodes_jc,   t = sum_j p_j vZero_j     per segment
 *     o_c  = 1/l * sum over segments of vChannel_c (a_c + t),   lse = (m + log2 l) ln 2
 *
 * K's channel scale moves into Q, its zero into one constant per segment; V's token scale moves
 * into p, its token zero into one sum per segment, its channel scale out of the sum over tokens.
 * Plain rows are the case scale 1, zero 0, channel 1.
 *
 * Arguments and result as for `mixedAttention`.
 *
 * Source: the project's own derivation from eq. 5 and eq. 6 of ZipCache (arXiv 2405.14256).
 */
export function mixedAttentionFolded(options: MixedAttentionOptions): AttentionResult {
  const { segments, nHeads, nKvHeads, headDim, scale } = options
  const q = new Float64Array(options.q)
  const qLen = q.length / (nHeads * headDim)
  const group = nHeads / nKvHeads
  const lambda = scale * Math.LOG2E
  const out = new Float64Array(q.length)
  const lse = new Float64Array(qLen * nHeads)

  for (let row = 0; row < qLen * nHeads; row++) {
    const kvHead = Math.floor((row % nHeads) / group)
    const query = q.subarray(row * headDim, (row + 1) * headDim)

    const scoresOf = segments.map((segment) => {
      const { codes, scale: kScale, zero: kZero } = codedKeys(segment, kvHead, headDim)
      const seen = visibility(segment, kvHead, Math.floor(row / nHeads), options)
      const folded = query.map((qc, c) => lambda * qc * kScale[c]) // Q'
      const beta = lambda * dot(query, 0, kZero, 0, headDim)
      return seen.map((visible, j) =>
        visible ? dot(folded, 0, codes, j * headDim, headDim) + beta : Number.NEGATIVE_INFINITY,
      )
    })
    const m = scoresOf.flat().reduce((max, s) => Math.max(max, s), Number.NEGATIVE_INFINITY)
    if (m === Number.NEGATIVE_INFINITY) {
      lse[row] = m
      continue
    }

    let l = 0
    segments.forEach((segment, index) => {
      const values = codedValues(segment, kvHead, headDim)
      const acc = new Float64Array(headDim)
      let t = 0
      scoresOf[index].forEach((s, j) => {
        if (s === Number.NEGATIVE_INFINITY) return
        const p = 2 ** (s - m)
        const weight = p * values.scale[j]
        l += p
        t += p * values.zero[j]
        for (let c = 0; c < headDim; c++) acc[c] += weight * values.codes[j * headDim + c]
      })
      for (let c = 0; c < headDim; c++) out[row * headDim + c] += values.channel[c] * (acc[c] + t)
    })
    for (let c = 0; c < headDim; c++) out[row * headDim + c] /= l
    lse[row] = (m + Math.log2(l)) * Math.LN2
  }
  return { out, lse }
}

/** For each token of a segment, whether query row i sees it. */
function visibility(
  segment: Segment,
  kvHead: number,
  i: number,
  options: MixedAttentionOptions,
): boolean[] {
  const { queryPositions, slidingWindow = 0 } = options
  const { positions, nTokens } = segment
  return Array.from({ length: nTokens }, (_, j) => {
    if (positions === undefined || queryPositions === undefined) return true
    const distance = queryPositions[i] - positions[kvHead * nTokens + j]
    return distance >= 0 && (slidingWindow === 0 || distance < slidingWindow)
  })
}

/** The dequantized keys of one KV head of a segment, (n_tokens, head_dim). */
export function keyRows(segment: Segment, kvHead: number, headDim: number): Float64Array {
  const { codes, scale, zero } = codedKeys(segment, kvHead, headDim)
  return codes.map((code, i) => code * scale[i % headDim] + zero[i % headDim])
}

/** The dequantized values of one KV head of a segment, (n_tokens, head_dim). */
export function valueRows(segment: Segment, kvHead: number, headDim: number): Float64Array {
  const { codes, scale, zero, channel } = codedValues(segment, kvHead, headDim)
  return codes.map((code, i) => {
    const token = Math.floor(i / headDim)
    return channel[i % headDim] * (code * scale[token] + zero[token])
  })
}

/** One KV head's codes (n_tokens, head_dim), scale and zero (head_dim); plain rows have scale 1. */
function codedKeys(segment: Segment, kvHead: number, headDim: number) {
  const { nTokens } = segment
  if ('k' in segment) {
    return {
      codes: slice(segment.k, kvHead, nTokens * headDim),
      scale: new Float64Array(headDim).fill(1),
      zero: new Float64Array(headDim),
    }
  }
  return {
    codes: slice(segment.kCodes, kvHead, nTokens * headDim),
    scale: slice(segment.kScale, kvHead, headDim),
    zero: slice(segment.kZero, kvHead, headDim),
  }
}

/** One KV head's codes (n_tokens, head_dim), scale and zero (n_tokens), channel (head_dim). */
function codedValues(segment: Segment, kvHead: number, headDim: number) {
  const { nTokens } = segment
  if ('v' in segment) {
    return {
      codes: slice(segment.v, kvHead, nTokens * headDim),
      scale: new Float64Array(nTokens).fill(1),
      zero: new Float64Array(nTokens),
      channel: new Float64Array(headDim).fill(1),
    }
  }
  return {
    codes: slice(segment.vCodes, kvHead, nTokens * headDim),
    scale: slice(segment.vScale, kvHead, nTokens),
    zero: slice(segment.vZero, kvHead, nTokens),
    channel: slice(segment.vChannel, kvHead, headDim),
  }
}

/** The index-th run of `length` numbers. */
function slice(x: ArrayLike<number>, index: number, length: number): Float64Array {
  return Float64Array.from({ length }, (_, i) => x[index * length + i])
}

function concat(arrays: Float64Array[]): Float64Array {
  const all = new Float64Array(arrays.reduce((sum, array) => sum + array.length, 0))
  let offset = 0
  for (const array of arrays) {
    all.set(array, offset)
    offset += array.length
  }
  return all
}
