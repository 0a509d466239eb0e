/** What a context may still take while it grows, so that who waits is let in only where all fit. */
import { bitmapBytes, CacheDemand, type KvShape, pageBytes, pageCount } from '../cache/index.js'
import type { RowPlan } from '../policy/policy.js'
import type { Context } from './context.js'
import { rowBytes } from './estimate.js'
import { groupPlan } from './group-plan.js'
import { BLOCK_ROWS } from './quantized-rows.js'

/**
 * Adds the most that a context may still take until it holds `maxLength` tokens, those up to
 * `promptEnd` in one prompt. It counts the moment in which a window is both packed and in the tail.
 */
export function addGrowth(
  demand: CacheDemand,
  context: Context,
  promptEnd: number,
  maxLength: number,
): void {
  const { cache, policy, nWindowProbes } = context
  const { shape, tailLength } = cache
  if (maxLength <= context.length) return
  if (policy.rows) {
    demand.otherBytes += rowGrowthBytes(shape, policy.rows, maxLength)
    return
  }
  const { compression } = policy
  const window = compression?.window ?? Number.POSITIVE_INFINITY
  const nPrompt = Math.max(0, promptEnd - context.length)
  // As `Context` chooses the road.
  const isPrompt = nPrompt > 1 && tailLength + nPrompt >= window
  /** Tokens that go through the tail, what it holds included. */
  const nThrough = isPrompt ? maxLength - promptEnd : tailLength + maxLength - context.length
  const nWindows = Math.floor(nThrough / window)
  const inTail = (nTokens: number) => Math.max(0, Math.min(window, nTokens))
  /** The most that the tail holds until it is emptied first, and from then on. */
  const before = isPrompt ? tailLength : inTail(nThrough)
  const after = inTail(isPrompt ? nThrough : nThrough - window)

  const nShared = cache.nSharedTailPages
  const nOwn = pageCount(tailLength) - nShared
  const nTailPages = Math.max(
    // The page that is written to is copied, those before it stay shared.
    pageCount(before) - nShared + (cache.sharesTail ? 1 : 0),
    pageCount(after),
  )
  const nMore = Math.max(0, nTailPages - nOwn)
  demand.addEach(pageBytes(cache.tailFormat, cache.tailFormat, shape.headDim), nMore)

  let nPages = nMore
  let nSegments = 0
  const addGroups = (nTokens: number, count: number) => {
    if (!compression || count === 0) return
    const group = groupPlan(compression, nTokens)
    nPages += count * (pageCount(nTokens) + 1)
    nSegments += count * 2
    if (!compression.auto) {
      demand.addGroups(group, count)
      return
    }
    // Any share of a head's tokens may be of either class.
    for (const nSalient of [0, nTokens]) demand.addGroups({ ...group, nSalient }, count, true)
    demand.addEach(bitmapBytes(nTokens), count)
  }
  // Staged pages are given out already, except where heads differ: those get theirs layer by layer.
  if (isPrompt && (!cache.isStaged || compression?.auto)) addGroups(tailLength + nPrompt, 1)
  addGroups(window, nWindows)
  demand.otherBytes += cache.tableBytesWith(nSegments, nPages) - cache.tableBytesWith(0, 0)

  const nProbes = Math.min(nWindowProbes, Math.max(before, after))
  demand.probeSlots += Math.max(0, nProbes - context.nOwnProbes)
}

/**
 * The most tokens, up to `maxLength`, that a context could hold if nothing else took memory; at least
 * one beyond the prompt. For policies that keep rows, and where r is chosen head by head, only an
 * upper bound of their memory is known: no answer is cut short by that.
 */
export function longestFitting(context: Context, promptEnd: number, maxLength: number): number {
  const { cache, policy } = context
  if (policy.rows || policy.compression?.auto) return maxLength
  const fits = (length: number) => {
    const demand = new CacheDemand(cache.shape)
    cache.addHeldTo(demand)
    addGrowth(demand, context, promptEnd, length)
    return cache.memory.canHold(demand)
  }
  if (fits(maxLength)) return maxLength
  let fitting = Math.min(promptEnd + 1, maxLength)
  for (let beyond = maxLength; beyond - fitting > 1; ) {
    const length = Math.floor((fitting + beyond) / 2)
    if (fits(length)) fitting = length
    else beyond = length
  }
  return fitting
}

/** No more than this: all rows in 16 bits, and beside them what they are quantized to. */
function rowGrowthBytes(shape: KvShape, plan: RowPlan, maxLength: number): number {
  const { nLayers, nKvHeads, headDim } = shape
  const plain = 4 * (maxLength + BLOCK_ROWS) * nLayers * nKvHeads * headDim
  return plan.kind === 'quantized' ? plain + rowBytes(shape, plan, maxLength) : 2 * plain
}
