import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import type { StateArgs } from './state-args.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `gatedDelta`. */
export interface GatedDeltaArgs extends StateArgs {
  /**
   * (rows, 2 n_key_heads key_dim + n_heads value_dim) f32: q of all key heads, then k, then v of all value
   * heads; key_dim a power of two from 16 to 256. Value head h has the key head floor(h n_key_heads / n_heads).
   */
  qkv: Tensor
  /** (rows, n_heads) f32: a. */
  decay: Tensor
  /** (rows, n_heads) f32: b. */
  beta: Tensor
  /** (n_heads) f32: the logarithm of A. */
  decayLog: Tensor
  /** (n_heads) f32: what is added to a. */
  decayBias: Tensor
  /** (rows, n_heads, value_dim) f32, out; value_dim a multiple of 16 up to 256. */
  out: Tensor
  /** A divisor of n_heads. */
  nKeyHeads: number
}

/**
 * The gated delta rule: a state S (key_dim, value_dim) of each value head forgets, and then takes what
 * of the row's value it does not give for the row's key already. Of each row, one after the other:
 *
 *     q' = q / |q| / sqrt(key_dim), k' = k / |k|         |x| = sqrt(sum x^2 + 1e-6)
 *     S = e^(-A softplus(a + decayBias)) S               A = e^decayLog
 *     S = S + k' (sigmoid(b) (v - k'^T S))^T
 *     out = q'^T S
 *
 * S is what the head's page of the layer holds, and zeros with `fromZero`; then the page holds the last
 * row's. Rows of a sequence may be cut into calls anywhere: the bits are the same.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`, `ERR_ZC_UNSUPPORTED` for a key_dim or value_dim that
 * is none of those; a table or an address that points outside is found when the op runs (`ERR_ZC_ARGUMENT`).
 * Source: Gated DeltaNet (arXiv 2412.06464) eq. 10; A, softplus and the lengths as in Qwen 3.5
 * (transformers, modeling_qwen3_5.py).
 */
export function gatedDelta(args: GatedDeltaArgs): void {
  checkArguments(args)
  loadAddon().gatedDelta(
    handleOf(args.qkv),
    handleOf(args.decay),
    handleOf(args.beta),
    handleOf(args.decayLog),
    handleOf(args.decayBias),
    handleOf(args.out),
    handleOf(args.pool),
    handleOf(args.tables),
    handleOf(args.states),
    handleOf(args.cuSeqlens),
    args.layer,
    args.nKeyHeads,
    args.fromZero ?? false,
  )
}
