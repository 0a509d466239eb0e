import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `storeProbes`. */
export interface StoreProbesArgs {
  q: Tensor
  lse: Tensor
  slots: Tensor
  probeQ: Tensor
  probeLse: Tensor
}

/**
 * Keeps the query and LSE of those rows that are probes until their window is scored.
 *
 * - `q` (rows, n_heads, head_dim); `lse` (rows, n_heads) f32; `slots` (rows) i32: where to keep a
 *   row, -1 for none
 * - `probeQ` (capacity, n_heads, head_dim), q's dtype; `probeLse` (capacity, n_heads) f32
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`. Source: ZipCache (arXiv 2405.14256)
 * Alg. 3, which keeps the rows of A_probe instead: q and LSE are smaller and score keys that came
 * later, too.
 */
export function storeProbes(args: StoreProbesArgs): void {
  loadAddon().storeProbes(
    args.q.handle,
    args.lse.handle,
    args.slots.handle,
    args.probeQ.handle,
    args.probeLse.handle,
  )
}
