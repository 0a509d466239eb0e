import { attend, dot } from './attend.js'

/** Arguments of `flashAttention`. */
export interface FlashAttentionOptions {
  /** (total_q, n_heads, head_dim) */
  q: ArrayLike<number>
  /** (total_k, n_kv_heads, head_dim) */
  k: ArrayLike<number>
  /** (total_k, n_kv_heads, head_dim) */
  v: ArrayLike<number>
  /** (n_seqs + 1): sequence s owns rows [cuSeqlensQ[s], cuSeqlensQ[s+1]) of q */
  cuSeqlensQ: ArrayLike<number>
  /** (n_seqs + 1): sequence s owns rows [cuSeqlensK[s], cuSeqlensK[s+1]) of k and v */
  cuSeqlensK: ArrayLike<number>
  /** Query heads. */
  nHeads: number
  /** KV heads, a divisor of `nHeads`. */
  nKvHeads: number
  /** Channels of a head. */
  headDim: number
  /** softmax scale, usually 1 / sqrt(head_dim) */
  scale: number
  /** Row i of q_len sees the keys j <= kv_len - q_len + i. */
  causal: boolean
  /** W: a row sees only the W newest keys up to its own position; 0 = all */
  slidingWindow?: number
}

/** Output rows and the logarithm of each row's softmax denominator. */
export interface AttentionResult {
  /** (q_len, n_heads, head_dim) */
  out: Float64Array
  /** (q_len, n_heads), natural log; -infinity for a row that sees no key */
  lse: Float64Array
}

/**
 * Attention of packed sequences: O = softmax(scale * Q K^T + mask) V, LSE = log sum exp of the same
 * scores.
 *
 * Query head h reads KV head floor(h / group), group = n_heads / n_kv_heads (GQA). The causal mask
 * is bottom-right aligned: row i of q_len stands at position kv_len - q_len + i and sees the keys j
 * <= that position; with a sliding window W also j > position - W. Without `causal`, a sliding
 * window still bounds j from below. A row that sees no key: out 0, lse -infinity.
 *
 * Source: FlashAttention-2 (arXiv 2307.08691) §3.1 for the result; here the plain definition.
 */
export function flashAttention(options: FlashAttentionOptions): AttentionResult {
  const { cuSeqlensQ, cuSeqlensK, nHeads, nKvHeads, headDim, scale, causal } = options
  const slidingWindow = options.slidingWindow ?? 0
  const q = new Float64Array(options.q)
  const k = new Float64Array(options.k)
  const v = new Float64Array(options.v)
  const group = nHeads / nKvHeads
  const kvStride = nKvHeads * headDim
  const out = new Float64Array(q.length) // (total_q, n_heads, head_dim)
  const lse = new Float64Array(q.length / headDim) // (total_q, n_heads)

  for (let seq = 0; seq + 1 < cuSeqlensQ.length; seq++) {
    const qLen = cuSeqlensQ[seq + 1] - cuSeqlensQ[seq]
    const kvLen = cuSeqlensK[seq + 1] - cuSeqlensK[seq]
    const scores = new Float64Array(kvLen)
    for (let i = 0; i < qLen; i++) {
      const position = kvLen - qLen + i
      for (let head = 0; head < nHeads; head++) {
        const row = (cuSeqlensQ[seq] + i) * nHeads + head
        const kvOffset = cuSeqlensK[seq] * kvStride + Math.floor(head / group) * headDim
        for (let j = 0; j < kvLen; j++) {
          const seen =
            (!causal || j <= position) && (slidingWindow === 0 || j > position - slidingWindow)
          scores[j] = seen
            ? scale * dot(q, row * headDim, k, kvOffset + j * kvStride, headDim)
            : Number.NEGATIVE_INFINITY
        }
        const rows = { values: v, offset: kvOffset, stride: kvStride }
        lse[row] = attend(scores, rows, headDim, out, row * headDim)
      }
    }
  }
  return { out, lse }
}
