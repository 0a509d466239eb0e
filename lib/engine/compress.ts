import type { StagedGroup } from '../cache/index.js'
import type { KvCache } from '../cache/kv-cache.js'
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
  /** (n, n_heads, head_dim), after RoPE; (n_layers, n, n_heads, head_dim) of several layers. */
  readonly q: Tensor
  /** (n, n_heads) f32, over everything that the rows attended to; of several layers as q. */
  readonly lse: Tensor
  /** Which rows of q are probes. */
  readonly rows: Tensor<'i32'>
  /** The last token, of those to be compressed, that each probe sees. */
  readonly positions: Tensor<'i32'>
  /** Multiplies products of probes and keys. */
  readonly scale: number
}

/** The tokens of one compression in layers whose heads are alike, and what it works with. */
export interface TokenGroup {
  readonly cache: KvCache
  readonly compression: Compression
  /** The tail's, and those that come with it. */
  readonly nTokens: number
  /**
   * How many layers are compressed at a time, at most: their KV heads are treated as those of one
   * layer, first all of one layer, then all of the next.
   */
  readonly mostLayers: number
  /** Of K and V. */
  readonly dtype: Tensor['dtype']
  readonly scratch: Scratch
  /** Is told the scores of all layers; null: nobody asks. */
  readonly watch: ScoreWatcher | null
}

/** Scores the same tokens in some layers after others. */
export interface Scorer {
  /**
   * The saliency of K's tokens, (n_layers * n_kv_heads, n_tokens), until the next call.
   *
   * - `k` (n_tokens, n_layers * n_kv_heads, head_dim)
   */
  score(k: Tensor, probes: Probes, slidingWindow: number): Tensor<'f32'>
}

/**
 * Saliency from probes: p~ of Eq. 8, or what another metric says.
 *
 * Source: ZipCache (arXiv 2405.14256) Alg. 2, line 2.
 */
export function makeScorer(
  { cache, nTokens, mostLayers, scratch }: TokenGroup,
  metric: SaliencyMetric,
): Scorer {
  const { nKvHeads } = cache.shape
  const room = scratch.tensor('f32', [mostLayers * nKvHeads, nTokens])
  const weights = metric === 'causal' ? causalWeights(nTokens, scratch) : null
  const sums = metric === 'normalized' ? metric : 'accumulated'
  return {
    score(k, probes, slidingWindow) {
      const scores = firstRows(room, k.shape[1] as number, scratch)
      probeAttention({ ...probes, k, scores, slidingWindow, metric: sums })
      // That the norm scales a KV head's scores together changes no order.
      if (weights) rmsNorm({ x: scores, weight: weights, out: scores, eps: SMALLEST })
      return scores
    },
  }
}

/** Packs some layers of a group of tokens; see `makePacker`. */
export type Packer = (layer: number, k: Tensor, v: Tensor, scores: Tensor<'f32'> | null) => void

/**
 * The rest of Alg. 2, lines 3 to 9, and of Alg. 3 at the end of a window: Split by the top r%, then
 * ChannelQuant for K and CSTQuant for V, at high bits for salient tokens and at low bits for the
 * others, into the staged segments. Returns how to do it for `k` and `v` (n_tokens, n_layers *
 * n_kv_heads, head_dim) of the layers from `layer` on, and their `scores` (n_layers * n_kv_heads,
 * n_tokens).
 *
 * - `looks`: whether there are scores; without, nothing has to be told apart, or the newest tokens
 *   are salient
 *
 * Source: ZipCache (arXiv 2405.14256).
 */
export function makePacker(
  { cache, compression, nTokens, mostLayers, scratch }: TokenGroup,
  staged: StagedGroup,
  nSalient: number,
  looks: boolean,
): Packer {
  const nHeads = mostLayers * cache.shape.nKvHeads
  const salientIds = scratch.tensor('i32', [nHeads, nSalient])
  const regularIds = scratch.tensor('i32', [nHeads, nTokens - nSalient])
  if (!looks) {
    // The newest are salient; all there are, where there is one class only.
    const nRegular = nTokens - nSalient
    const rows = (n: number, first: number) =>
      new Int32Array(nHeads * n).map((_, i) => first + (i % n))
    salientIds.write(rows(nSalient, nRegular))
    regularIds.write(rows(nRegular, 0))
  }
  const table = scratch.keep(cache.tableView())
  const pool = cache.memory.pool.memory
  const { high, low } = compression

  return (layer, k, v, scores) => {
    const salient = firstRows(salientIds, k.shape[1] as number, scratch)
    const regular = firstRows(regularIds, k.shape[1] as number, scratch)
    if (scores) selectSalient({ scores, salient, regular })
    const classes = segmentClasses([
      [staged.salient, salient, high],
      [staged.regular, regular, low],
    ])
    packSegments({ k, v, pool, table, layer, classes })
  }
}

/** The first `n` rows of a tensor: itself, where it has no more. */
function firstRows<T extends Tensor>(tensor: T, n: number, scratch: Scratch): T {
  const [rows, ...rest] = tensor.shape
  return n === rows ? tensor : (scratch.keep(tensor.view([n, ...rest])) as T)
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
