import { checkInteger } from '../engine/options.js'
import { argumentError } from '../errors.js'
import { toSeed } from '../random.js'
import { expectFits } from './prompt.js'
import { drawItems, questionSeed } from './questions.js'
import type { SubjectSequence } from './subject.js'
import type { Asked, Outcome, Task, TaskSetting } from './task.js'
import { readTaskText } from './task-file.js'

/** Settings of the perplexity task. */
export interface PerplexitySpec {
  /** Which task this is. */
  readonly task: 'perplexity'
  /** A text file. */
  readonly data: string
  /** Tokens that are compressed before any is predicted; default 512. */
  readonly prefix?: number | undefined
  /** Tokens that are predicted after them; default 128. */
  readonly tokens?: number | undefined
  /**
   * Whether the tokenizer adds what its authors put before a text; default true. false for a text in
   * which it is written, as `<s>` is in the words of the models of this package.
   */
  readonly addSpecialTokens?: boolean | undefined
}

/**
 * How well text is predicted over a compressed past. The text is cut into stretches of `prefix` +
 * `tokens` tokens; of each the prefix is read at once, as a prompt, and the rest token by token, so
 * that every prediction attends to the compressed cache and windows close as they do in decoding:
 *
 *     score = -mean ln p(token),   perplexity = exp(score)
 *     kl    = mean over the tokens of sum_v p16(v) ln (p16(v) / p(v)),  p16 with a 16-bit cache
 *     agree = share of the tokens whose likeliest token is that of the 16-bit cache
 *
 * Rejects with `ERR_ZC_ARGUMENT` for a setting out of its range and for a text shorter than one
 * stretch, `ERR_ZC_IO`.
 */
export async function perplexity(spec: PerplexitySpec, setting: TaskSetting): Promise<Task> {
  const { tokenizer, model } = setting
  const prefix = checkInteger('prefix', spec.prefix ?? 512, 1, 2 ** 24)
  const tokens = checkInteger('tokens', spec.tokens ?? 128, 1, 2 ** 24)
  const addSpecialTokens = spec.addSpecialTokens ?? true
  const { text, digest } = await readTaskText(spec.data)
  // What stands before every text stands before each stretch, too.
  const [before] = addSpecialTokens ? tokenizer.encode('', { addSpecialTokens: true }) : []
  const ids = tokenizer.encode(text, { addSpecialTokens: false })
  const stretch = prefix + tokens + 1
  const nStretches = Math.floor(ids.length / stretch)
  if (nStretches === 0) {
    throw argumentError(
      'data',
      `${spec.data} has ${ids.length} tokens, expected ${stretch} at least, for prefix and tokens`,
    )
  }
  expectFits(model, stretch + 1, 'prefix')
  const seeds = toSeed(setting.seed)
  const chosen = drawItems(setting, nStretches)
  return {
    name: 'perplexity',
    facts: { data: spec.data, prefix, tokens },
    key: JSON.stringify(['perplexity', { digest, prefix, tokens, addSpecialTokens }]),
    measure: 'loss',
    count: chosen.length,
    question(index) {
      const start = (chosen[index] as number) * stretch
      const own = ids.slice(start, start + stretch)
      const seed = questionSeed(seeds, index)
      const past = [...(before === undefined ? [] : [before]), ...own.slice(0, prefix)]
      return { seed, ask: (asked) => predict(asked, past, own.slice(prefix)) }
    },
  }
}

async function predict(asked: Asked, past: number[], rest: readonly number[]): Promise<Outcome> {
  const { sequence, model, signal } = asked
  const reference = await asked.once(async () => {
    const exact = model.createSequence({ policy: 'fp16' })
    try {
      return await logProbabilities(exact, past, rest, signal)
    } finally {
      exact.dispose()
    }
  })
  const own = await logProbabilities(sequence, past, rest, signal)
  const { vocabSize } = model.config
  let loss = 0
  let kl = 0
  let agreed = 0
  for (let row = 0; row + 1 < rest.length; row++) {
    const at = row * vocabSize
    loss -= own[at + (rest[row + 1] as number)] as number
    let best = at
    let referenceBest = at
    for (let i = at; i < at + vocabSize; i++) {
      const [p16, p] = [reference[i] as number, own[i] as number]
      // A probability of 0 adds nothing, whatever the other is.
      if (p16 > Number.NEGATIVE_INFINITY) kl += Math.exp(p16) * (p16 - p)
      if (p > (own[best] as number)) best = i
      if (p16 > (reference[referenceBest] as number)) referenceBest = i
    }
    if (best === referenceBest) agreed++
  }
  const n = rest.length - 1
  return {
    score: loss / n,
    answer: null,
    expected: null,
    values: { kl: kl / n, agree: agreed / n },
  }
}

/** ln p of every token after each of `rest` but the last: (rest - 1, vocab_size). */
async function logProbabilities(
  sequence: SubjectSequence,
  past: readonly number[],
  rest: readonly number[],
  signal: AbortSignal | undefined,
): Promise<Float64Array> {
  await sequence.prefill(past, { signal })
  let all = new Float64Array(0)
  for (let row = 0; row + 1 < rest.length; row++) {
    const logits = await sequence.logits([rest[row] as number], { signal })
    if (row === 0) all = new Float64Array((rest.length - 1) * logits.length)
    const most = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
    const sum = logits.reduce((total, logit) => total + Math.exp(logit - most), 0)
    const logSum = most + Math.log(sum)
    for (let i = 0; i < logits.length; i++) {
      all[row * logits.length + i] = (logits[i] as number) - logSum
    }
  }
  return all
}
