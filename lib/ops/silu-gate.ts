import { loadAddon } from '../native/load.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `siluGate`. */
export interface SiluGateArgs {
  /** (n, width) f32, f16 or bf16. */
  gate: Tensor
  /** (n, width), gate's dtype. */
  up: Tensor
  /** (n, width) f32, f16 or bf16, out; may be an input. */
  out: Tensor
}

/**
 * out = silu(gate) * up, silu(x) = x / (1 + e^-x).
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: SwiGLU, Shazeer (arXiv 2002.05202), Eq. 6.
 */
export function siluGate(args: SiluGateArgs): void {
  loadAddon().siluGate(handleOf(args.gate), handleOf(args.up), handleOf(args.out))
}
