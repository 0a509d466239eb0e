/** The plainest ops: what `zipcache bench` measures the roofs of a device with. */

import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `readStream`. */
export interface ReadStreamArgs {
  x: Tensor
  out: Tensor
}

/**
 * out[p] = XOR of the words of part p: reads every byte once and computes next to nothing.
 *
 * - `x` (n) i32; `out` (parts) i32 out: part p is [p, p + 1) ceil(n / parts), cut off at n, and is
 *   read by one thread
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function readStream(args: ReadStreamArgs): void {
  checkArguments(args)
  loadAddon().readStream(handleOf(args.x), handleOf(args.out))
}

/** Arguments of `multiplyAdd`. */
export interface MultiplyAddArgs {
  x: Tensor
  out: Tensor
  factor: number
  summand: number
  /** 0 or more. */
  steps: number
}

/**
 * out = `steps` times y = factor y + summand, from y = x: 2 steps FLOPs an element, and hardly a
 * byte moves. One rounding a step where the device has FMA, else two.
 *
 * - `x`, `out` (rows, width) f32; one thread computes a row, fastest if `width` is a multiple of
 *   192
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`.
 */
export function multiplyAdd(args: MultiplyAddArgs): void {
  checkArguments(args)
  const { x, out, factor, summand, steps } = args
  loadAddon().multiplyAdd(handleOf(x), handleOf(out), factor, summand, steps)
}
