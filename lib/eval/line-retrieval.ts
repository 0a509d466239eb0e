import { ZipCacheError } from '../errors.js'
import type { PolicySpec } from '../policy/index.js'
import { deriveSeed, toSeed, uniformInteger } from '../random.js'
import { generateLineRetrieval, type LineRetrievalPrompt } from './line-retrieval-prompt.js'
import type { SubjectModel, SubjectSequence, SubjectTokenizer } from './subject.js'

export {
  generateLineRetrieval,
  type LineRetrievalOptions,
  type LineRetrievalPrompt,
} from './line-retrieval-prompt.js'

/**
 * When the question is asked: `inside` the prompt, as in the paper, so that attention of the
 * prefill, which is exact, still sees it with the records; or `after` the records were compressed,
 * as a next turn, which has nothing but the compressed cache to look at.
 */
export type AskMode = 'inside' | 'after'

/** What one policy reached at one number of lines. */
export interface LineRetrievalRow {
  readonly policy: string
  readonly lines: number
  readonly questions: number
  /** Percent of the questions answered with all five digits right. */
  readonly accuracy: number
  /** Mean over the questions of fp16 bytes / resident bytes, after the last answer token. */
  readonly ratio: number
  /** Mean over the questions of the sequence's resident bytes, after the last answer token. */
  readonly bytes: number
  readonly ask: AskMode
}

/** Options of `evaluateLineRetrieval`. */
export interface LineRetrievalEvaluation {
  readonly model: SubjectModel
  /** Record lines of the prompts, one row each. */
  readonly lines: readonly number[]
  /** Prompts for each number of lines. */
  readonly questions: number
  /** Any integer; the same seed gives the same prompts and probes. */
  readonly seed: number
  readonly policies: readonly PolicySpec[]
  /** Default `inside`. */
  readonly ask?: AskMode | undefined
  readonly signal?: AbortSignal | undefined
  /** Called after each answer. */
  readonly onProgress?: ((progress: { done: number; total: number }) => void) | undefined
}

/** The answer to one prompt and what its cache took. */
export interface LineRetrievalAnswer {
  /** The five digits, or null where the model gave none. */
  readonly number: string | null
  /** What the model wrote, up to the fifth digit. */
  readonly text: string
}

/** Tokens beyond the right answer's before a model is taken to have missed. */
const kExtraAnswerTokens = 3
const kMaxSeed = 2 ** 48

/**
 * Asks every policy the same line-retrieval questions, greedily:
 *
 *     accuracy = 100 * hits / questions,   a hit: all five digits right
 *
 * One row for each number of lines and policy, in the order given.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an option out of its range, `ERR_ZC_TOKENIZER` if the model
 * has no tokenizer, `ERR_ZC_CONTEXT_LENGTH` if a prompt is longer than the model's context, and
 * with `signal.reason` when aborted.
 *
 * Source: ZipCache (arXiv 2405.14256) §5, Fig. 5.
 */
export async function evaluateLineRetrieval(
  options: LineRetrievalEvaluation,
): Promise<{ rows: LineRetrievalRow[] }> {
  const { model, lines, questions, policies, ask = 'inside', signal, onProgress } = options
  check('lines', lines.length > 0, 'has none, expected at least one number of lines')
  check('policies', policies.length > 0, 'has none, expected at least one policy')
  check(
    'questions',
    Number.isInteger(questions) && questions > 0,
    `is ${questions}, expected a whole number above 0`,
  )
  check('ask', ask === 'inside' || ask === 'after', `is ${ask}, expected inside or after`)
  const tokenizer = requireTokenizer(model)

  const total = lines.length * questions * policies.length
  let done = 0
  const rows: LineRetrievalRow[] = []
  for (const nLines of lines) {
    const seeds = deriveSeed(toSeed(options.seed), nLines)
    const tallies = policies.map(() => ({ hits: 0, ratio: 0, bytes: 0 }))
    for (let question = 0; question < questions; question++) {
      const seed = uniformInteger(seeds, question, kMaxSeed)
      const prompt = generateLineRetrieval({ lines: nLines, seed })
      for (const [p, policy] of policies.entries()) {
        signal?.throwIfAborted()
        const tally = tallies[p] as (typeof tallies)[number]
        const sequence = model.createSequence({ policy, seed })
        try {
          await prefillLineRetrieval(sequence, tokenizer, prompt, ask, signal)
          const answer = await answerLineRetrieval(sequence, tokenizer, prompt, signal)
          if (answer.number === prompt.number) tally.hits++
          tally.ratio += sequence.bytes.ratio
          tally.bytes += sequence.bytes.resident
        } finally {
          sequence.dispose()
        }
        onProgress?.({ done: ++done, total })
      }
    }
    for (const [p, { hits, ratio, bytes }] of tallies.entries()) {
      const policy = policies[p] as PolicySpec
      rows.push({
        policy: typeof policy === 'string' ? policy : JSON.stringify(policy),
        lines: nLines,
        questions,
        accuracy: (100 * hits) / questions,
        ratio: ratio / questions,
        bytes: Math.round(bytes / questions),
        ask,
      })
    }
  }
  return { rows }
}

/** The tokenizer of a model that is asked in text. Throws `ERR_ZC_TOKENIZER` if it has none. */
export function requireTokenizer(model: SubjectModel): SubjectTokenizer {
  if (model.tokenizer !== null) return model.tokenizer
  throw new ZipCacheError('ERR_ZC_TOKENIZER', 'model: has no tokenizer.json, expected one', {
    argument: 'model',
  })
}

/** Ids of a line-retrieval text; `<s>` is written in it, so that the tokenizer adds nothing. */
export function encodeLineRetrieval(tokenizer: SubjectTokenizer, text: string): number[] {
  return tokenizer.encode(text, { addSpecialTokens: false })
}

/** Brings a prompt into a sequence: at once, or the records first and then the question. */
async function prefillLineRetrieval(
  sequence: SubjectSequence,
  tokenizer: SubjectTokenizer,
  prompt: LineRetrievalPrompt,
  ask: AskMode,
  signal: AbortSignal | undefined,
): Promise<void> {
  const turns = ask === 'inside' ? [prompt.text] : [prompt.recordText, prompt.questionText]
  for (const turn of turns) await sequence.prefill(encodeLineRetrieval(tokenizer, turn), { signal })
}

/** The greedy answer of a sequence that holds a prompt, up to its fifth digit. */
export async function answerLineRetrieval(
  sequence: SubjectSequence,
  tokenizer: SubjectTokenizer,
  prompt: LineRetrievalPrompt,
  signal?: AbortSignal,
): Promise<LineRetrievalAnswer> {
  const rightTokens = encodeLineRetrieval(tokenizer, prompt.answerText).length
  const maxTokens = rightTokens + kExtraAnswerTokens
  let text = ''
  for await (const token of sequence.generate(null, { maxTokens, temperature: 0, signal })) {
    text += token.text
    const number = answeredNumber(text)
    if (number !== null) return { number, text }
  }
  return { number: null, text }
}

/** The first five digits in a row, whatever spaces stand between them. */
function answeredNumber(text: string): string | null {
  return /\d{5}/.exec(text.replace(/\s+/g, ''))?.[0] ?? null
}

function check(argument: string, isGood: boolean, complaint: string): void {
  if (isGood) return
  throw new ZipCacheError('ERR_ZC_ARGUMENT', `${argument}: ${complaint}`, { argument })
}
