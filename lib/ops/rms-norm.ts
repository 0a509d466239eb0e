import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `rmsNorm`. */
export interface RmsNormArgs {
  /** (rows, width) f32, f16 or bf16. */
  x: Tensor
  /** (width) f32, f16 or bf16; default ones. */
  weight?: Tensor | undefined
  /** (rows, width) f32, f16 or bf16, out; may be `x`. */
  out: Tensor
  /** Added to the mean square; 0 or more. */
  eps: number
  /** Adds to what is in `out`; default false. */
  accumulate?: boolean | undefined
  /** Multiplies the result, what it was added to with it; default 1. */
  scale?: number | undefined
}

/**
 * out = scale (x / sqrt(mean(x^2) + eps) * weight), row by row, or scale (that + out).
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, and `ERR_ZC_ARGUMENT` for an `eps` below 0 and what is no finite
 * number. Source: Zhang and Sennrich (arXiv
 * 1910.07467), Eq. 4.
 */
export function rmsNorm(args: RmsNormArgs): void {
  checkArguments(args)
  const { x, weight, out, eps, accumulate = false, scale = 1 } = args
  loadAddon().rmsNorm(handleOf(x), handleOf(weight), handleOf(out), eps, accumulate, scale)
}
