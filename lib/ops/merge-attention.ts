import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `mergeAttention`. */
export interface MergeAttentionArgs {
  /** (n, n_heads, head_dim) f32, f16 or bf16: attention over the one set. */
  outA: Tensor
  /** (n, n_heads) f32, natural log; -inf: this side saw no key. */
  lseA: Tensor
  /** As `outA`, of the other set. */
  outB: Tensor
  /** As `lseA`, of the other set. */
  lseB: Tensor
  /** As `outA`, out; may be an input. 0 where neither side saw a key. */
  out: Tensor
  /** As `lseA`, out; may be an input. -inf where neither side saw a key. */
  lse: Tensor
}

/**
 * Joins attention over two disjoint sets of keys: lse = log(e^a + e^b), out = e^(a - lse) outA +
 * e^(b - lse) outB.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: FlashInfer (arXiv 2501.01005) §2.2, attention
 * states.
 */
export function mergeAttention(args: MergeAttentionArgs): void {
  checkArguments(args)
  loadAddon().mergeAttention(
    handleOf(args.outA),
    handleOf(args.lseA),
    handleOf(args.outB),
    handleOf(args.lseB),
    handleOf(args.out),
    handleOf(args.lse),
  )
}
