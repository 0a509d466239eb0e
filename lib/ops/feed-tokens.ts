import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `feedTokens`. */
export interface FeedTokensArgs {
  /**
   * (n_sampled) i32: what the last step sampled. A -1 (`sample` found NaN) is fed as token 0: the
   * other rows of the step must not fail with it.
   */
  sampled: Tensor
  /** (n) i32: a row of `sampled`, or -1 for the row of `given`. */
  source: Tensor
  /** (n) i32. */
  given: Tensor
  /** (n) i32, out. */
  out: Tensor
}

/**
 * The tokens that a decode step runs: those that the last step sampled, without a way through
 * JavaScript, or given ones.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function feedTokens(args: FeedTokensArgs): void {
  checkArguments(args)
  loadAddon().feedTokens(
    handleOf(args.sampled),
    handleOf(args.source),
    handleOf(args.given),
    handleOf(args.out),
  )
}
