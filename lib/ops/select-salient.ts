import { loadAddon } from '../native/load.js'
import type { Tensor } from './tensor.js'

/** Arguments of `selectSalient`. */
export interface SelectSalientArgs {
  scores: Tensor
  salient: Tensor
  regular: Tensor
}

/**
 * Splits the tokens of each KV head into the exact top `count` by saliency and the rest.
 *
 * - `scores` (n_kv_heads, n) f32; NaN ranks lowest
 * - `salient` (n_kv_heads, count) i32 out, `regular` (n_kv_heads, n - count) i32 out: ascending;
 *   ties go to the lowest index
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: ZipCache (arXiv 2405.14256) §4.2, Alg. 2 (Split).
 */
export function selectSalient(args: SelectSalientArgs): void {
  loadAddon().selectSalient(args.scores.handle, args.salient.handle, args.regular.handle)
}
