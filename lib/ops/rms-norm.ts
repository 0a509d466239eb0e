import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `rmsNorm`. */
export interface RmsNormArgs {
  /** (rows, width) f32, f16 or bf16. */
  x: Tensor
  /** (width) f32, f16 or bf16. */
  weight: Tensor
  /** (rows, width) f32, f16 or bf16, out; may be `x`. */
  out: Tensor
  /** Added to the mean square; 0 or more. */
  eps: number
  /** Adds to what is in `out`; default false. */
  accumulate?: boolean | undefined
}

/**
 * out = x / sqrt(mean(x^2) + eps) * weight, row by row, or that plus out.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`. Source: Zhang and Sennrich (arXiv
 * 1910.07467), Eq. 4.
 */
export function rmsNorm(args: RmsNormArgs): void {
  checkArguments(args)
  const { x, weight, out, eps, accumulate = false } = args
  loadAddon().rmsNorm(handleOf(x), handleOf(weight), handleOf(out), eps, accumulate)
}
