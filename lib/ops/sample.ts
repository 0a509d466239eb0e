import { loadAddon } from '../native/load.js'
import type { Seed } from '../random.js'
import { checkArguments, checkNumber } from './arguments.js'
import { handleOf, type Tensor } from './tensor.js'

/** Numbers a row of `SampleArgs.params` holds. */
export const SAMPLE_PARAMS = 8

/** How the next token of one row is chosen. */
export interface SampleParams {
  /** 0: the most likely token. */
  temperature: number
  /** Keep the k most likely tokens; 0: all. */
  topK: number
  /** Keep the smallest set of likeliest tokens whose probability reaches this; 1: all. */
  topP: number
  /** Drop tokens less likely than this share of the likeliest one's probability; 0: none. */
  minP: number
  /** Divides positive and multiplies negative logits of tokens seen before; 1: off. */
  repetitionPenalty: number
  /** Of the random numbers; `sample` draws by seed and `step` alone. */
  seed: Seed
  /** Counts the draws of one seed. */
  step: number
}

/**
 * One row of `SampleArgs.params`: floats, and integers as their bits.
 *
 * Throws `ERR_ZC_ARGUMENT` for a field that is no number.
 */
export function packSampleParams(params: SampleParams): Float32Array {
  checkArguments(params, 'params')
  checkArguments(params.seed, 'seed')
  const { temperature, topP, minP, repetitionPenalty, topK, step } = params
  const { lo, hi } = params.seed
  const floats = { temperature, topP, minP, repetitionPenalty }
  const integers = { topK, lo, hi, step }
  for (const [name, value] of Object.entries({ ...floats, ...integers })) checkNumber(name, value)
  const row = new Float32Array(SAMPLE_PARAMS)
  row.set([temperature, topP, minP, repetitionPenalty])
  new Uint32Array(row.buffer).set([topK, lo >>> 0, hi >>> 0, step >>> 0], 4)
  return row
}

/** Arguments of `sample`. */
export interface SampleArgs {
  /** (n, vocab_size) f32. */
  logits: Tensor
  /** (n, SAMPLE_PARAMS) f32, rows made by `packSampleParams`. */
  params: Tensor
  /**
   * (n_contexts, vocab_size) u8, in and out: nonzero for tokens of a context; the chosen one is
   * marked.
   */
  seen: Tensor
  /** (n) i32: the context of each row, -1 for none (no penalty, no mark). */
  contexts: Tensor
  /** (n) i32, out; -1 where the logits hold NaN or +inf. */
  ids: Tensor
  /** (n) f32, out: natural log of the probability of the chosen token. */
  logprobs: Tensor
}

/**
 * The next token of each row, and the log-probability that the model gave it (after repetition
 * penalty and temperature, before any truncation). Greedy ties go to the lowest id. The random
 * number is a function of seed and step alone.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`. Source: top-p arXiv 1904.09751, min-p arXiv 2407.01082,
 * repetition penalty arXiv 1909.05858 §4.1.
 */
export function sample(args: SampleArgs): void {
  checkArguments(args)
  loadAddon().sample(
    handleOf(args.logits),
    handleOf(args.params),
    handleOf(args.seen),
    handleOf(args.contexts),
    handleOf(args.ids),
    handleOf(args.logprobs),
  )
}
