import type { KvShape } from '../cache/index.js'
import type { Scratch } from '../model/scratch.js'

/** The tensors of exportSegment and importSegment. */
export function segmentTensors(
  { nKvHeads, headDim }: Pick<KvShape, 'nKvHeads' | 'headDim'>,
  nTokens: number,
  scratch: Scratch,
) {
  return {
    kCodes: scratch.tensor('u8', [nKvHeads, nTokens, headDim]),
    vCodes: scratch.tensor('u8', [nKvHeads, nTokens, headDim]),
    kParams: scratch.tensor('f32', [nKvHeads, 2, headDim]),
    vParams: scratch.tensor('f32', [nKvHeads, 2, nTokens]),
    vChannel: scratch.tensor('f32', [nKvHeads, headDim]),
    positions: scratch.tensor('i32', [nKvHeads, nTokens]),
  }
}
