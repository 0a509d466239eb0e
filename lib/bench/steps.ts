import type { GeneratedToken } from '../engine/generation.js'
import type { Model } from '../engine/model.js'
import type { Sequence } from '../engine/sequence.js'
import { ZipCacheError } from '../errors.js'
import { openCheckpoint } from '../model/checkpoint.js'
import { type HeadShape, headShapes, layerPlaces } from '../model/layer-kinds.js'
import { codedBytes } from '../model/weights.js'
import type { PolicySpec } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import { toSeed, uniformInteger } from '../random.js'
import { stepsByKind, type TimedStep } from './closing-steps.js'
import { type Histogram, histogram, type Summary, summarize } from './summary.js'

/** Which whole steps of one model are timed. */
export interface StepPlan {
  readonly model: Model
  /** The folder it was loaded from. */
  readonly dir: string
  /** What rows and filters call it. */
  readonly name: string
  /** Tokens that are cached before anything is decoded for the clock. */
  readonly context: number
  /** Whether all but the first hundred of them are decoded, too, window by window, not prefilled. */
  readonly generated: boolean
  /** Timed in turns. */
  readonly policies: readonly PolicySpec[]
  /** Decoded tokens of each policy; 0: none are. */
  readonly tokens: number
  /** Prefills of each policy, unless the time is up. */
  readonly prefills: number
  /** No round of prefills begins after so many milliseconds. */
  readonly budgetMs: number
  /** Of prompt and probes. */
  readonly seed: number
  readonly signal?: AbortSignal | undefined
  /** Called after each prefill and each turn of decoding. */
  readonly onProgress?: (() => void) | undefined
  /** Called between the turns: time for the roofs. */
  readonly between?: (() => Promise<void>) | undefined
}

/** One policy's prefill of a prompt, before it is held against the roofs. */
export interface PrefillTimes {
  readonly model: string
  readonly context: number
  /** `policyLabel`. */
  readonly policy: string
  readonly dtype: string
  readonly ms: Summary
  readonly bytes: number
  readonly flops: number
}

/** One policy's decoding after a prompt, before it is held against the roofs. */
export interface DecodeTimes {
  readonly model: string
  /** Tokens that are cached; each step has one more. */
  readonly context: number
  /** `policyLabel`. */
  readonly policy: string
  readonly dtype: string
  /** From one token to the next. */
  readonly ms: Summary
  readonly histogram: Histogram
  /** Steps that compress a window, against the others; null where none was timed whole. */
  readonly closing: ClosingSteps | null
  /** Bytes of the cache with these. */
  readonly cacheBytes: number
  /** fp16 bytes / these. */
  readonly cacheRatio: number
  readonly bytes: number
  readonly flops: number
}

/** What `stepsByKind` tells of steps that close a window. */
export interface ClosingSteps {
  readonly steps: number
  /** Of the step that ends the window and what of the compression falls into the next one. */
  readonly medianMs: number
  /** Median of the steps that neither end a window nor follow one that does. */
  readonly otherMs: number
}

/** Timed steps of a sequence before another's turn. */
const kTurnTokens = 26
/** Tokens at the beginning of a turn that are not timed: the first one ran ahead in another's time. */
const kTurnLead = 1
/** The first token needs no step, and the next ones find code and memory. */
const kWarmUpTokens = 4
const kHistogramBins = 32
const kGreedy = { temperature: 0, ignoreEos: true } as const
/** Of a generated context: what is prefilled. */
const kGeneratedPrompt = 100

/** Turns of decoding so many tokens. */
export function turnsOf(tokens: number): number {
  return Math.ceil(tokens / kTurnTokens)
}

/**
 * Times prefill and decode steps of one model at one prompt length, all policies in turns.
 *
 * Rejects as `Sequence.prefill` and `Sequence.generate`.
 */
export async function timeSteps(
  plan: StepPlan,
): Promise<{ prefill: PrefillTimes[]; decode: DecodeTimes[] }> {
  const { model, context, policies, tokens } = plan
  const work = await stepWork(model, plan.dir)
  const seed = toSeed(plan.seed)
  const ids = Int32Array.from({ length: context }, (_, i) =>
    uniformInteger(seed, i, model.config.vocabSize),
  )
  const sequences: Sequence[] = []
  try {
    const prefillMs = await timePrefills(plan, ids, sequences)
    const own = { model: plan.name, context, dtype: model.dtype }
    const cache = sequences.map(({ bytes }) => bytes)
    const prefill = policies.map((policy, p) => ({
      ...own,
      policy: policyLabel(policy),
      ms: summarize(prefillMs[p] as number[]),
      bytes: work.weightBytes + (cache[p]?.resident as number),
      flops: work.prefillFlops(context),
    }))
    if (tokens === 0) return { prefill, decode: [] }
    const times = await timeDecoding(plan, sequences)
    const decode = policies.map((policy, p) => {
      const turns = times[p] as TimedStep[][]
      const all = turns.flat().map(({ ms }) => ms)
      const { closing, others } = stepsByKind(turns)
      const { resident, ratio } = cache[p] as (typeof cache)[number]
      return {
        ...own,
        policy: policyLabel(policy),
        ms: summarize(all),
        histogram: histogram(all, kHistogramBins),
        closing:
          closing.length > 0
            ? {
                steps: closing.length,
                medianMs: summarize(closing).median,
                otherMs: summarize(others).median,
              }
            : null,
        cacheBytes: resident,
        cacheRatio: ratio,
        bytes: work.weightBytes + resident,
        flops: work.decodeFlops(context),
      }
    })
    return { prefill, decode }
  } finally {
    for (const sequence of sequences) sequence.dispose()
  }
}

/** Positions that `timeSteps` needs. */
export function positionsOf(context: number, tokens: number): number {
  return context + (tokens === 0 ? 0 : decodedTokens(tokens))
}

function decodedTokens(tokens: number): number {
  return kWarmUpTokens + turnsOf(tokens) * kTurnLead + tokens
}

/** Fills `sequences`, one a policy, and says how long each prefill took. */
async function timePrefills(
  plan: StepPlan,
  ids: Int32Array,
  sequences: Sequence[],
): Promise<number[][]> {
  const { model, context, generated, policies, prefills, budgetMs, signal } = plan
  const { onProgress, between } = plan
  const nPrompt = generated ? Math.min(kGeneratedPrompt, context) : context
  const aborting = signal ? { signal } : {}
  const times = policies.map((): number[] => [])
  const begin = performance.now()
  for (let round = 0; round < prefills; round++) {
    for (const [p, policy] of policies.entries()) {
      signal?.throwIfAborted()
      sequences[p]?.dispose()
      const sequence = model.createSequence({ policy, seed: plan.seed })
      sequences[p] = sequence
      const start = performance.now()
      await sequence.prefill(ids.subarray(0, nPrompt), aborting)
      times[p]?.push(performance.now() - start)
      if (nPrompt < context) await decodeUntil(sequence, context, aborting)
      onProgress?.()
    }
    await between?.()
    if (performance.now() - begin > budgetMs) break
  }
  return times
}

/** Decodes until so many tokens are cached; the last of a stream never is. */
async function decodeUntil(
  sequence: Sequence,
  context: number,
  aborting: { signal?: AbortSignal },
) {
  const maxTokens = context - sequence.length + 1
  const stream = sequence.generate(null, { maxTokens, ...kGreedy, ...aborting })
  await take(stream, maxTokens)
  await stream.return()
}

/**
 * One stream of tokens a sequence, read in turns: a step is timed as its reader sees it, from one
 * token to the next. Each sequence's turns.
 */
async function timeDecoding(
  plan: StepPlan,
  sequences: readonly Sequence[],
): Promise<TimedStep[][][]> {
  const { tokens, signal, onProgress, between } = plan
  const options = {
    maxTokens: decodedTokens(tokens),
    ...kGreedy,
    ...(signal ? { signal } : {}),
  }
  const streams = sequences.map((sequence) => sequence.generate(null, options))
  const times = sequences.map((): TimedStep[][] => [])
  try {
    for (const stream of streams) await take(stream, kWarmUpTokens)
    for (let done = 0; done < tokens; done += kTurnTokens) {
      for (const [s, stream] of streams.entries()) {
        await take(stream, kTurnLead)
        const turn: TimedStep[] = []
        for (let step = 0; step < Math.min(kTurnTokens, tokens - done); step++) {
          const before = compressedTokens(sequences[s] as Sequence)
          const start = performance.now()
          await take(stream, 1)
          const ms = performance.now() - start
          const isClosing = compressedTokens(sequences[s] as Sequence) !== before
          turn.push({ ms, closing: isClosing ? 1 : 0 })
        }
        times[s]?.push(turn)
        onProgress?.()
      }
      await between?.()
    }
  } finally {
    for (const stream of streams) await stream.return()
  }
  return times
}

async function take(stream: AsyncGenerator<GeneratedToken>, count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const { done } = await stream.next()
    if (done) throw new ZipCacheError('ERR_ZC_INTERNAL', 'generate: ended before its last token')
  }
}

function compressedTokens(sequence: Sequence): number {
  return sequence.segments.reduce((sum, { nTokens }) => sum + nTokens, 0)
}

/** What a step of a model must read and compute. */
async function stepWork(model: Model, dir: string) {
  const { config, dtype, weights } = model
  const { tensors } = await openCheckpoint(dir)
  // A step reads one row of an embedding, and all of it where it is the output projection too.
  const isLookedUp = (name: string) =>
    name.endsWith('embed_tokens_per_layer.weight') ||
    (!config.tieWordEmbeddings && name.endsWith('embed_tokens.weight'))
  let weightBytes = 0
  let products = 0
  for (const [name, { shape, sizeBytes }] of tensors) {
    if (isLookedUp(name)) continue
    const length = shape.reduce((all, size) => all * size, 1)
    const isMatrix = shape.length === 2
    // bf16 rounds the weights; else they stay as they are in the file.
    if (isMatrix && weights !== 'stored') weightBytes += codedBytes(weights, shape)
    else weightBytes += dtype === 'bf16' ? 2 * length : sizeBytes
    if (isMatrix) products += length
  }
  const head = config.vocabSize * config.hiddenSize
  const shapes = headShapes(config)
  const headDims = layerPlaces(config).map(({ isRecurrent, shape }) =>
    isRecurrent ? 0 : (shapes[shape] as HeadShape).headDim,
  )
  const attention = 4 * config.nHeads * headDims.reduce((sum, headDim) => sum + headDim, 0)
  return {
    weightBytes,
    decodeFlops: (n: number) => 2 * products + attention * n,
    // Logits are computed after the last token alone.
    prefillFlops: (n: number) =>
      2 * n * (products - head) + 2 * head + attention * ((n * (n + 1)) / 2),
  }
}
