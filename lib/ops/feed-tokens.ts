import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `feedTokens`. */
export interface FeedTokensArgs {
  sampled: Tensor
  source: Tensor
  given: Tensor
  out: Tensor
}

/**
 * The tokens that a decode step runs: those that the last step sampled, without a way through
 * JavaScript, or given ones.
 *
 * - `sampled` (n_sampled) i32; `source` (n) i32: a row of `sampled`, or -1 for the row of `given`
 * - `given`, `out` (n) i32. A sampled -1 (`sample` found NaN) is fed as token 0: the other rows of
 *   the step must not fail with it
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function feedTokens(args: FeedTokensArgs): void {
  loadAddon().feedTokens(
    args.sampled.handle,
    args.source.handle,
    args.given.handle,
    args.out.handle,
  )
}
