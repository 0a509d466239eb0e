import {
  bitmapBytes,
  codeFormat,
  type KvCache,
  type KvShape,
  pageBytes,
  pageCount,
  paramsBytes,
} from '../cache/index.js'
import type { Compression, PrecisionClass } from '../policy/policy.js'

/** Bytes of a page of one class. */
export function classPageBytes({ keyBits, valueBits }: PrecisionClass, headDim: number): number {
  return pageBytes(codeFormat(keyBits), codeFormat(valueBits), headDim)
}

/** A prompt's pages, parameters and bitmaps when no token of two classes is salient. */
export function allRegularBytes(shape: KvShape, { low }: Compression, nTokens: number): number {
  const { nLayers, nKvHeads, headDim } = shape
  const pages = pageCount(nTokens) * classPageBytes(low, headDim)
  return nLayers * nKvHeads * (pages + 2 * paramsBytes(headDim) + bitmapBytes(nTokens))
}

/**
 * How many pages of salient tokens, of all layers and KV heads together, `auto`'s budget leaves for a
 * prompt: with fewer of them the others are regular, whose pages are smaller. The tail is on its way
 * into the prompt. Infinite without a budget; 0 where even regular tokens take more.
 */
export function affordablePages(cache: KvCache, compression: Compression, nTokens: number): number {
  const { high, low, auto } = compression
  const { headDim } = cache.shape
  const [highPage, lowPage] = [classPageBytes(high, headDim), classPageBytes(low, headDim)]
  if (!auto?.budgetBytes || highPage <= lowPage) return Number.POSITIVE_INFINITY
  const before = cache.bytesByClass()
  const held = before.high + before.low + before.params + before.bitmaps
  const regular = allRegularBytes(cache.shape, compression, nTokens)
  const least = held + regular + cache.tableBytesWith(2, pageCount(nTokens) + 1)
  return Math.max(0, Math.floor((auto.budgetBytes - least) / (highPage - lowPage)))
}
