import type { Steps } from '../grammar/index.js'
import type { SampleParams } from '../ops/index.js'

/** Decides which tokens may come next. */
export interface TokenConstraint {
  /** Does what makes `apply` quick, and pauses every so often. */
  prepare(): Steps
  /**
   * Sets the logits of tokens that may not come next to -Infinity.
   *
   * - `logits` (vocab_size), in and out
   */
  apply(logits: Float32Array): void
  /** Takes note of the token that was chosen. */
  accept(id: number): void
  /** Tokens that are likely to come next, since hardly anything else may; often none. */
  likely(): readonly number[]
  /** Whether the text is complete and nothing can follow. */
  readonly isDone: boolean
}

/** A token and the natural log of its probability. */
export interface TokenProbability {
  /** Into the model's vocabulary. */
  readonly id: number
  /** Natural log of its probability. */
  readonly logprob: number
}

/** What changes the logits of one run beside `sample`, step by step. */
export interface LogitAdjustments {
  /** Divides positive and multiplies negative logits of tokens of the context; 1: off. */
  readonly repetitionPenalty: number
  /** Added to the logits of single tokens. */
  readonly bias: ReadonlyMap<number, number>
  /** Subtracted from the logit of every token that the run has generated. */
  readonly presencePenalty: number
  /** Subtracted once for each time that the run has generated the token. */
  readonly frequencyPenalty: number
  readonly constraint: TokenConstraint | null
  /** How many of the likeliest tokens are told with each. */
  readonly nTop: number
}

/**
 * Changes the logits of one run where `sample` cannot: in JavaScript, between the step and the
 * choice. Such a run can join a step only once its last token is known here, which is every second
 * step while others run, and its row of logits crosses to JavaScript and back. Other rows run as ever.
 */
export class LogitAdjuster {
  readonly #plan: LogitAdjustments
  /** Times that the run has generated each token. */
  readonly #counts = new Map<number, number>()
  /** Tokens of the context. */
  #seen = new Set<number>()

  constructor(plan: LogitAdjustments) {
    this.#plan = plan
  }

  /** Takes note of the context that the run begins with: thousands of tokens, looked at once. */
  begin(tokens: readonly number[]): void {
    if (this.#plan.repetitionPenalty !== 1) this.#seen = new Set(tokens)
  }

  /** Does what makes `adjust` quick, and pauses every so often. */
  *prepare(): Steps {
    if (this.#plan.constraint) yield* this.#plan.constraint.prepare()
  }

  /**
   * The logits to choose from: repetition penalty, bias, penalties, constraint, in this order.
   *
   * - `logits` (vocab_size), in and out
   */
  adjust(logits: Float32Array): void {
    const { repetitionPenalty, bias, presencePenalty, frequencyPenalty, constraint } = this.#plan
    if (repetitionPenalty !== 1) {
      for (const id of this.#seen) {
        const x = logits[id] as number
        logits[id] = x > 0 ? x / repetitionPenalty : x * repetitionPenalty
      }
    }
    for (const [id, value] of bias) logits[id] = (logits[id] as number) + value
    for (const [id, count] of this.#counts) {
      logits[id] = (logits[id] as number) - presencePenalty - frequencyPenalty * count
    }
    constraint?.apply(logits)
  }

  /** The likeliest tokens of adjusted logits, at the temperature that is drawn with. */
  top(
    logits: Float32Array,
    { temperature }: Pick<SampleParams, 'temperature'>,
  ): TokenProbability[] {
    const { nTop } = this.#plan
    if (nTop === 0) return []
    const divisor = Math.fround(temperature) || 1 // as `sample` has it
    let best = Number.NEGATIVE_INFINITY
    for (const x of logits) if (x > best) best = x
    let sum = 0
    for (const x of logits) sum += Math.exp((x - best) / divisor)
    const ids = likeliest(logits, nTop)
    return ids.map((id) => ({
      id,
      logprob: ((logits[id] as number) - best) / divisor - Math.log(sum),
    }))
  }

  /** Whether nothing can follow any more. */
  get isDone(): boolean {
    return this.#plan.constraint?.isDone ?? false
  }

  /** Whether what may come is held to something, so that it can be `likely`. */
  get isConstrained(): boolean {
    return this.#plan.constraint !== null
  }

  /** Tokens that are likely to come next, since the constraint allows hardly anything else; often none. */
  likely(): readonly number[] {
    return this.#plan.constraint?.likely() ?? []
  }

  /** Takes note of the token that was chosen. */
  accept(id: number): void {
    this.#seen.add(id)
    this.#counts.set(id, (this.#counts.get(id) ?? 0) + 1)
    this.#plan.constraint?.accept(id)
  }
}

/** Ids of the n highest logits, the highest first, the lower id first among equals. */
function likeliest(logits: Float32Array, n: number): number[] {
  const ids: number[] = []
  for (let id = 0; id < logits.length; id++) {
    const x = logits[id] as number
    if (x === Number.NEGATIVE_INFINITY) continue
    if (ids.length === n && x <= (logits[ids[n - 1] as number] as number)) continue
    let place = ids.length
    while (place > 0 && x > (logits[ids[place - 1] as number] as number)) place--
    ids.splice(place, 0, id)
    if (ids.length > n) ids.pop()
  }
  return ids
}
