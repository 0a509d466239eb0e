import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `siluGate`. */
export interface SiluGateArgs {
  gate: Tensor
  up: Tensor
  out: Tensor
}

/**
 * out = silu(gate) * up, silu(x) = x / (1 + e^-x). `out` may be one of the inputs.
 *
 * - `gate`, `up` (n, width), the same dtype; `out` (n, width): f32, f16 or bf16
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: SwiGLU, Shazeer (arXiv 2002.05202), Eq. 6.
 */
export function siluGate(args: SiluGateArgs): void {
  loadAddon().siluGate(args.gate.handle, args.up.handle, args.out.handle)
}
