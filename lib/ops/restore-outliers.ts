import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `restoreOutliers`. */
export interface RestoreOutliersArgs {
  /** (n_lines, n) f16. */
  values: Tensor
  /**
   * (n_lines, n, 2) u8: a row of the channel or a channel of the row, in 16 bits, the low byte first;
   * those of a line differ.
   */
  places: Tensor
  /** (rows, channels) f32, f16 or bf16, in and out: all other elements stay. */
  out: Tensor
  /** What a line is: a channel of `out`, or a row. */
  scheme: 'channelwise' | 'tokenwise'
}

/**
 * Puts single values over what is there: out[places[line, i] of the line] = values[line, i].
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`; a place out of range is found when the op runs
 * (`ERR_ZC_ARGUMENT`). Source: GEAR (arXiv 2403.05527) §3, the sparse matrix S.
 */
export function restoreOutliers(args: RestoreOutliersArgs): void {
  checkArguments(args)
  loadAddon().restoreOutliers(
    handleOf(args.values),
    handleOf(args.places),
    handleOf(args.out),
    args.scheme === 'channelwise',
  )
}
