import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `siluGate` and `geluGate`. */
export interface GateArgs {
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
export function siluGate(args: GateArgs): void {
  checkArguments(args)
  loadAddon().siluGate(handleOf(args.gate), handleOf(args.up), handleOf(args.out))
}

/**
 * out = gelu(gate) * up, gelu(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: GEGLU, Shazeer (arXiv 2002.05202), Eq. 6; the form by
 * tanh of Hendrycks and Gimpel (arXiv 1606.08415), §2.
 */
export function geluGate(args: GateArgs): void {
  checkArguments(args)
  loadAddon().geluGate(handleOf(args.gate), handleOf(args.up), handleOf(args.out))
}

/** Arguments of `clampedSwiglu`. */
export interface ClampedSwigluArgs extends GateArgs {
  /** Slope of the sigmoid. */
  alpha: number
  /** Above 0: what gate is at most, and the size of up. */
  limit: number
}

/**
 * out = (clamp(up, -limit, limit) + 1) g / (1 + e^(-alpha g)), g = min(gate, limit). NaN stays.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT` for an alpha or limit that is no such number.
 * Source: gpt-oss (https://github.com/openai/gpt-oss), whose alpha is 1.702 and limit 7.
 */
export function clampedSwiglu(args: ClampedSwigluArgs): void {
  checkArguments(args)
  const { gate, up, out, alpha, limit } = args
  loadAddon().clampedSwiglu(handleOf(gate), handleOf(up), handleOf(out), alpha, limit)
}

/** Arguments of `sigmoidGate`. */
export interface SigmoidGateArgs {
  /** (n, width) f32. */
  gate: Tensor
  /** (n, width) f32, f16 or bf16. */
  x: Tensor
  /** (n, width), x's dtype, out; may be x. */
  out: Tensor
}

/**
 * out = x / (1 + e^-gate).
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: gated attention (arXiv 2505.06708), its gate behind attention.
 */
export function sigmoidGate(args: SigmoidGateArgs): void {
  checkArguments(args)
  loadAddon().sigmoidGate(handleOf(args.gate), handleOf(args.x), handleOf(args.out))
}
