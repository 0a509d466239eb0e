import { bitsOf, type SequenceCache } from '../cache/index.js'
import type { Context } from './context.js'
import type { SaliencyRecord } from './saliency-record.js'
import { salientTokens } from './salient-tokens.js'

/** How each token of a sequence is kept. All lists have one entry a token, by position. */
export interface TokenMap {
  /** The tokens themselves. */
  readonly ids: readonly number[]
  /** Position of the first token that is not compressed. */
  readonly tailStart: number
  /**
   * Bits of an element of K and V, the mean over layers and KV heads, parameters left out. NaN where
   * tokens are not kept one by one (policies whose attention is `dequantized`).
   */
  readonly bits: Float32Array
  /**
   * In which share of all layers and KV heads it was taken for salient, [0, 1]; NaN for tokens that
   * no compression has told apart.
   */
  readonly salientShare: Float32Array
  /**
   * Its saliency when it was compressed, the mean over layers and KV heads, as the policy measures
   * it: for `zipcache` normalized attention scores. NaN where none was measured, and of a sequence
   * without `recordSaliency: true`.
   *
   * Source: ZipCache (arXiv 2405.14256) §4.2, eq. 8.
   */
  readonly scores: Float32Array
}

/**
 * Looks at a cache as it is at the call.
 *
 * - `ids`: of its tokens; those that are not known yet are left out
 */
export async function mapTokens(
  { cache, model }: Pick<Context, 'cache' | 'model'>,
  record: SaliencyRecord | null,
  ids: readonly number[],
): Promise<TokenMap> {
  const { segments, tailStart, tailFormat } = cache
  const isPaged = cache.length > 0
  const n = isPaged ? Math.min(ids.length, cache.length) : ids.length
  const [layers, scores] = await Promise.all([
    salientTokens(cache, model.config),
    record?.means(n, tailStart) ?? new Float32Array(n).fill(Number.NaN),
  ])
  const heads = layers.flat()
  const counts = new Uint32Array(n)
  for (const positions of heads) {
    for (const position of positions) counts[position] = (counts[position] ?? 0) + 1
  }
  const bits = new Float32Array(n).fill(isPaged ? bitsOf(tailFormat) : Number.NaN, tailStart)
  const salientShare = new Float32Array(n).fill(Number.NaN)
  for (const [start, group] of groupsOf(segments)) {
    const { high, low, end } = group
    for (let i = start; i < Math.min(end, n); i++) {
      if (high !== null && low !== null) {
        const share = (counts[i] as number) / heads.length
        salientShare[i] = share
        bits[i] = share * high + (1 - share) * low
      } else bits[i] = high ?? (low as number)
    }
  }
  return { ids: ids.slice(0, n), tailStart: Math.min(tailStart, n), bits, salientShare, scores }
}

/** Compressions by their first position: bits of both classes, null for one without tokens. */
function groupsOf(segments: SequenceCache['segments']) {
  const groups = new Map<number, { high: number | null; low: number | null; end: number }>()
  for (const { precision, k, v, nTokens, start } of segments) {
    const group = groups.get(start) ?? { high: null, low: null, end: start }
    group[precision] = (bitsOf(k) + bitsOf(v)) / 2
    group.end += nTokens
    groups.set(start, group)
  }
  for (const group of groups.values()) group.end = Math.round(group.end) // sums of means
  return groups
}
