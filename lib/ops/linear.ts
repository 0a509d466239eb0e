import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `linear`. */
export interface LinearArgs {
  x: Tensor
  weight: Tensor
  bias?: Tensor | undefined
  out: Tensor
  accumulate?: boolean
}

/**
 * out = x W^T + bias, or out += that with `accumulate` (the residual connection). The order of
 * summation over k depends neither on the number of rows nor on the number of threads.
 *
 * - `x` (m, k), `weight` (n, k), `bias` (n), `out` (m, n): each f32, f16 or bf16; products and sums
 *   in float32
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function linear(args: LinearArgs): void {
  loadAddon().linear(
    args.x.handle,
    args.weight.handle,
    args.bias?.handle,
    args.out.handle,
    args.accumulate ?? false,
  )
}
