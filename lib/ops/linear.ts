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

/** Arguments of `groupedLinear`. */
export interface GroupedLinearArgs {
  /** (m, k) f32, f16 or bf16. */
  x: Tensor
  /** One to three. */
  products: readonly {
    /** (n, k) f32, f16 or bf16; n is each product's own. */
    readonly weight: Tensor
    /** (n) f32, f16 or bf16; default none. */
    readonly bias?: Tensor | undefined
    /** (m, n) f32, f16 or bf16, out. */
    readonly out: Tensor
  }[]
}

/**
 * out = x W^T + bias for several weights over one x, each to the bit as `linear` gives it: Q, K and V,
 * or gate and up. On a GPU one kernel computes them where rows are few.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, and `ERR_ZC_ARGUMENT` for none or too many products.
 */
export function groupedLinear({ x, products }: GroupedLinearArgs): void {
  const flat = products.flatMap(({ weight, bias, out }) => [
    ...[weight.handle, bias?.handle, out.handle],
  ])
  loadAddon().groupedLinear(x.handle, products.length, ...flat)
}
