import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `selectSalient`. */
export interface SelectSalientArgs {
  /** (n_kv_heads, n) f32; NaN ranks lowest. */
  scores: Tensor
  /** (n_kv_heads, count) i32, out: ascending. */
  salient: Tensor
  /** (n_kv_heads, n - count) i32, out: ascending. */
  regular: Tensor
}

/**
 * Splits the tokens of each KV head into the exact top `count` by saliency and the rest; ties go to
 * the lowest index.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: ZipCache (arXiv 2405.14256) §4.2, Alg. 2 (Split).
 */
export function selectSalient(args: SelectSalientArgs): void {
  checkArguments(args)
  loadAddon().selectSalient(handleOf(args.scores), handleOf(args.salient), handleOf(args.regular))
}
