import { type GroupPlan, PAGE_TOKENS, pageCount } from '../cache/index.js'
import type { Tensor } from '../ops/index.js'
import { salientCounts } from '../policy/auto-ratio.js'
import type { SaliencyMetric } from '../policy/policy.js'
import { withoutPositionBias } from '../policy/position-bias.js'
import { makePacker, makeScorer, type Probes, type Scorer, type TokenGroup } from './compress.js'
import { makeHeadPacker } from './compress-by-head.js'
import { keyErrorGains } from './gains.js'
import { groupPlan } from './group-plan.js'
import type { SalientBudget } from './salient-budget.js'

/** Shares of salient tokens, one for each (layer, KV head) of heads of one shape, that a prompt was given. */
export type HeadShares = Float64Array

/** The compression of one prompt in layers whose heads are alike, layer by layer. */
export interface PromptCompressor {
  /** Whether probes are looked at. */
  readonly looks: boolean
  /** Of the layers done so far; null where all heads have the same. */
  readonly shares: HeadShares | null
  /** - `k`, `v` (n_tokens, n_kv_heads, head_dim) */
  compress(
    layer: number,
    k: Tensor,
    v: Tensor,
    probes: Probes | null,
    slidingWindow: number,
  ): Promise<void>
}

/**
 * Stages a prompt and compresses it as Alg. 2 does. Where scores are corrected, or r is chosen head
 * by head, a layer's scores are read first: the one wait there is.
 */
export function makePromptCompressor(group: TokenGroup, budget: SalientBudget): PromptCompressor {
  const { cache, compression, nTokens, scratch, watch } = group
  const { metric, auto, correctsPosition: correct } = compression
  const { nLayers, nKvHeads } = cache.shape
  const plan = groupPlan(compression, nTokens)
  const scorer = scorerOf(group, plan, metric, auto !== null)
  const looks = scorer !== null
  const revised = async (scores: Tensor<'f32'>) => {
    const found = await scores.read()
    if (!correct) return found
    const fair = new Float32Array(found.length)
    for (let at = 0; at < found.length; at += nTokens) {
      fair.set(withoutPositionBias(found.subarray(at, at + nTokens)), at)
    }
    scores.write(fair)
    return fair
  }

  if (!auto || !scorer) {
    const pack = evenPacker(group, plan, looks)
    return {
      looks,
      shares: null,
      async compress(layer, k, v, probes, slidingWindow) {
        const scores = scorer && probes && scorer.score(k, probes, slidingWindow)
        if (scores && correct) await revised(scores)
        if (scores) watch?.(scores)
        pack(layer, k, v, scores)
      },
    }
  }

  // Pages of a layer.
  const most =
    auto.share < 1
      ? Math.floor((auto.share * nTokens * nKvHeads) / PAGE_TOKENS)
      : Number.POSITIVE_INFINITY
  const staged = cache.stageUneven(plan)
  const packer = makeHeadPacker(group, staged)
  const shares = new Float64Array(nLayers * nKvHeads)
  return {
    looks,
    shares,
    async compress(layer, k, v, probes, slidingWindow) {
      if (!probes) return
      const scores = scorer.score(k, probes, slidingWindow)
      const [values, gains] = await Promise.all([
        revised(scores),
        keyErrorGains(k, probes, scratch),
      ])
      watch?.(scores)
      const pages = Math.min(most, budget.pagesFor(cache.shape))
      const counts = salientCounts({ scores: values, gains }, { pages, coverage: auto.coverage })
      packer.pack(layer, k, v, scores, counts)
      budget.take(
        cache.shape,
        counts.reduce((sum, count) => sum + pageCount(count), 0),
      )
      shares.set(
        Array.from(counts, (count) => count / nTokens),
        layer * nKvHeads,
      )
    },
  }
}

/** The compression of one window, some layers at a time. */
export interface WindowCompressor {
  readonly looks: boolean
  /** - `k`, `v` (n_tokens, n_layers * n_kv_heads, head_dim), of the layers from `layer` on */
  compress(layer: number, k: Tensor, v: Tensor, probes: Probes | null, slidingWindow: number): void
}

/**
 * Stages a window and compresses it as Alg. 3 does; where heads have shares of salient tokens of
 * their own, by those, layer by layer.
 */
export function makeWindowCompressor(
  group: TokenGroup,
  shares: HeadShares | null,
): WindowCompressor {
  const { cache, compression, nTokens, watch } = group
  const { nKvHeads } = cache.shape
  const plan = groupPlan(compression, nTokens)
  const scorer = scorerOf(group, plan, compression.windowMetric, shares !== null)
  const looks = scorer !== null
  const score = (k: Tensor, probes: Probes | null, slidingWindow: number) => {
    const scores = scorer && probes && scorer.score(k, probes, slidingWindow)
    if (scores) watch?.(scores)
    return scores
  }
  if (!shares || !scorer) {
    const pack = evenPacker(group, plan, looks)
    return {
      looks,
      compress(layer, k, v, probes, slidingWindow) {
        pack(layer, k, v, score(k, probes, slidingWindow))
      },
    }
  }
  const packer = makeHeadPacker(group, cache.stageUneven(plan))
  return {
    looks,
    compress(layer, k, v, probes, slidingWindow) {
      const scores = score(k, probes, slidingWindow)
      if (!scores) return
      const own = shares.subarray(layer * nKvHeads, (layer + 1) * nKvHeads)
      const counts = Int32Array.from(own, (share) => Math.round(share * nTokens))
      packer.pack(layer, k, v, scores, counts)
    },
  }
}

/** What scores a group's tokens; null where nothing has to be told apart, or the newest are salient. */
function scorerOf(
  group: TokenGroup,
  { nTokens, nSalient }: GroupPlan,
  metric: SaliencyMetric,
  isUneven: boolean,
): Scorer | null {
  const isMixed = isUneven || (nSalient > 0 && nSalient < nTokens)
  if (!isMixed || metric === 'locality') return null
  return makeScorer(group, metric)
}

/** Stages a group whose heads are alike; what packs some layers of it. */
function evenPacker(group: TokenGroup, plan: GroupPlan, looks: boolean) {
  return makePacker(group, group.cache.stage(plan), plan.nSalient, looks)
}
