import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `ropeTable`. */
export interface RopeTableArgs {
  positions: Tensor
  invFreq: Tensor
  cos: Tensor
  sin: Tensor
  attentionScale?: number
}

/**
 * Cosines and sines of the rotary embedding, computed once a step for all layers: angle = position
 * * invFreq, in float32 as transformers does; both are multiplied by `attentionScale` (yarn's, else
 * 1).
 *
 * - `positions` (n) i32; `invFreq` (head_dim / 2) f32; `cos`, `sin` (n, head_dim / 2) f32 out
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: Su et al. (arXiv 2104.09864), Eq. 34; YaRN (arXiv
 * 2309.00071).
 */
export function ropeTable(args: RopeTableArgs): void {
  loadAddon().ropeTable(
    args.positions.handle,
    args.invFreq.handle,
    args.cos.handle,
    args.sin.handle,
    args.attentionScale ?? 1,
  )
}

/** Arguments of `rope`. */
export interface RopeArgs {
  x: Tensor
  cos: Tensor
  sin: Tensor
  /** Default: `x`, in place. */
  out?: Tensor
}

/**
 * Rotates the pairs (x[i], x[i + head_dim / 2]) of every head: Hugging Face's half-split
 * convention.
 *
 * - `x`, `out` (n, heads, head_dim) f32, f16 or bf16, not necessarily the same; `cos`, `sin` (n,
 *   head_dim / 2) f32
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function rope(args: RopeArgs): void {
  const out = args.out ?? args.x
  loadAddon().rope(args.x.handle, args.cos.handle, args.sin.handle, out.handle)
}
