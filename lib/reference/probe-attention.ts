import { dot } from './attend.js'

/** Arguments of `probeAttention`. */
export interface ProbeAttentionOptions {
  /** (n_layers, n, n_heads, head_dim), the query rows of which some are probes */
  q: ArrayLike<number>
  /** (n_layers, n, n_heads), the rows' LSE as `flashAttention` or `mixedAttention` wrote it */
  lse: ArrayLike<number>
  /** (kv_len, n_layers * n_kv_heads, head_dim), the keys to score */
  k: ArrayLike<number>
  /** (n_probes): which rows of q and lse are probes, the same in every layer */
  rows: ArrayLike<number>
  /**
   * (n_probes): probe p sees the keys j <= positions[p], with a window W also j > positions[p] - W
   */
  positions: ArrayLike<number>
  /** default 1 */
  nLayers?: number
  /** Query heads of a layer. */
  nHeads: number
  /** KV heads of a layer, a divisor of `nHeads`. */
  nKvHeads: number
  /** Channels of a head. */
  headDim: number
  /** Keys to score. */
  kvLen: number
  /** softmax scale, usually 1 / sqrt(head_dim) */
  scale: number
  /** W; 0 = all */
  slidingWindow?: number
  /** 'normalized' is Eq. 8, 'accumulated' Eq. 7 */
  normalization: 'normalized' | 'accumulated'
}

/**
 * Saliency of each key token from a few probe rows:
 *
 *     score_j = sum over probes p that see j, over heads h of the group, of A_ph,j    (Eq. 7)
 *     score_j = that / #{probes p that see j}                                         (Eq. 8)
 *     A_ph,j  = exp(scale * q_ph . k_j - lse_ph)                                      (Eq. 9)
 *
 * Returns (n_layers * n_kv_heads, kv_len). A key that no probe sees has score 0.
 *
 * The query heads of a group are summed, as the authors' code does (the paper does not discuss
 * GQA). The divisor counts probe rows, the nnz of Eq. 8 with A_probe put in for A; the authors'
 * code divides by kv_len - j, the count of all causal rows, which favours recent tokens up to
 * tenfold.
 *
 * Source: ZipCache (arXiv 2405.14256) §4.2-4.3, eq. 7, 8, 9.
 */
export function probeAttention(options: ProbeAttentionOptions): Float64Array {
  const { lse, rows, positions, nLayers = 1, nHeads, nKvHeads, headDim, kvLen, scale } = options
  const slidingWindow = options.slidingWindow ?? 0
  const nRows = lse.length / (nLayers * nHeads)
  const q = new Float64Array(options.q)
  const k = new Float64Array(options.k)
  const group = nHeads / nKvHeads
  const scores = new Float64Array(nLayers * nKvHeads * kvLen)

  for (let j = 0; j < kvLen; j++) {
    const seeing = [] // the probes that see key j
    for (let p = 0; p < rows.length; p++) {
      const seen = j <= positions[p] && (slidingWindow === 0 || j > positions[p] - slidingWindow)
      if (seen) seeing.push(rows[p])
    }
    for (let kvHead = 0; kvHead < nLayers * nKvHeads; kvHead++) {
      const layer = Math.floor(kvHead / nKvHeads)
      let sum = 0
      for (const row of seeing) {
        for (let g = 0; g < group; g++) {
          const query = (layer * nRows + row) * nHeads + (kvHead % nKvHeads) * group + g
          const key = j * nLayers * nKvHeads + kvHead
          const score = scale * dot(q, query * headDim, k, key * headDim, headDim)
          sum += Math.exp(score - lse[query])
        }
      }
      const divisor = options.normalization === 'normalized' ? seeing.length : 1
      scores[kvHead * kvLen + j] = seeing.length === 0 ? 0 : sum / divisor
    }
  }
  return scores
}
