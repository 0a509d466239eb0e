/** What a context may still take while it grows, so that who waits is let in only where all fit. */
import {
  bitmapBytes,
  CacheDemand,
  type KvCache,
  type KvShape,
  pageBytes,
  pageCount,
} from '../cache/index.js'
import type { Compression, RowPlan } from '../policy/policy.js'
import type { Context } from './context.js'
import { rowBytes } from './estimate.js'
import { groupPlan } from './group-plan.js'
import { BLOCK_ROWS } from './quantized-rows.js'

/**
 * Adds the most that a context may still take until it holds `maxLength` tokens; `turnEnds`: how many it
 * holds after each turn of the prompt that is to come. It counts the moment in which a window is both packed
 * and in the tail.
 */
export function addGrowth(
  demand: CacheDemand,
  context: Context,
  turnEnds: readonly number[],
  maxLength: number,
): void {
  const { cache, policy, nWindowProbes } = context
  const { tailLength } = cache
  if (maxLength <= context.length) return
  context.addStatesTo(demand, turnEnds, maxLength)
  if (policy.rows) {
    for (const shape of cache.memory.shapes) {
      demand.otherBytes += rowGrowthBytes(shape, policy.rows, maxLength)
    }
    return
  }
  const { compression } = policy
  const window = compression?.window ?? Number.POSITIVE_INFINITY
  /** Compressions to come: tokens of each, and how many there are of them. */
  const groups: { readonly nTokens: number; readonly count: number }[] = []
  let inTail = tailLength
  /** The most that the tail holds until it is emptied first, and from then on. */
  let before = tailLength
  let after = 0
  const note = (nTokens: number) => {
    if (groups.length === 0) before = Math.max(before, nTokens)
    else after = Math.max(after, nTokens)
  }
  /** So many tokens go through the tail. */
  const pass = (nTokens: number) => {
    const nThrough = inTail + nTokens
    const count = Math.floor(nThrough / window)
    note(Math.min(window, nThrough))
    if (count > 0) {
      groups.push({ nTokens: window, count })
      note(Math.min(window, nThrough - window))
    }
    inTail = count > 0 ? nThrough % window : nThrough
  }
  let length = context.length
  /** Whether the first compression is of the turn that runs now or next. */
  let isPromptFirst = false
  for (const end of turnEnds) {
    const nTurn = end - length
    // As `Context` chooses the road.
    if (nTurn > 1 && inTail + nTurn >= window) {
      isPromptFirst ||= groups.length === 0 && length === context.length
      groups.push({ nTokens: inTail + nTurn, count: 1 })
      inTail = 0
    } else if (nTurn > 0) {
      pass(nTurn)
    }
    length = Math.max(length, end)
  }
  pass(maxLength - length)

  for (const own of cache.ofShapes) {
    addCacheGrowth(demand, own, { compression, groups, isPromptFirst, inTail: { before, after } })
  }

  const nProbes = Math.min(nWindowProbes, Math.max(before, after))
  demand.probeSlots += Math.max(0, nProbes - context.nOwnProbes)
}

/** What a cache still takes, of layers whose heads have one shape. */
interface CacheGrowth {
  readonly compression: Compression | null
  /** Compressions to come: tokens of each, and how many there are of them. */
  readonly groups: readonly { readonly nTokens: number; readonly count: number }[]
  /** Whether the first of them is of the turn that runs now or next. */
  readonly isPromptFirst: boolean
  /** The most tokens of the tail until it is emptied first, and from then on. */
  readonly inTail: { readonly before: number; readonly after: number }
}

function addCacheGrowth(
  demand: CacheDemand,
  cache: KvCache,
  { compression, groups, isPromptFirst, inTail: { before, after } }: CacheGrowth,
): void {
  const { shape, tailFormat } = cache
  const nShared = cache.nSharedTailPages
  const nOwn = pageCount(cache.tailLength) - nShared
  const nTailPages = Math.max(
    // The page that is written to is copied, those before it stay shared.
    pageCount(before) - nShared + (cache.sharesTail ? 1 : 0),
    pageCount(after),
  )
  const nMore = Math.max(0, nTailPages - nOwn)
  demand.addEach(shape, pageBytes(tailFormat, tailFormat, shape.headDim), nMore)

  let nPages = nMore
  let nSegments = 0
  for (const [index, { nTokens, count }] of groups.entries()) {
    // Staged pages are given out already, except where heads differ: those get theirs layer by layer.
    const isStaged = index === 0 && isPromptFirst && cache.isStaged
    if (!compression || (isStaged && !compression.auto)) continue
    const group = groupPlan(compression, nTokens)
    nPages += count * (pageCount(nTokens) + 1)
    nSegments += count * 2
    if (!compression.auto) {
      demand.addGroups(shape, group, count)
      continue
    }
    // Any share of a head's tokens may be of either class.
    for (const nSalient of [0, nTokens]) {
      demand.addGroups(shape, { ...group, nSalient }, count, true)
    }
    demand.addEach(shape, bitmapBytes(nTokens), count)
  }
  demand.otherBytes += cache.tableBytesWith(nSegments, nPages) - cache.tableBytesWith(0, 0)
}

/**
 * The most tokens, up to `maxLength`, that a context could hold if nothing else took memory; at least
 * one beyond the prompt. For policies that keep rows, and where r is chosen head by head, only an
 * upper bound of their memory is known: no answer is cut short by that.
 */
export function longestFitting(
  context: Context,
  turnEnds: readonly number[],
  maxLength: number,
): number {
  const { cache } = context
  if (!isGrowthKnown(context)) return maxLength
  const fits = (length: number) => {
    const demand = new CacheDemand()
    context.addHeldTo(demand)
    addGrowth(demand, context, turnEnds, length)
    return cache.memory.canHold(demand)
  }
  if (fits(maxLength)) return maxLength
  let fitting = Math.min((turnEnds.at(-1) ?? context.length) + 1, maxLength)
  for (let beyond = maxLength; beyond - fitting > 1; ) {
    const length = Math.floor((fitting + beyond) / 2)
    if (fits(length)) fitting = length
    else beyond = length
  }
  return fitting
}

/** Whether what a context takes is known before, and not an upper bound of it alone. */
export function isGrowthKnown({ policy }: Context): boolean {
  return !policy.rows && !policy.compression?.auto
}

/** No more than this: all rows in 16 bits, and beside them what they are quantized to. */
function rowGrowthBytes(shape: KvShape, plan: RowPlan, maxLength: number): number {
  const { nLayers, nKvHeads, headDim } = shape
  const plain = 4 * (maxLength + BLOCK_ROWS) * nLayers * nKvHeads * headDim
  return plan.kind === 'quantized' ? plain + rowBytes(shape, plan, maxLength) : 2 * plain
}
