import type { KvCache, SequenceCache } from '../cache/index.js'
import type { ModelConfig } from '../model/config.js'
import { layerPlaces } from '../model/layer-kinds.js'
import { Scratch } from '../model/scratch.js'
import { exportSegment } from '../ops/index.js'
import { segmentTensors } from './segment-tensors.js'

/**
 * Positions of the salient tokens, ascending, for each layer that keeps keys and values and each of its KV heads: those
 * that a compression told from regular ones. Tokens of the tail, and of compressions with one class, are neither.
 *
 * All reads are enqueued before it returns, so that what the cache does afterwards changes nothing.
 */
export async function salientTokens(
  cache: SequenceCache,
  config: ModelConfig,
): Promise<Int32Array[][]> {
  const ofShapes = await Promise.all(cache.ofShapes.map(ofLayers))
  return layerPlaces(config).flatMap(({ isRecurrent, borrows, shape, index }) =>
    isRecurrent || borrows ? [] : [ofShapes[shape]?.[index] as Int32Array[]],
  )
}

/** The same of the layers whose heads have one shape. */
async function ofLayers(cache: KvCache): Promise<Int32Array[][]> {
  const { nLayers, nKvHeads, headDim } = cache.shape
  const nEntries = nLayers * nKvHeads
  const { segments } = cache
  const found: Promise<Int32Array>[][] = Array.from({ length: nEntries }, () => [])
  const scratch = new Scratch(cache.memory.device)
  try {
    const headTable = scratch.ints(cache.headTable())
    for (const [index, { precision, start, nTokens, counts }] of segments.entries()) {
      // Both classes of a compression start at the same token.
      const isMixed = segments.filter((other) => other.start === start).length > 1
      if (precision !== 'high' || !isMixed) continue
      const most = counts?.reduce((max, n) => Math.max(max, n), 0) ?? nTokens
      const room = segmentTensors({ nKvHeads: 1, headDim }, most, scratch)
      for (let entry = 0; entry < nEntries; entry++) {
        const n = counts?.[entry] ?? nTokens
        if (n === 0) continue
        const kCodes = scratch.keep(room.kCodes.view([1, n, headDim]))
        const vCodes = scratch.keep(room.vCodes.view([1, n, headDim]))
        const vParams = scratch.keep(room.vParams.view([1, 2, n]))
        const positions = scratch.keep(room.positions.view([1, n]))
        exportSegment({
          pool: cache.memory.pool.memory,
          table: headTable,
          ...room,
          ...{ kCodes, vCodes, vParams, positions },
          layer: entry, // of a table in which every head is a layer
          segment: index + 1, // 0 is the tail
        })
        found[entry]?.push(positions.read())
      }
    }
  } finally {
    scratch.dispose()
  }
  return joinLayers(found, nKvHeads)
}

async function joinLayers(
  found: readonly Promise<Int32Array>[][],
  nKvHeads: number,
): Promise<Int32Array[][]> {
  const heads = await Promise.all(
    found.map(async (parts) => {
      const lists = await Promise.all(parts)
      return Int32Array.from(lists.flatMap((list) => [...list]))
    }),
  )
  return Array.from({ length: heads.length / nKvHeads }, (_, layer) =>
    heads.slice(layer * nKvHeads, (layer + 1) * nKvHeads),
  )
}
