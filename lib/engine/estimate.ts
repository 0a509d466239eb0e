/** What a cache comes to, computed before anything is allocated. */
import {
  bitmapBytes,
  codeFormat,
  type Format,
  type KvShape,
  pageBytes,
  pageCount,
  paramsBytes,
  TableArena,
  tableWords,
} from '../cache/index.js'
import type { CachePolicy } from '../policy/index.js'
import type { Compression } from '../policy/policy.js'
import type { Context } from './context.js'

/**
 * Bytes of the cache of a sequence: `groups` are the tokens compressed together, one number a
 * compression; `nTail` tokens wait in the tail.
 */
export function cacheBytes(
  shape: KvShape,
  policy: CachePolicy,
  tailFormat: Format,
  groups: readonly number[],
  nTail: number,
): number {
  const nEntries = shape.nLayers * shape.nKvHeads
  let bytes = pageCount(nTail) * pageBytes(tailFormat, tailFormat, shape.headDim)
  let nPages = pageCount(nTail)
  let nSegments = 1
  for (const nTokens of groups) {
    const { compression } = policy
    if (!compression) continue
    const group = groupBytes(shape, compression, nTokens)
    bytes += group.bytes
    nPages += group.nPages
    nSegments += group.nSegments
  }
  const words = tableWords(shape, nSegments, nPages)
  return nEntries * bytes + TableArena.capacityOf(words) * 4
}

/** One compression, for one layer and KV head. */
function groupBytes({ headDim }: KvShape, { high, low, nSalient }: Compression, nTokens: number) {
  const salient = nSalient(nTokens)
  const mixed = salient > 0 && salient < nTokens
  let bytes = mixed ? bitmapBytes(nTokens) : 0
  let nPages = 0
  let nSegments = 0
  for (const [count, { keyBits, valueBits }] of [
    [salient, high],
    [nTokens - salient, low],
  ] as const) {
    if (count === 0) continue
    nPages += pageCount(count)
    nSegments++
    const page = pageBytes(codeFormat(keyBits), codeFormat(valueBits), headDim)
    bytes += pageCount(count) * page + paramsBytes(headDim)
  }
  return { bytes, nPages, nSegments }
}

/**
 * How many bytes a context may still take until it holds `maxLength` tokens, the moment included in
 * which a window is there both packed and in the tail.
 */
export function growthBytes(context: Context, maxLength: number): number {
  const { cache, policy } = context
  const more = maxLength - cache.length
  const now = context.bytes.resident
  if (more <= 0) return 0
  const { compression } = policy
  if (!compression) {
    return Math.max(0, cacheBytes(cache.shape, policy, cache.tailFormat, [], maxLength) - now)
  }
  const { window } = compression
  const waiting = cache.tailLength + more
  // As if all came in windows, which take more than one long prompt, and one window twice.
  const groups = new Array<number>(Math.ceil(waiting / window)).fill(window)
  const probes = compression.windowProbes({ lo: 0, hi: 0 }).length * cache.memory.probes.slotBytes
  const packed = cache.segments.length > 0 ? now : 0
  const grown = cacheBytes(cache.shape, policy, cache.tailFormat, groups, window) + probes
  return Math.max(0, packed + grown - now)
}
