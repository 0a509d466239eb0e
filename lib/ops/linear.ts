import { loadAddon } from '../native/load.js'
import { checkArguments, listOfArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `linear`. */
export interface LinearArgs {
  /** (m, k) f32, f16 or bf16. */
  x: Tensor
  /** (n, k) f32, f16 or bf16, or i8 with `scales`. */
  weight: Tensor
  /** (n) f32: of a weight of i8 alone, as `quantizeWeight` gives it. */
  scales?: Tensor<'f32'> | undefined
  /** (n) f32, f16 or bf16; default none. */
  bias?: Tensor | undefined
  /** (m, n) f32, f16 or bf16, out. */
  out: Tensor
  /** Adds to `out`: the residual connection. Default false. */
  accumulate?: boolean | undefined
}

/**
 * out = x W^T + bias, or out += that with `accumulate`. Products and sums are float32; the order of
 * summation over k depends neither on the number of rows nor on the number of threads.
 *
 * With a weight of i8, W is each row of it times its scale. On a CPU every 256 elements of a row of x
 * are rounded to 16 bits, the largest of them to 2^15 - 1; integers are multiplied and summed without an
 * error, and what 256 elements give is added in float32. A GPU multiplies x as it is by codes as 16-bit
 * floats, which hold them exactly.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function linear(args: LinearArgs): void {
  checkArguments(args)
  loadAddon().linear(
    handleOf(args.x),
    handleOf(args.weight),
    handleOf(args.scales),
    handleOf(args.bias),
    handleOf(args.out),
    args.accumulate ?? false,
  )
}

/** Arguments of `groupedLinear`. */
export interface GroupedLinearArgs {
  /** (m, k) f32, f16 or bf16. */
  x: Tensor
  /** One to three. */
  products: readonly {
    /** (n, k) f32, f16 or bf16, or i8 with `scales`; n is each product's own. */
    readonly weight: Tensor
    /** (n) f32: of a weight of i8 alone. */
    readonly scales?: Tensor<'f32'> | undefined
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
 * Throws as `linear`, and `ERR_ZC_ARGUMENT` for none or too many products.
 */
export function groupedLinear(args: GroupedLinearArgs): void {
  checkArguments(args)
  const products = listOfArguments('products', args.products)
  const flat = products.flatMap(({ weight, scales, bias, out }) => [
    ...[handleOf(weight), handleOf(scales), handleOf(bias), handleOf(out)],
  ])
  loadAddon().groupedLinear(handleOf(args.x), products.length, ...flat)
}

/** Arguments of `quantizeWeight`. */
export interface QuantizeWeightArgs {
  /** (n, k) f32, f16 or bf16. */
  x: Tensor
  /** (n, k) i8, out: codes of -127 to 127. */
  out: Tensor<'i8'>
  /** (n) f32, out. */
  scales: Tensor<'f32'>
}

/**
 * A weight in 8 bits: of each row scale = max|x| / 127 and codes x / scale, rounded to the nearest, ties
 * to even. The scale of a row that holds NaN or infinity is NaN.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function quantizeWeight(args: QuantizeWeightArgs): void {
  checkArguments(args)
  const { x, out, scales } = args
  loadAddon().quantizeWeight(handleOf(x), handleOf(out), handleOf(scales))
}
