import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/**
 * out = x in another dtype, rounded to nearest, ties to even; float16 saturates at +-65504.
 *
 * - `x`, `out`: the same shape, f32, f16 or bf16
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function convert(args: { x: Tensor; out: Tensor }): void {
  checkArguments(args)
  loadAddon().convert(handleOf(args.x), handleOf(args.out))
}

/**
 * out[i] = x[rows[i]].
 *
 * - `x` (n, width) f32, f16 or bf16; `rows` (m) i32 in [0, n); `out` (m, width), x's dtype
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`; a row out of range is found when the op runs
 * (`ERR_ZC_ARGUMENT`).
 */
export function gatherRows(args: { x: Tensor; rows: Tensor; out: Tensor }): void {
  checkArguments(args)
  loadAddon().gatherRows(handleOf(args.x), handleOf(args.rows), handleOf(args.out))
}

/**
 * How many elements are NaN or infinite, saturating at 2^31 - 1.
 *
 * - `x`: any shape, f32, f16 or bf16; `count` (1) i32 out
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function countNonFinite(args: { x: Tensor; count: Tensor }): void {
  checkArguments(args)
  loadAddon().countNonFinite(handleOf(args.x), handleOf(args.count))
}
