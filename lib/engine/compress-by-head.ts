import type { StagedGroup } from '../cache/index.js'
import { gatherRows, packSegments, selectSalient, type Tensor } from '../ops/index.js'
import { segmentClasses, type TokenGroup } from './compress.js'

/** Splits and packs the tokens of each KV head by itself, as many salient ones as it was given. */
export interface HeadPacker {
  /**
   * - `k`, `v` (n_tokens, n_kv_heads, head_dim); `scores` (n_kv_heads, n_tokens) f32; `counts`
   *   (n_kv_heads): salient tokens
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  pack(layer: number, k: Tensor, v: Tensor, scores: Tensor<'f32'>, counts: Int32Array): void
}

/**
 * The packing of Alg. 2 where KV heads differ in how many tokens are salient: ops take as many of
 * every head of a layer, so that each head is gathered and packed as a layer of one head would be.
 */
export function makeHeadPacker(
  { cache, compression, nTokens, dtype, scratch }: TokenGroup,
  staged: StagedGroup,
): HeadPacker {
  const { high, low } = compression
  const { nKvHeads, headDim } = cache.shape
  const rowsOfHead = Array.from({ length: nKvHeads }, (_, head) =>
    scratch.ints(new Int32Array(nTokens).map((_, token) => token * nKvHeads + head)),
  )
  const own = {
    k: scratch.tensor(dtype, [nTokens, headDim]),
    v: scratch.tensor(dtype, [nTokens, headDim]),
  }
  const asHead = (x: Tensor) => scratch.keep(x.view([nTokens, 1, headDim]))
  const heads = { k: asHead(own.k), v: asHead(own.v) }
  const ids = scratch.tensor('i32', [nTokens])
  const table = scratch.tensor('i32', [cache.headTable().length])

  return {
    pack(layer, k, v, scores, counts) {
      cache.stageCounts(layer, counts)
      table.write(cache.headTable())
      const flat = (x: Tensor) => scratch.keep(x.view([nTokens * nKvHeads, headDim]))
      const flatK = flat(k)
      const flatV = flat(v)
      for (const [head, rows] of rowsOfHead.entries()) {
        const nSalient = counts[head] as number
        gatherRows({ x: flatK, rows, out: own.k })
        gatherRows({ x: flatV, rows, out: own.v })
        const salient = scratch.keep(ids.view([1, nSalient]))
        const regular = scratch.keep(ids.view([1, nTokens - nSalient], nSalient))
        selectSalient({
          scores: scratch.keep(scores.view([1, nTokens], head * nTokens)),
          salient,
          regular,
        })
        packSegments({
          ...heads,
          pool: cache.memory.pool.memory,
          table,
          layer: layer * nKvHeads + head,
          classes: segmentClasses([
            [staged.salient, salient, high],
            [staged.regular, regular, low],
          ]),
        })
      }
    },
  }
}
