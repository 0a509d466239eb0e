import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `mergeAttention`. */
export interface MergeAttentionArgs {
  outA: Tensor
  lseA: Tensor
  outB: Tensor
  lseB: Tensor
  out: Tensor
  lse: Tensor
}

/**
 * Joins attention over two disjoint sets of keys: lse = log(e^a + e^b), out = e^(a - lse) outA +
 * e^(b - lse) outB.
 *
 * - `outA`, `outB`, `out` (n, n_heads, head_dim) f32, f16 or bf16; `lseA`, `lseB`, `lse` (n,
 *   n_heads) f32. The outputs may be the inputs. -inf marks a side that saw no key; where both did,
 *   out = 0 and lse = -inf
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: FlashInfer (arXiv 2501.01005) §2.2, attention
 * states.
 */
export function mergeAttention(args: MergeAttentionArgs): void {
  loadAddon().mergeAttention(
    args.outA.handle,
    args.lseA.handle,
    args.outB.handle,
    args.lseB.handle,
    args.out.handle,
    args.lse.handle,
  )
}
