import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import type { StateArgs } from './state-args.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `causalConv`. */
export interface CausalConvArgs extends StateArgs {
  /** (rows, channels) f32. */
  x: Tensor
  /** (channels, width) f32, width 2 to 8: the newest input's weight last. */
  weight: Tensor
  /** (channels) f32, added before silu. */
  bias?: Tensor | undefined
  /** (rows, channels) f32, out; not x. */
  out: Tensor
  /** Value heads that a layer has pages for in the tables. */
  nHeads: number
}

/**
 * A convolution along each channel of a sequence, and silu: out_t = silu(sum_j weight_j x_(t - width + 1 + j) + bias).
 * Inputs before the first row are those that the sequence's page of the layer holds, and zeros with
 * `fromZero`; then the page holds the last width - 1 inputs. Rows of a sequence may be cut into calls
 * anywhere: the bits are the same.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`, `ERR_ZC_UNSUPPORTED` for another width; a table or
 * an address that points outside is found when the op runs (`ERR_ZC_ARGUMENT`). Source: Mamba (arXiv 2312.00752)
 * §3.4, as in front of Gated DeltaNet (arXiv 2412.06464) §3.4.
 */
export function causalConv(args: CausalConvArgs): void {
  checkArguments(args)
  loadAddon().causalConv(
    handleOf(args.x),
    handleOf(args.weight),
    handleOf(args.bias),
    handleOf(args.out),
    handleOf(args.pool),
    handleOf(args.tables),
    handleOf(args.states),
    handleOf(args.cuSeqlens),
    args.layer,
    args.nHeads,
    args.fromZero ?? false,
  )
}
