import { argumentError, show } from '../errors.js'
import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import type { WeightScales } from './linear.js'
import { handleOf, type Tensor } from './tensor.js'

/** Arguments of `routeExperts`. */
export interface RouteExpertsArgs {
  /** (n, n_experts) f32; at most 1024 experts. */
  logits: Tensor<'f32'>
  /** (n_experts) f32: added to scores to choose by the sums, not to weights. Default none. */
  correction?: Tensor | undefined
  /** (n_experts) f32: multiplies the weight of each chosen expert, after all else. Default ones. */
  expertScales?: Tensor | undefined
  /** (n, n_chosen) f32, out. */
  weights: Tensor<'f32'>
  /** (n, n_chosen) i32, out: of each row the one that is chosen first. */
  experts: Tensor<'i32'>
  /**
   * (n * n_chosen) i32, out: the places in `experts`, row * n_chosen + choice, of expert 0 first, an
   * expert's in ascending order.
   */
  pairs: Tensor<'i32'>
  /** (n_experts + 1) i32, out: where an expert's pairs begin in `pairs`. */
  offsets: Tensor<'i32'>
  /** What weights are: `softmax(logits)`, the default, or `sigmoid(logits)`. */
  scores?: 'softmax' | 'sigmoid' | undefined
  /** Divides a row's weights by their sum. Default false. */
  normalized?: boolean | undefined
  /** Divides them by this where their sum is smaller: 0, the default, or more. */
  leastSum?: number | undefined
  /** Multiplies weights, after that. Default 1. */
  scale?: number | undefined
}

/**
 * Which experts multiply a row: those of its `n_chosen` largest logits, or with a correction of its largest
 * sums of score and correction, of equal ones the smaller expert. Their weights are scores, in float32. A
 * row with a NaN gets weights of NaN.
 *
 * Throws `ERR_ZC_SHAPE`, also for more experts a row than there are, `ERR_ZC_DTYPE`, and `ERR_ZC_ARGUMENT`
 * for other scores and a negative `leastSum`. Source: Shazeer et al. (arXiv 1701.06538), §2.1; softmax first,
 * as in Mixtral (arXiv 2401.04088) and Qwen3; sigmoid and correction: DeepSeek-V3 (arXiv 2412.19437), §2.1.2.
 */
export function routeExperts(args: RouteExpertsArgs): void {
  checkArguments(args)
  const { scores = 'softmax' } = args
  if (scores !== 'softmax' && scores !== 'sigmoid') {
    throw argumentError('scores', `is ${show(scores)}, expected 'softmax' or 'sigmoid'`)
  }
  loadAddon().routeExperts(
    handleOf(args.logits),
    handleOf(args.correction),
    handleOf(args.expertScales),
    handleOf(args.weights),
    handleOf(args.experts),
    handleOf(args.pairs),
    handleOf(args.offsets),
    scores === 'sigmoid',
    args.normalized ?? false,
    args.leastSum ?? 0,
    args.scale ?? 1,
  )
}

/** Arguments of `expertLinear`. */
export interface ExpertLinearArgs {
  /** (m, k) f32, f16 or bf16. Pair p is of row p / (n_pairs / m). */
  x: Tensor
  /** A weight as in `LinearArgs` for each expert: (n_experts, n, k), or (n_experts, n, k / 2) u8. */
  weight: Tensor
  /** As in `LinearArgs`, with n_experts in front. */
  scales?: WeightScales | undefined
  /** As in `LinearArgs`, with n_experts in front. */
  zeros?: Tensor<'u8'> | undefined
  /** (n_experts, n) f32, f16 or bf16; default none. */
  bias?: Tensor | undefined
  /** (n_pairs) i32, n_pairs a multiple of m: a permutation of 0 to n_pairs - 1, by expert. */
  pairs: Tensor<'i32'>
  /** (n_experts + 1) i32, where an expert's pairs begin: from 0 to n_pairs. */
  offsets: Tensor<'i32'>
  /** (n_pairs, n) f32, f16 or bf16, out. */
  out: Tensor
}

/**
 * out[pair] = W[expert of pair] x[row of pair] + bias[expert of pair], each row to the bit as `linear` gives it: of
 * `routeExperts`, n_chosen products of each row of x with other matrices.
 *
 * Throws as `linear`, and `ERR_ZC_ARGUMENT` for pairs or offsets out of their range.
 */
export function expertLinear(args: ExpertLinearArgs): void {
  checkArguments(args)
  loadAddon().expertLinear(
    handleOf(args.x),
    handleOf(args.weight),
    handleOf(args.scales),
    handleOf(args.zeros),
    handleOf(args.bias),
    handleOf(args.pairs),
    handleOf(args.offsets),
    handleOf(args.out),
  )
}

/** Arguments of `addExperts`. */
export interface AddExpertsArgs {
  /** (n * n_chosen, width) f32: what a row's experts gave. */
  x: Tensor<'f32'>
  /** (n, n_chosen) f32. */
  weights: Tensor<'f32'>
  /** (n, width) f32, out. */
  out: Tensor<'f32'>
  /** Adds to what is in `out`; default true. */
  accumulate?: boolean | undefined
}

/**
 * out[row] += sum over its choices, the first one first, of weights[row, choice] x[row * n_chosen +
 * choice], in float32, or out[row] = that sum.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`.
 */
export function addExperts(args: AddExpertsArgs): void {
  checkArguments(args)
  const { x, weights, out, accumulate = true } = args
  loadAddon().addExperts(handleOf(x), handleOf(weights), handleOf(out), accumulate)
}
