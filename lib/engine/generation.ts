import { argumentError, show, ZipCacheError } from '../errors.js'
import {
  type JsonSchema,
  QUOTE_BYTE,
  sharedGrammar,
  TokenMasker,
  TokenTrie,
  type Vocabulary,
} from '../grammar/index.js'
import type { ModelConfig } from '../model/config.js'
import { gemmaMarks } from '../model/gemma-marks.js'
import { harmonyMarks } from '../model/harmony.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import type { SampleParams } from '../ops/index.js'
import { toSeed } from '../random.js'
import {
  LogitAdjuster,
  type LogitAdjustments,
  type TokenConstraint,
  type TokenProbability,
} from './adjust-logits.js'
import { MOST_DRAFTED } from './drafts.js'
import { GemmaConstraint } from './gemma-constraint.js'
import { HarmonyConstraint, type HarmonyOptions } from './harmony-constraint.js'
import { checkInteger, checkOptions } from './options.js'
import type { Prompt } from './prompt.js'
import { single, ThoughtConstraint, type ThoughtOptions } from './thought-constraint.js'

/** How tokens are chosen, and when to stop. */
export interface GenerateOptions {
  /**
   * At most this many new tokens; default 256. Fewer, with the reason `length`, where the model's
   * context ends before, or a compressed or 16-bit cache would outgrow all of `kvMemory`.
   */
  maxTokens?: number | undefined
  /** 0, the default, always takes the most likely token. */
  temperature?: number | undefined
  /** Draw from the k most likely tokens only; 0, the default: from all. */
  topK?: number | undefined
  /** Draw from the smallest set of likeliest tokens that reaches this probability; default 1. */
  topP?: number | undefined
  /** Leave out tokens less likely than this share of the likeliest; default 0. */
  minP?: number | undefined
  /** Makes tokens of the context less likely; default 1, off. */
  repetitionPenalty?: number | undefined
  /** Subtracted from the logits of tokens generated before, -2 to 2; default 0. */
  presencePenalty?: number | undefined
  /** Subtracted once for each time that a token was generated, -2 to 2; default 0. */
  frequencyPenalty?: number | undefined
  /** Added to the logits of single tokens, by their ids, -100 to 100: `{ 42: -100 }`, or a Map. */
  logitBias?: ReadonlyMap<number, number> | Readonly<Record<number, number>> | undefined
  /** Tells so many of the likeliest tokens with each, at most 20; default 0. */
  topLogprobs?: number | undefined
  /**
   * Only JSON may be generated: `true`, any object; or by a schema of the keywords that
   * docs/server.md lists. The generation ends with it. Names and signs that a schema leaves no choice
   * about are drafted as `promptLookup` does, so that the same answer takes fewer steps.
   */
  json?: true | JsonSchema | undefined
  /** The model may think first, between these marks; beside `json` or `gemmaCalls`. Left out: these begin with the first token. */
  thoughts?: ThoughtOptions | undefined
  /**
   * As `json`, for a model that answers in OpenAI's harmony format (gpt-oss) to a prompt that ends with
   * `<|start|>assistant`: it may think first. Not beside `json`.
   */
  harmony?: HarmonyOptions | undefined
  /**
   * Only a call of one of these functions may be generated, as Gemma 4 writes it, with the JSON of its arguments
   * as `json` has it, and `thoughts` before it if they are given; the generation ends with it. Not beside `json`
   * or `harmony`.
   */
  gemmaCalls?: Readonly<Record<string, true | JsonSchema>> | undefined
  /** Same seed, same tokens; an integer, taken modulo 2^64. Default 0. */
  seed?: number | bigint | undefined
  /**
   * Drafts up to so many tokens, at most 15, from what followed the newest ones where they stood before
   * in the prompt or the answer, and runs them through the model in one step: those that it would have
   * generated itself are kept, so that the answer stays the same and comes sooner where it repeats what
   * was there. Default 0, off. Nothing is drafted under policies whose attention is `dequantized`, by
   * models with recurrent layers, and in a step of 16 rows. Beside requests that draft nothing it joins every second step, as it waits
   * for each of its own.
   *
   * On a CPU tokens are the same to the bit; on a GPU the drafts' attention may be added up in another
   * order. Source: prompt lookup decoding (A. Saxena, 2023).
   */
  promptLookup?: number | undefined
  /**
   * What the answer may repeat for the most part, as a text that is to be changed a little, or token
   * ids: drafted from as if it had followed the prompt once. `promptLookup` is 15 then, unless it is
   * given.
   */
  prediction?: Prompt | undefined
  /** Aborting rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
  /** Go on after the model's end-of-text tokens; default false. */
  ignoreEos?: boolean | undefined
  /** Texts that end the generation; they are not part of it. */
  stop?: string | readonly string[] | undefined
  /** Tokens that end the generation beside the model's own; they are not part of it. */
  stopTokens?: readonly number[] | undefined
  /**
   * The text goes on with that of the prompt: the first token keeps the space before it, which many
   * tokenizers leave out where a text begins. Default false: a text of its own.
   */
  continueText?: boolean | undefined
}

/** A new token. */
export interface GeneratedToken {
  /** Into the model's vocabulary. */
  readonly id: number
  /**
   * The text that became certain with it: '' while a character or a stop string may still be
   * incomplete, or without a tokenizer.
   */
  readonly text: string
  /** Natural log of the probability that the model gave it, before top-k, top-p and min-p. */
  readonly logprob: number
  /** The likeliest tokens in its place, where `topLogprobs` asks for them; the likeliest first. */
  readonly top?: readonly TokenProbability[]
  /** Set on a token that was drafted (`promptLookup`, `prediction`, `json`, `harmony`, `gemmaCalls`). */
  readonly isDrafted?: true
  /**
   * Set on a stop token, which is not part of the generation. It is yielded only where text was held
   * back when it came, which is then its `text`.
   */
  readonly isStop?: true
}

/** Why a generation ended: a stop token or text, or no room for more. */
export type FinishReason = 'stop' | 'length'

/** Tokens as they are generated, and why there are no more. */
export interface TokenStream extends AsyncGenerator<GeneratedToken, void, undefined> {
  /** Why it ended; null before, and when it failed or its loop was left. */
  readonly finishReason: FinishReason | null
}

/** The stream of a generator that returns why it ended. */
export function tokenStream(
  tokens: AsyncGenerator<GeneratedToken, FinishReason | null, undefined>,
): TokenStream {
  let finishReason: FinishReason | null = null
  async function* untilEnd(): AsyncGenerator<GeneratedToken, void, undefined> {
    finishReason = yield* tokens
  }
  return Object.defineProperty(untilEnd(), 'finishReason', {
    get: () => finishReason,
    enumerable: true,
  }) as TokenStream
}

/** What a generation was asked for, checked and with the defaults filled in. */
export interface GenerationPlan {
  readonly maxTokens: number
  readonly params: Omit<SampleParams, 'step'>
  readonly stopTokens: ReadonlySet<number>
  readonly stopTexts: readonly string[]
  readonly promptLookup: number
  readonly continueText: boolean
  /** null: `sample` alone decides. */
  readonly adjuster: LogitAdjuster | null
  readonly signal: AbortSignal | undefined
}

/** What `GenerateOptions` may have. */
export const GENERATE_OPTIONS: readonly string[] = [
  'maxTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logitBias',
  'topLogprobs',
  'json',
  'thoughts',
  'harmony',
  'gemmaCalls',
  'seed',
  'promptLookup',
  'prediction',
  'signal',
  'ignoreEos',
  'stop',
  'stopTokens',
  'continueText',
]

/** Throws `ERR_ZC_ARGUMENT` naming the option that is wrong. */
export function planGeneration(
  options: GenerateOptions,
  { eosTokenIds, vocabSize }: Pick<ModelConfig, 'eosTokenIds' | 'vocabSize'>,
  tokenizer: ModelTokenizer | null,
): GenerationPlan {
  checkOptions(options, GENERATE_OPTIONS)
  const stop = typeof options.stop === 'string' ? [options.stop] : options.stop
  const stopTexts = listOf('stop', stop, isStopText, 'a text, or a list of texts, none empty')
  if (stopTexts.length > 0 && !tokenizer) {
    throw argumentError('stop', 'is given, but the model has no tokenizer to find texts with')
  }
  const isTokenId = (value: unknown): value is number =>
    Number.isInteger(value) && (value as number) >= 0 && (value as number) < vocabSize
  const expected = `a list of token ids below ${vocabSize}`
  const stopTokens = listOf('stopTokens', options.stopTokens, isTokenId, expected)
  const maxTokens = checkInteger('maxTokens', options.maxTokens ?? 256, 0, 2 ** 31 - 1)
  const endTokens = new Set([...(options.ignoreEos ? [] : eosTokenIds), ...stopTokens])
  const constraint = constraintOf(options, tokenizer, endTokens, vocabSize)
  const repetitionPenalty = check('repetitionPenalty', options.repetitionPenalty ?? 1, 0.01, 100)
  const adjustments: LogitAdjustments = {
    repetitionPenalty,
    bias: checkBias(options.logitBias, vocabSize),
    presencePenalty: check('presencePenalty', options.presencePenalty ?? 0, -2, 2),
    frequencyPenalty: check('frequencyPenalty', options.frequencyPenalty ?? 0, -2, 2),
    constraint,
    nTop: checkInteger('topLogprobs', options.topLogprobs ?? 0, 0, 20),
  }
  const isAdjusted =
    adjustments.bias.size > 0 ||
    adjustments.presencePenalty !== 0 ||
    adjustments.frequencyPenalty !== 0 ||
    adjustments.nTop > 0 ||
    constraint !== null
  const fromPrediction = options.prediction === undefined ? 0 : MOST_DRAFTED
  const nDrafted = options.promptLookup ?? fromPrediction
  const promptLookup = checkInteger('promptLookup', nDrafted, 0, MOST_DRAFTED)
  return {
    maxTokens,
    adjuster: isAdjusted ? new LogitAdjuster(adjustments) : null,
    params: {
      temperature: check('temperature', options.temperature ?? 0, 0, 1000),
      topK: checkInteger('topK', options.topK ?? 0, 0, 2 ** 31 - 1),
      topP: check('topP', options.topP ?? 1, 0, 1),
      minP: check('minP', options.minP ?? 0, 0, 1),
      repetitionPenalty,
      seed: toSeed(options.seed ?? 0),
    },
    stopTokens: endTokens,
    stopTexts,
    promptLookup,
    continueText: options.continueText ?? false,
    signal: options.signal,
  }
}

function constraintOf(
  { json, thoughts, harmony, gemmaCalls }: GenerateOptions,
  tokenizer: ModelTokenizer | null,
  endTokens: ReadonlySet<number>,
  vocabSize: number,
): TokenConstraint | null {
  if (thoughts !== undefined && json === undefined && gemmaCalls === undefined) {
    throw argumentError('thoughts', 'is given without json or gemmaCalls, which they stand before')
  }
  const given = { json, harmony, gemmaCalls }
  const [option, other] = CONSTRAINTS.filter((name) => given[name] !== undefined)
  if (option === undefined) return null
  if (other !== undefined) {
    throw argumentError(option, `is given beside ${other}, an answer can be but one of them`)
  }
  if (tokenizer === null) {
    throw argumentError(option, 'is given, but the model has no tokenizer')
  }
  if (option === 'harmony') {
    checkHarmony(harmony as HarmonyOptions)
    const marks = marksOf(harmonyMarks(tokenizer), option)
    const vocabulary = vocabularyOf(tokenizer, vocabSize, option)
    return new HarmonyConstraint(harmony as HarmonyOptions, { ...vocabulary, marks, endTokens })
  }
  const vocabulary = vocabularyOf(tokenizer, vocabSize, option)
  const answer =
    option === 'json'
      ? new TokenMasker(sharedGrammar(json as true | JsonSchema), vocabulary, endTokens)
      : new GemmaConstraint(checkCalls(gemmaCalls), {
          ...vocabulary,
          marks: marksOf(gemmaMarks(tokenizer), option),
        })
  if (thoughts === undefined) return answer
  const open = checkThoughts(thoughts, vocabulary)
  return new ThoughtConstraint(thoughts, open, answer, { ...vocabulary, endTokens })
}

/** What says all of what an answer has to be. */
const CONSTRAINTS = ['json', 'harmony', 'gemmaCalls'] as const

/** Throws `ERR_ZC_ARGUMENT` where a vocabulary has no marks. */
function marksOf<T>(marks: T | null, option: string): T {
  if (marks) return marks
  throw argumentError(option, "is given, but the vocabulary lacks that format's special tokens")
}

function checkCalls(calls: GenerateOptions['gemmaCalls'] | null) {
  const isMap = typeof calls === 'object' && calls !== null && !Array.isArray(calls)
  if (isMap && Object.keys(calls).length > 0) return calls
  throw argumentError('gemmaCalls', `is ${show(calls)}, expected { name: schema }, one at least`)
}

/** The token that a thought begins with; null: the prompt has it. */
function checkThoughts(thoughts: ThoughtOptions, vocabulary: Vocabulary): number | null {
  const { open, close } = (thoughts ?? {}) as Partial<ThoughtOptions>
  const isMark = typeof close === 'string' && close.trim() !== ''
  if (!isMark || (open !== undefined && typeof open !== 'string')) {
    throw argumentError('thoughts', `is ${show(thoughts)}, expected { open, close }, two texts`)
  }
  if (open === undefined) return null
  const id = single(open, vocabulary)
  if (id !== null) return id
  throw argumentError('thoughts', `.open is ${show(open)}, expected one token of the vocabulary`)
}

function checkHarmony(harmony: HarmonyOptions): void {
  const { final, calls = {} } = (harmony ?? {}) as HarmonyOptions
  const isMap = typeof calls === 'object' && calls !== null && !Array.isArray(calls)
  const hasText = final !== undefined || (isMap && Object.keys(calls).length > 0)
  if (typeof harmony !== 'object' || !isMap || !hasText) {
    throw argumentError(
      'harmony',
      `is ${show(harmony)}, expected { final, calls }, one of them at least`,
    )
  }
}

/** One for a tokenizer. */
const vocabularies = new WeakMap<ModelTokenizer, Vocabulary>()

function vocabularyOf(tokenizer: ModelTokenizer, vocabSize: number, option: string): Vocabulary {
  let vocabulary = vocabularies.get(tokenizer)
  if (!vocabulary) {
    if (!tokenizer.knowsBytes) {
      const message = `${option}: needs a byte-level or byte-fallback vocabulary, whose single tokens have bytes of their own`
      throw new ZipCacheError('ERR_ZC_UNSUPPORTED', message, { argument: option })
    }
    const quote = gemmaMarks(tokenizer)?.quote
    const bytesOf = (id: number) => {
      const bytes = id === quote ? Uint8Array.of(QUOTE_BYTE) : tokenizer.bytesOf(id)
      // A byte by itself that no text has.
      return id !== quote && bytes?.includes(QUOTE_BYTE) ? null : bytes
    }
    vocabulary = {
      trie: new TokenTrie(vocabSize, bytesOf),
      encode: (text) => tokenizer.encode(text, { addSpecialTokens: false }),
    }
    vocabularies.set(tokenizer, vocabulary)
  }
  return vocabulary
}

function checkBias(
  given: GenerateOptions['logitBias'] = {},
  vocabSize: number,
): ReadonlyMap<number, number> {
  // An object may come from another realm, or have no prototype.
  const isPlain = Object.prototype.toString.call(given) === '[object Object]'
  // `Number('')` is 0.
  const idOf = (key: string) => (/^\d+$/.test(key) ? Number(key) : Number.NaN)
  const bias = isPlain
    ? new Map(Object.entries(given).map(([key, value]) => [idOf(key), value]))
    : (given as ReadonlyMap<number, number>)
  if (typeof bias?.get !== 'function') {
    throw argumentError(
      'logitBias',
      `is ${show(given)}, expected numbers by token ids, or a Map of them`,
    )
  }
  for (const [id, value] of bias) {
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
      throw argumentError('logitBias', `names ${id}, expected token ids below ${vocabSize}`)
    }
    check('logitBias', value, -100, 100)
  }
  return bias
}

const isStopText = (value: unknown): value is string => typeof value === 'string' && value !== ''

function listOf<T>(
  name: string,
  value: unknown,
  accepts: (element: unknown) => element is T,
  expected: string,
): T[] {
  const list = value ?? []
  if (Array.isArray(list) && list.every(accepts)) return [...list]
  throw argumentError(name, `is ${show(value)}, expected ${expected}`)
}

function check(name: string, value: unknown, min: number, max: number): number {
  if (typeof value === 'number' && value >= min && value <= max) return value
  throw argumentError(name, `is ${show(value)}, expected a number of ${min} to ${max}`)
}
