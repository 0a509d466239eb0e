import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `linear`. */
export interface LinearArgs {
  /** (m, k) f32, f16 or bf16. */
  x: Tensor
  /** (n, k) f32, f16 or bf16. */
  weight: Tensor
  /** (n) f32, f16 or bf16; default none. */
  bias?: Tensor | undefined
  /** (m, n) f32, f16 or bf16, out. */
  out: Tensor
  /** Adds to `out`: the residual connection. Default false. */
  accumulate?: boolean
}

/**
 * out = x W^T + bias, or out += that with `accumulate`. Products and sums are float32; the order of
 * summation over k depends neither on the number of rows nor on the number of threads.
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
