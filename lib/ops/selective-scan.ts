import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import type { StateArgs } from './state-args.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `selectiveScan`. */
export interface SelectiveScanArgs extends StateArgs {
  /**
   * (rows, n_heads head_dim + 2 n_groups state_dim) f32: x of all heads, then B of all groups, then C of all
   * groups; state_dim a power of two from 16 to 256. Head h has the group floor(h n_groups / n_heads).
   */
  xbc: Tensor
  /** (rows, n_heads) f32. */
  step: Tensor
  /** (n_heads) f32: what is added to a step. */
  stepBias: Tensor
  /** (n_heads) f32: the logarithm of A. */
  decayLog: Tensor
  /** (n_heads) f32: D, how much of x goes past the state. */
  skip: Tensor
  /** (rows, n_heads, head_dim) f32, out; head_dim a multiple of 16 up to 256. */
  out: Tensor
  /** A divisor of n_heads. */
  nGroups: number
}

/**
 * A selective scan: a state S (state_dim, head_dim) of each head decays, takes a row's x along B, and is read
 * along C. Of each row, one after the other:
 *
 *     dt = softplus(step + stepBias)
 *     S = e^(-A dt) S + B (dt x)^T            A = e^decayLog
 *     out = C^T S + skip x
 *
 * S is what the head's page of the layer holds, and zeros with `fromZero`; then the page holds the last
 * row's. Rows of a sequence may be cut into calls anywhere: the bits are the same.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`, `ERR_ZC_UNSUPPORTED` for a state_dim or head_dim that
 * is none of those; a table or an address that points outside is found when the op runs (`ERR_ZC_ARGUMENT`).
 * Source: Mamba 2 (arXiv 2405.21060) §2 and §6, A one number a head; softplus and D as in Granite 4
 * (transformers, modeling_granitemoehybrid.py).
 */
export function selectiveScan(args: SelectiveScanArgs): void {
  checkArguments(args)
  loadAddon().selectiveScan(
    handleOf(args.xbc),
    handleOf(args.step),
    handleOf(args.stepBias),
    handleOf(args.decayLog),
    handleOf(args.skip),
    handleOf(args.out),
    handleOf(args.pool),
    handleOf(args.tables),
    handleOf(args.states),
    handleOf(args.cuSeqlens),
    args.layer,
    args.nGroups,
    args.fromZero ?? false,
  )
}
