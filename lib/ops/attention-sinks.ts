import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `attentionSinks`. */
export interface AttentionSinksArgs {
  /** (n_heads) f32: a logit each; -inf: that head has none. */
  sinks: Tensor
  /** (n, n_heads, head_dim) f32, f16 or bf16: attention without sinks; with them, out. 0 where no key was seen. */
  out: Tensor
  /** (n, n_heads) f32, natural log, of all keys; with the sink, out. -inf: no key was seen. */
  lse: Tensor
}

/**
 * Gives attention of all keys a key more, whose value is 0: what a head's softmax gives it goes
 * nowhere. lse' = log(e^lse + e^sink), out' = e^(lse - lse') out. Probes that are kept after it are
 * normalized with it, too.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: gpt-oss model card (arXiv 2508.10925), Architecture: a learned
 * bias in the denominator of softmax; off by one, <https://www.evanmiller.org/attention-is-off-by-one.html>.
 */
export function attentionSinks(args: AttentionSinksArgs): void {
  checkArguments(args)
  loadAddon().attentionSinks(handleOf(args.sinks), handleOf(args.out), handleOf(args.lse))
}
