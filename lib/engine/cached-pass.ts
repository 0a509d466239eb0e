/**
 * Passes of tokens through the model over a sequence's cache: Algs. 2 and 3 of ZipCache (arXiv
 * 2405.14256).
 */
import { codeFormat, type GroupPlan, type KvCache } from '../cache/index.js'
import { type AttentionHeads, type ForwardModel, forward } from '../model/forward.js'
import type { Scratch } from '../model/scratch.js'
import {
  appendKv,
  convert,
  flashAttention,
  mergeAttention,
  mixedAttention,
  type Tensor,
  unpackSegment,
} from '../ops/index.js'
import type { Compression } from '../policy/policy.js'
import type { Seed } from '../random.js'
import { makeCompressor } from './compress.js'
import type { WindowProbes } from './window-probes.js'

/** Tokens on their way through the model. */
export interface CachedPass {
  readonly model: ForwardModel
  readonly cache: KvCache
  readonly ids: Tensor<'i32'>
  readonly nRows: number
  readonly scratch: Scratch
  /** As `Pass.checkpoint`. */
  checkpoint?(): void
}

/** What every attention call of a pass shares. */
function attentionOf(pass: CachedPass) {
  const { model, cache, nRows, scratch } = pass
  const first = cache.length
  return {
    scale: 1 / Math.sqrt(model.config.headDim),
    positions: scratch.ints(new Int32Array(nRows).map((_, i) => first + i)),
    cuSeqlens: scratch.ints(Int32Array.of(0, nRows)),
    windowOf: (layer: number) => model.config.slidingWindow[layer] ?? 0,
  }
}

/**
 * Passes tokens whose K and V stay in the 16-bit tail: decode steps, and prompts shorter than a
 * window. `probes` keeps the rows that are probes of the running window; null where none are
 * needed.
 *
 * The caller has made no room yet; on failure it takes the room back (`shrinkTail`).
 */
export async function passIntoTail(
  pass: CachedPass,
  probes: WindowProbes | null,
): Promise<Tensor<'f32'>> {
  const { model, cache, nRows, scratch } = pass
  const hasPast = cache.length > 0
  const slots = probes?.slots(cache.tailLength, nRows) ?? null
  const slotIds = slots && scratch.ints(slots)
  const { scale, positions, cuSeqlens, windowOf } = attentionOf(pass)
  cache.extendTail(nRows)

  return forward(model, {
    ...pass,
    positions,
    attend(layer, { q, k, v, out, lse }) {
      const slidingWindow = windowOf(layer)
      const paged = { pool: cache.pool.memory, tables: cache.table, cuSeqlens, layer }
      appendKv({ k, v, ...paged })
      if (hasPast) mixedAttention({ q, out, lse, ...paged, positions, scale, slidingWindow })
      else {
        const cu = { cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens }
        flashAttention({ q, k, v, out, lse, ...cu, scale, slidingWindow, causal: true })
      }
      if (slots && slotIds) probes?.store(layer, q, lse, slotIds, Math.max(...slots))
    },
  })
}

/**
 * Passes a prompt that is compressed as soon as a layer has attended to it, so that only one
 * layer's K and V exist in full (Alg. 2). Attention among the prompt's tokens, and to the tail, is
 * exact; attention to what was compressed before goes over the packed cache and is merged in by its
 * log-sum-exp. The tail's tokens are compressed together with the prompt.
 *
 * The group is staged here; the caller publishes it, or takes it back on failure (`unstage`).
 */
export async function passCompressed(
  pass: CachedPass,
  compression: Compression,
  seed: Seed,
): Promise<Tensor<'f32'>> {
  const { model, cache, nRows, scratch } = pass
  const { nKvHeads, headDim } = cache.shape
  const nTail = cache.tailLength
  const hasPacked = cache.tailStart > 0
  const group = groupPlan(compression, nTail + nRows)
  const staged = cache.stage(group)
  const compressor = makeCompressor(cache, compression, staged, group, scratch)
  const needsProbes = staged.salient !== null && staged.regular !== null
  const { scale, positions, cuSeqlens, windowOf } = attentionOf(pass)
  const withTail = nTail > 0 ? joinTail(pass, nTail) : null
  const cuSeqlensK = scratch.ints(Int32Array.of(0, nTail + nRows))
  const past = hasPacked
    ? {
        out: scratch.tensor(model.attentionDtype, [nRows, model.config.nHeads, headDim]),
        lse: scratch.tensor('f32', [nRows, model.config.nHeads]),
      }
    : null

  return forward(model, {
    ...pass,
    positions,
    attend(layer, heads) {
      const { q, out, lse } = heads
      const slidingWindow = windowOf(layer)
      const { k, v } = withTail ? withTail(layer, heads) : heads
      const cu = { cuSeqlensQ: cuSeqlens, cuSeqlensK }
      flashAttention({ q, k, v, out, lse, ...cu, scale, slidingWindow, causal: true })
      if (past) {
        const paged = {
          pool: cache.pool.memory,
          tables: cache.table,
          cuSeqlens,
          layer,
          tail: false,
        }
        mixedAttention({ q, ...past, ...paged, positions, scale, slidingWindow, causal: false })
        mergeAttention({ outA: out, lseA: lse, outB: past.out, lseB: past.lse, out, lse })
      }
      const probes = needsProbes ? promptProbes(layer, heads) : null
      compressor.compress(layer, k, v, probes, slidingWindow)
    },
  })

  function promptProbes(layer: number, { q, lse }: AttentionHeads) {
    const rows = compression.promptProbes(nRows, seed, layer)
    const seen = rows.map((row) => nTail + row)
    return { q, lse, rows: scratch.ints(rows), positions: scratch.ints(seen) }
  }

  /**
   * Room for the tail's rows in front of the prompt's: k and v (tail + rows, n_kv_heads, head_dim).
   */
  function joinTail({ scratch }: CachedPass, nTail: number) {
    const shape = [nTail + nRows, nKvHeads, headDim]
    const k = scratch.tensor(model.attentionDtype, shape)
    const v = scratch.tensor(model.attentionDtype, shape)
    const own = [nRows, nKvHeads, headDim]
    const newK = scratch.keep(k.view(own, nTail * nKvHeads * headDim))
    const newV = scratch.keep(v.view(own, nTail * nKvHeads * headDim))
    const table = scratch.keep(cache.table.view([cache.table.length]))
    const base = cache.tailStart
    return (layer: number, heads: AttentionHeads) => {
      unpackSegment({ pool: cache.pool.memory, table, k, v, layer, segment: 0, base })
      convert({ x: heads.k, out: newK })
      convert({ x: heads.v, out: newV })
      return { k, v }
    }
  }
}

/**
 * Compresses a full window (Alg. 3): its tokens are scored by the window's own probes, the closing
 * token among them, split and packed; what was compressed before is not touched. Staged, for the
 * caller to publish.
 */
export function closeWindow(
  model: ForwardModel,
  cache: KvCache,
  compression: Compression,
  probes: WindowProbes | null,
  scratch: Scratch,
): void {
  const { nKvHeads, headDim, nLayers } = cache.shape
  const nTokens = cache.tailLength
  const group = groupPlan(compression, nTokens)
  const staged = cache.stage(group)
  const compressor = makeCompressor(cache, compression, staged, group, scratch)
  const needsProbes = staged.salient !== null && staged.regular !== null
  const k = scratch.tensor(model.attentionDtype, [nTokens, nKvHeads, headDim])
  const v = scratch.tensor(model.attentionDtype, [nTokens, nKvHeads, headDim])
  const table = scratch.keep(cache.table.view([cache.table.length]))
  const steps = probes?.steps ?? new Int32Array(0)
  const rows = scratch.ints(steps.map((_, slot) => slot))
  const positions = scratch.ints(steps)
  for (let layer = 0; layer < nLayers; layer++) {
    const base = cache.tailStart
    unpackSegment({ pool: cache.pool.memory, table, k, v, layer, segment: 0, base })
    const kept = needsProbes && probes ? probes.layer(layer) : null
    const slidingWindow = model.config.slidingWindow[layer] ?? 0
    compressor.compress(layer, k, v, kept && { ...kept, rows, positions }, slidingWindow)
  }
}

function groupPlan(compression: Compression, nTokens: number): GroupPlan {
  const { high, low } = compression
  return {
    nTokens,
    nSalient: compression.nSalient(nTokens),
    high: { k: codeFormat(high.keyBits), v: codeFormat(high.valueBits) },
    low: { k: codeFormat(low.keyBits), v: codeFormat(low.valueBits) },
  }
}
