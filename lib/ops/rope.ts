import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `ropeTable`. */
export interface RopeTableArgs {
  /** (n) i32, absolute, from 0. */
  positions: Tensor
  /** (rotary_dim / 2) f32, radians per position. */
  invFreq: Tensor
  /** (n, rotary_dim / 2) f32, out. */
  cos: Tensor
  /** (n, rotary_dim / 2) f32, out. */
  sin: Tensor
  /** Multiplies both tables: YaRN's factor. Default 1. */
  attentionScale?: number | undefined
  /** Of queries in Ministral 3: multiplies both by 1 + growth ln(1 + floor(position / period)), too. Default 0. */
  growth?: number | undefined
  /** In positions, 1 or more. Default 1. */
  period?: number | undefined
}

/**
 * Cosines and sines of the rotary embedding, computed once a step for all layers: angle = position
 * * invFreq, in float32 as transformers does.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`. Source: Su et al. (arXiv 2104.09864), Eq. 34; YaRN (arXiv
 * 2309.00071).
 */
export function ropeTable(args: RopeTableArgs): void {
  checkArguments(args)
  loadAddon().ropeTable(
    handleOf(args.positions),
    handleOf(args.invFreq),
    handleOf(args.cos),
    handleOf(args.sin),
    args.attentionScale ?? 1,
    args.growth ?? 0,
    args.period ?? 1,
  )
}

/** Arguments of `rope`. */
export interface RopeArgs {
  /** (n, heads, head_dim) f32, f16 or bf16. */
  x: Tensor
  /** (n, rotary_dim / 2) f32, by `ropeTable`; rotary_dim is head_dim or less. */
  cos: Tensor
  /** (n, rotary_dim / 2) f32, by `ropeTable`. */
  sin: Tensor
  /** As `x` or of another of its dtypes, out; default `x`, in place. */
  out?: Tensor | undefined
}

/**
 * Rotates the pairs (x[i], x[i + rotary_dim / 2]) of every head, Hugging Face's half-split
 * convention. Channels from rotary_dim on stay as they are.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function rope(args: RopeArgs): void {
  checkArguments(args)
  const out = args.out ?? args.x
  loadAddon().rope(handleOf(args.x), handleOf(args.cos), handleOf(args.sin), handleOf(out))
}
