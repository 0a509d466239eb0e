import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `softCap`. */
export interface SoftCapArgs {
  /** (rows, width) f32. */
  x: Tensor<'f32'>
  /** Above 0: what out is at most, and its negative at least. */
  cap: number
  /** (rows, width) f32, out; may be `x`. */
  out: Tensor<'f32'>
}

/**
 * out = cap tanh(x / cap). NaN stays.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, and `ERR_ZC_ARGUMENT` for a cap that is no finite number above 0.
 * Source: Gemma 2 (arXiv 2408.00118), §2, logit soft-capping.
 */
export function softCap(args: SoftCapArgs): void {
  checkArguments(args)
  loadAddon().softCap(handleOf(args.x), handleOf(args.out), args.cap)
}
