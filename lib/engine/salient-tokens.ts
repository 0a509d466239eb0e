import { Scratch } from '../model/scratch.js'
import { exportSegment } from '../ops/index.js'
import type { Context } from './context.js'
import { segmentTensors } from './segment-tensors.js'

/**
 * Positions of the salient tokens, ascending, for each layer and KV head: those that a compression
 * told from regular ones. Tokens of the tail, and of compressions with one class, are neither.
 */
export async function salientTokens({ cache }: Context): Promise<Int32Array[][]> {
  const { nLayers, nKvHeads, headDim } = cache.shape
  const { segments } = cache
  // Both classes of a compression start at the same token.
  const isMixed = (start: number) => segments.filter((other) => other.start === start).length > 1
  const headTable = cache.headTable()
  const positionsOf = async (entry: number): Promise<Int32Array> => {
    const found: number[] = []
    for (const [index, { precision, start, nTokens, counts }] of segments.entries()) {
      const n = counts?.[entry] ?? nTokens
      if (precision !== 'high' || !isMixed(start) || n === 0) continue
      const scratch = new Scratch(cache.memory.device)
      try {
        const content = segmentTensors({ nKvHeads: 1, headDim }, n, scratch)
        exportSegment({
          pool: cache.memory.pool.memory,
          table: scratch.ints(headTable),
          ...content,
          layer: entry, // of a table in which every head is a layer
          segment: index + 1, // 0 is the tail
        })
        for (const position of await content.positions.read()) found.push(position)
      } finally {
        scratch.dispose()
      }
    }
    return Int32Array.from(found)
  }
  const layers: Int32Array[][] = []
  for (let layer = 0; layer < nLayers; layer++) {
    const heads: Int32Array[] = []
    for (let head = 0; head < nKvHeads; head++) {
      heads.push(await positionsOf(layer * nKvHeads + head))
    }
    layers.push(heads)
  }
  return layers
}
