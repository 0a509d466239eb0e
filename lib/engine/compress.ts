import type { StagedGroup } from '../cache/index.js'
import type { KvCache, KvShape } from '../cache/kv-cache.js'
import type { Scratch } from '../model/scratch.js'
import {
  packSegments,
  probeAttention,
  rmsNorm,
  type SegmentClass,
  selectSalient,
  type Tensor,
} from '../ops/index.js'
import type { Compression, PrecisionClass, SaliencyMetric } from '../policy/policy.js'
import type { ScoreWatcher } from './saliency-record.js'

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

/** The tokens of one compression, and what it works with. */
export interface TokenGroup {
  readonly cache: KvCache
  readonly compression: Compression
  /** The tail's, and those that come with it. */
  readonly nTokens: number
  /** Of K and V. */
  readonly dtype: Tensor['dtype']
  readonly scratch: Scratch
  /** Is told the scores of each layer; null: nobody asks. */
  readonly watch: ScoreWatcher | null
}

/** Scores the same tokens in one layer after another. */
export interface Scorer {
  /** (n_kv_heads, n_tokens): the saliency that `score` found last. */
  readonly scores: Tensor<'f32'>
  /** - `k` (n_tokens, n_kv_heads, head_dim) */
  score(k: Tensor, probes: Probes, slidingWindow: number): void
}

/**
 * Saliency from probes: p~ of Eq. 8, or what another metric says.
 *
 * Source: ZipCache (arXiv 2405.14256) Alg. 2, line 2.
 */
export function makeScorer(
  { nKvHeads, headDim }: KvShape,
  metric: SaliencyMetric,
  nTokens: number,
  scratch: Scratch,
): Scorer {
  const scale = 1 / Math.sqrt(headDim)
  const scores = scratch.tensor('f32', [nKvHeads, nTokens])
  const weights = metric === 'causal' ? causalWeights(nTokens, scratch) : null
  const sums = metric === 'normalized' ? metric : 'accumulated'
  return {
    scores,
    score(k, probes, slidingWindow) {
      probeAttention({ ...probes, k, scores, scale, slidingWindow, metric: sums })
      // That the norm scales a KV head's scores together changes no order.
      if (weights) rmsNorm({ x: scores, weight: weights, out: scores, eps: SMALLEST })
    },
  }
}

/**
 * The rest of Alg. 2, lines 3 to 9, and of Alg. 3 at the end of a window: Split by the top r%, then
 * ChannelQuant for K and CSTQuant for V, at high bits for salient tokens and at low bits for the
 * others, into the staged segments. Returns how to do it for a layer's `k` and `v` (n_tokens,
 * n_kv_heads, head_dim).
 *
 * - `scores` (n_kv_heads, n_tokens): as they are when a layer is packed; null where nothing has to be
 *   told apart, or the newest tokens are salient
 *
 * Source: ZipCache (arXiv 2405.14256).
 */
export function makePacker(
  { cache, compression, nTokens, scratch }: TokenGroup,
  staged: StagedGroup,
  nSalient: number,
  scores: Tensor<'f32'> | null,
): (layer: number, k: Tensor, v: Tensor) => void {
  const { nKvHeads } = cache.shape
  const salientIds = scratch.tensor('i32', [nKvHeads, nSalient])
  const regularIds = scratch.tensor('i32', [nKvHeads, nTokens - nSalient])
  if (!scores) {
    // The newest are salient; all there are, where there is one class only.
    const nRegular = nTokens - nSalient
    const rows = (n: number, first: number) =>
      new Int32Array(nKvHeads * n).map((_, i) => first + (i % n))
    salientIds.write(rows(nSalient, nRegular))
    regularIds.write(rows(nRegular, 0))
  }
  const table = scratch.keep(cache.tableView())
  const pool = cache.memory.pool.memory
  const { high, low } = compression
  const classes = segmentClasses([
    [staged.salient, salientIds, high],
    [staged.regular, regularIds, low],
  ])

  return (layer, k, v) => {
    if (scores) selectSalient({ scores, salient: salientIds, regular: regularIds })
    packSegments({ k, v, pool, table, layer, classes })
  }
}

/** What `packSegments` takes of each class that has a segment. */
export function segmentClasses(
  classes: readonly (readonly [segment: number | null, ids: Tensor, PrecisionClass])[],
): SegmentClass[] {
  return classes.flatMap(([segment, ids, { keyRange, valueRange }]) =>
    segment === null ? [] : [{ ids, segment, keyRange, valueRange }],
  )
}

/** Keeps a row of zeros from being divided by zero. */
const SMALLEST = 1e-30

/** 1 / the number of all rows that see a token: (n_tokens) f32. */
function causalWeights(nTokens: number, scratch: Scratch): Tensor<'f32'> {
  const weights = new Float32Array(nTokens).map((_, i) => 1 / (nTokens - i))
  return scratch.tensor('f32', [nTokens]).write(weights)
}
