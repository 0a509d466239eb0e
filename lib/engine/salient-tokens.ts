import { Scratch } from '../model/scratch.js'
import { exportSegment } from '../ops/index.js'
import type { Context } from './context.js'
import { segmentTensors } from './segment-tensors.js'

/**
 * Positions of the salient tokens, ascending, for each layer and KV head: those that a compression
 * told from regular ones. Tokens of the tail, and of compressions with one class, are neither.
 */
export async function salientTokens({ cache }: Context): Promise<Int32Array[][]> {
  const { nLayers, nKvHeads } = cache.shape
  const { segments } = cache
  // Both classes of a compression start at the same token.
  const isMixed = (start: number) => segments.filter((other) => other.start === start).length > 1
  const layers: Int32Array[][] = []
  for (let layer = 0; layer < nLayers; layer++) {
    const heads = Array.from({ length: nKvHeads }, (): number[] => [])
    for (const [index, { precision, start, nTokens }] of segments.entries()) {
      if (precision !== 'high' || !isMixed(start)) continue
      const scratch = new Scratch(cache.memory.device)
      try {
        const content = segmentTensors(cache, nTokens, scratch)
        const table = scratch.keep(cache.tableView())
        // Segment 0 is the tail.
        exportSegment({
          ...{ pool: cache.memory.pool.memory, table, ...content },
          ...{ layer, segment: index + 1 },
        })
        const positions = await content.positions.read()
        for (const [head, own] of heads.entries()) {
          for (const position of positions.subarray(head * nTokens, (head + 1) * nTokens)) {
            own.push(position)
          }
        }
      } finally {
        scratch.dispose()
      }
    }
    layers.push(heads.map((positions) => Int32Array.from(positions)))
  }
  return layers
}
