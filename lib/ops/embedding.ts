import { argumentError, show } from '../errors.js'
import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `embedding`. */
export interface EmbeddingArgs {
  /** (n) i32 in [0, vocab_size). */
  ids: Tensor
  /** (vocab_size, width) f32, f16 or bf16; wider where `column` is given. */
  weight: Tensor
  /** (n, width) f32, out. */
  out: Tensor
  /** Multiplies every row; above 0, default 1. */
  scale?: number | undefined
  /** The first of `width` columns of the weight that are looked up; default all. */
  column?: number | undefined
}

/**
 * out[i] = scale * weight[ids[i]], or of some columns of that.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`; an id out of range is found when the op runs
 * (`ERR_ZC_ARGUMENT`).
 */
export function embedding(args: EmbeddingArgs): void {
  checkArguments(args)
  const { ids, weight, out, scale = 1, column } = args
  if (column !== undefined && !(column >= 0)) {
    throw argumentError('column', `is ${show(column)}, expected a column of the weight`)
  }
  loadAddon().embedding(handleOf(ids), handleOf(weight), handleOf(out), scale, column ?? -1)
}
