import type { StagedGroup } from '../cache/index.js'
import type { KvCache } from '../cache/kv-cache.js'
import type { Scratch } from '../model/scratch.js'
import { packSegment, probeAttention, rmsNorm, selectSalient, type Tensor } from '../ops/index.js'
import type { Compression, SaliencyMetric } from '../policy/policy.js'

/** Rows of attention that are looked at, and what they see of the tokens to be compressed. */
export interface Probes {
  /** (n, n_heads, head_dim), after RoPE. */
  readonly q: Tensor
  /** (n, n_heads) f32, over everything that the rows attended to. */
  readonly lse: Tensor
  /** Which rows of q are probes. */
  readonly rows: Tensor<'i32'>
  /** The last token, of those to be compressed, that each probe sees. */
  readonly positions: Tensor<'i32'>
}

/** Compresses the same tokens of one layer after another. */
export interface LayerCompressor {
  /**
   * Splits the tokens by saliency and packs both classes into the staged segments.
   *
   * - `k`, `v` (n_tokens, n_kv_heads, head_dim); `probes` may be left out where nothing has to be
   *   told apart
   */
  compress(layer: number, k: Tensor, v: Tensor, probes: Probes | null, slidingWindow: number): void
}

/**
 * The compression of Alg. 2, lines 2 to 9, and of Alg. 3 at the end of a window: p~ from the probes
 * (Eq. 8), Split by the top r%, then ChannelQuant for K and CSTQuant for V, at high bits for
 * salient tokens and at low bits for the others.
 *
 * Source: ZipCache (arXiv 2405.14256).
 */
export function makeCompressor(
  cache: KvCache,
  compression: Compression,
  metric: SaliencyMetric,
  staged: StagedGroup,
  group: { nTokens: number; nSalient: number },
  scratch: Scratch,
): LayerCompressor {
  const { nTokens, nSalient } = group
  const { nKvHeads, headDim } = cache.shape
  const scale = 1 / Math.sqrt(headDim)
  const mixed = staged.salient !== null && staged.regular !== null
  const looks = mixed && metric !== 'locality'
  const scores = looks ? scratch.tensor('f32', [nKvHeads, nTokens]) : null
  const salientIds = scratch.tensor('i32', [nKvHeads, nSalient])
  const regularIds = scratch.tensor('i32', [nKvHeads, nTokens - nSalient])
  if (!looks) {
    // The newest are salient; all there are, where there is one class only.
    const nRegular = nTokens - nSalient
    const rows = (n: number, first: number) =>
      new Int32Array(nKvHeads * n).map((_, i) => first + (i % n))
    salientIds.write(rows(nSalient, nRegular))
    regularIds.write(rows(nRegular, 0))
  }
  const weights = looks && metric === 'causal' ? causalWeights(nTokens, scratch) : null
  const table = scratch.keep(cache.tableView())

  return {
    compress(layer, k, v, probes, slidingWindow) {
      if (scores && probes) {
        const sums = metric === 'normalized' ? metric : 'accumulated'
        probeAttention({ ...probes, k, scores, scale, slidingWindow, metric: sums })
        // That the norm scales a KV head's scores together changes no order.
        if (weights) rmsNorm({ x: scores, weight: weights, out: scores, eps: SMALLEST })
        selectSalient({ scores, salient: salientIds, regular: regularIds })
      }
      for (const [segment, ids, precision] of [
        [staged.salient, salientIds, compression.high],
        [staged.regular, regularIds, compression.low],
      ] as const) {
        if (segment === null) continue
        packSegment({
          k,
          v,
          ids,
          pool: cache.memory.pool.memory,
          table,
          layer,
          segment,
          keyRange: precision.keyRange,
          valueRange: precision.valueRange,
        })
      }
    },
  }
}

/** Keeps a row of zeros from being divided by zero. */
const SMALLEST = 1e-30

/** 1 / the number of all rows that see a token: (n_tokens) f32. */
function causalWeights(nTokens: number, scratch: Scratch): Tensor<'f32'> {
  const weights = new Float32Array(nTokens).map((_, i) => 1 / (nTokens - i))
  return scratch.tensor('f32', [nTokens]).write(weights)
}
