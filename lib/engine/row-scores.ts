import type { KvShape } from '../cache/index.js'
import { probeAttention, type Tensor } from '../ops/index.js'
import type { Probes } from './compress.js'
import type { Room } from './room.js'

/** What rows received before: (n_kv_heads, n) f32, of the rows from `first` on. */
export interface FormerScores {
  readonly scores: Tensor<'f32'> | null
  readonly first: number
}

/** Attention that each row of k (n_rows, …) has received, (n_kv_heads, n_rows): before, and now. */
export async function scoreRows(
  { nKvHeads, headDim }: KvShape,
  k: Tensor,
  nRows: number,
  probes: Probes,
  before: FormerScores,
  room: Room,
): Promise<Float32Array> {
  const sums = room.tensor('sums', 'f32', [nKvHeads, nRows])
  const keys = room.scratch.keep(k.view([nRows, nKvHeads, headDim]))
  probeAttention({ ...probes, k: keys, scores: sums, metric: 'accumulated' })
  const scores = await sums.read()
  if (!before.scores) return scores
  const old = await before.scores.read()
  const nOld = old.length / nKvHeads
  for (let head = 0; head < nKvHeads; head++) {
    for (let row = 0; row < nOld; row++) {
      const at = head * nRows + before.first + row
      scores[at] = (scores[at] as number) + (old[head * nOld + row] as number)
    }
  }
  return scores
}
