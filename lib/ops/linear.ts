import { loadAddon } from '../native/load.js'
import { checkArguments, listOfArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** What codes of a weight are multiplied by, see `LinearArgs`. */
export type WeightScales = Tensor<'f32'> | Tensor<'f16'> | Tensor<'u8'>

/** Arguments of `linear`. */
export interface LinearArgs {
  /** (m, k) f32, f16 or bf16. */
  x: Tensor
  /** (n, k) f32, f16 or bf16, i8 with `scales`, or (n, k / 2) u8 with `scales` and `zeros`. */
  weight: Tensor
  /**
   * (n) f32, of a weight of i8, or (n, k / group) f16, of one of u8, as `quantizeWeight` gives them; or
   * (n, k / 32) u8, of one in MXFP4.
   */
  scales?: WeightScales | undefined
  /** (n, k / group) u8, 0 to 15: beside scales of f16 alone. */
  zeros?: Tensor<'u8'> | undefined
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
 * With a weight of u8, W is (code - zero) * scale with a code of 4 bits, and a scale and a zero for every
 * `group` elements of a row: 32, 64 or 128, which the shape of `scales` says. k is a multiple of 64 and of
 * the group. A row is units of 64 codes in 32 bytes, 16 little-endian words of 16 bits: word l holds the
 * codes of elements l, 16 + l, 32 + l and 48 + l, the first one in its lowest bits. x is taken as with i8,
 * and what a group gives is added in float32. A GPU rounds W to the type that it multiplies: to bfloat16,
 * as scales are before, where x is of bf16, and to float16 with other x, where it must not exceed 65504.
 *
 * With a weight of u8 and scales of u8, W is in MXFP4 (OCP Microscaling Formats 1.0): codes are float4 e2m1,
 * 0, 0.5, 1, 1.5, 2, 3, 4, 6 and from 8 on the same less than 0, times 2^(scale - 127) of their 32 elements; a
 * scale of 255 is NaN. They lie and are multiplied as those above. A GPU's bfloat16 holds W as it is; float16,
 * where x is of f16, is to hold it.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT` for a weight of u8 without scales or, of f16, zeros.
 */
export function linear(args: LinearArgs): void {
  checkArguments(args)
  loadAddon().linear(
    handleOf(args.x),
    handleOf(args.weight),
    handleOf(args.scales),
    handleOf(args.zeros),
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
    /** As in `LinearArgs`; n is each product's own. */
    readonly weight: Tensor
    /** As in `LinearArgs`. */
    readonly scales?: WeightScales | undefined
    /** As in `LinearArgs`. */
    readonly zeros?: Tensor<'u8'> | undefined
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
  const flat = products.flatMap(({ weight, scales, zeros, bias, out }) => [
    ...[handleOf(weight), handleOf(scales), handleOf(zeros), handleOf(bias), handleOf(out)],
  ])
  loadAddon().groupedLinear(handleOf(args.x), products.length, ...flat)
}

/** Arguments of `quantizeWeight`. */
export interface QuantizeWeightArgs {
  /** (n, k) f32, f16 or bf16. */
  x: Tensor
  /** Out: (n, k) i8, codes of -127 to 127, or (n, k / 2) u8, codes of 4 bits as `linear` takes them. */
  out: Tensor<'i8'> | Tensor<'u8'>
  /** Out: (n) f32 with an `out` of i8, (n, k / group) f16 with one of u8. */
  scales: Tensor<'f32'> | Tensor<'f16'>
  /** (n, k / group) u8, out: with an `out` of u8 alone. */
  zeros?: Tensor<'u8'> | undefined
}

/**
 * A weight in 8 bits: of each row scale = max|x| / 127 and codes x / scale, rounded to the nearest, ties
 * to even. The scale of a row that holds NaN or infinity is NaN.
 *
 * Or one in 4 bits: of each group of 32, 64 or 128 elements, which the shape of `scales` says, scale =
 * (hi - lo) / 15, rounded up to float16, zero = -lo / scale and codes x / scale + zero, 0 to 15, each
 * rounded to the nearest, ties to even. lo and hi are the group's ends, 0 among them, or both times one
 * of 0.95, 0.9, ... 0.65 where that leaves a smaller sum of squared errors. The scale of a group that
 * holds NaN or infinity is NaN.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT` for an `out` of u8 without zeros.
 */
export function quantizeWeight(args: QuantizeWeightArgs): void {
  checkArguments(args)
  const { x, out, scales, zeros } = args
  loadAddon().quantizeWeight(handleOf(x), handleOf(out), handleOf(scales), handleOf(zeros))
}
