import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `storeProbes`. */
export interface StoreProbesArgs {
  /** (n_layers, rows, n_heads, head_dim) f32, f16 or bf16. */
  q: Tensor
  /** (n_layers, rows, n_heads) f32. */
  lse: Tensor
  /** (rows) i32: where to keep a row, -1 for none. */
  slots: Tensor
  /** (n_layers, capacity, n_heads, head_dim), q's dtype, out. */
  probeQ: Tensor
  /** (n_layers, capacity, n_heads) f32, out. */
  probeLse: Tensor
}

/**
 * Keeps the query and LSE of those rows that are probes until their window is scored, in every layer.
 * Of one layer alone the tensors may come without their first axis.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`. Source: ZipCache (arXiv 2405.14256)
 * Alg. 3, which keeps the rows of A_probe instead: q and LSE are smaller and score keys that came
 * later, too.
 */
export function storeProbes(args: StoreProbesArgs): void {
  checkArguments(args)
  loadAddon().storeProbes(
    handleOf(args.q),
    handleOf(args.lse),
    handleOf(args.slots),
    handleOf(args.probeQ),
    handleOf(args.probeLse),
  )
}
