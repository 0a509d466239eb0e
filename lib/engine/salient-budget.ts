import {
  bitmapBytes,
  codeFormat,
  type KvShape,
  pageBytes,
  pageCount,
  paramsBytes,
  type SequenceCache,
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

/** What `auto`'s budget leaves for the salient tokens of a prompt, as its layers are compressed one by one. */
export interface SalientBudget {
  /** Salient pages that the next layer may have, of heads of this shape; it takes them by `take`. */
  pagesFor(shape: KvShape): number
  take(shape: KvShape, nPages: number): void
}

/**
 * With fewer salient pages than there may be the others are regular, whose pages are smaller: the difference is what a
 * salient page takes. Heads of layers still to come have as many pages each. The tail is on its way into the prompt. Any
 * number of pages without a budget, and where they are no larger; 0 where even regular tokens take more.
 */
export function salientBudget(
  cache: SequenceCache,
  compression: Compression,
  nTokens: number,
): SalientBudget {
  const { high, low, auto } = compression
  if (!auto?.budgetBytes) return { pagesFor: () => Number.POSITIVE_INFINITY, take() {} }
  const { shapes } = cache.memory
  /** Bytes that a salient page takes more than a regular one. */
  const extraOf = ({ headDim }: KvShape) =>
    classPageBytes(high, headDim) - classPageBytes(low, headDim)
  const before = cache.bytesByClass()
  const held = before.high + before.low + before.params + before.bitmaps
  const regular = shapes.reduce(
    (sum, shape) => sum + allRegularBytes(shape, compression, nTokens),
    0,
  )
  const nPages = pageCount(nTokens) + 1
  const tables = cache.ofShapes.reduce((sum, own) => sum + own.tableBytesWith(2, nPages), 0)
  let left = Math.max(0, auto.budgetBytes - held - regular - tables)
  /** A page of each head of a layer. */
  const roundOf = (shape: KvShape) => shape.nKvHeads * extraOf(shape)
  let toCome = shapes.reduce((sum, shape) => sum + shape.nLayers * roundOf(shape), 0)
  return {
    pagesFor: (shape) =>
      extraOf(shape) > 0 ? Math.floor((left * shape.nKvHeads) / toCome) : Number.POSITIVE_INFINITY,
    take(shape, nPages) {
      left -= nPages * extraOf(shape)
      toCome -= roundOf(shape)
    },
  }
}
