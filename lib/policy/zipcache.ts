import { PolicyOptions } from './options.js'
import type {
  AutoRatio,
  CachePolicy,
  CodeBits,
  Compression,
  PrecisionClass,
  QuantRange,
  SaliencyMetric,
} from './policy.js'
import { type PrecisionDefaults, readPrecision } from './precision.js'
import {
  type ProbePlan,
  type ProbeShares,
  type ProbeStrategy,
  probesOf,
  promptProbes,
  readProbes,
  recentAndRandomProbes,
} from './probes.js'

/** A setting of each class of tokens. */
export interface ByClass<T> {
  /** Of salient tokens. */
  high?: T | undefined
  /** Of the others. */
  low?: T | undefined
}

/** Options that `zipcache` and its kin share. */
export interface SaliencyOptions {
  /**
   * r: the share of tokens that is salient, of [0, 1]; `auto`: chosen for each layer and KV head from
   * the prompt's attention, see `auto`.
   */
  saliencyRatio?: number | 'auto' | undefined
  /**
   * With `saliencyRatio: 'auto'`: how much is salient. Where several limits are given, the first one
   * reached decides.
   */
  auto?: {
    /**
     * The share of a layer's tokens, its heads together, that may be salient, of [0, 1]; default the
     * policy's own r where no other limit is given, else 1.
     */
    share?: number | undefined
    /**
     * The share of a layer's saliency that salient tokens are to hold, of (0, 1]; default 1. Heads are
     * weighted by how much low bits of K disturb them.
     */
    coverage?: number | undefined
    /**
     * Bytes that the cache may come to when a prompt is in it. Windows go on with what the last
     * prompt was given, beyond the budget.
     */
    budgetBytes?: number | undefined
  }
  /** What is done to saliency before tokens are ranked by it. */
  saliency?: {
    /** `position`: it is divided by its trend over the positions of the prompt. Default: nothing. */
    correct?: 'position' | undefined
  }
  /** Bits of salient tokens' K and V: 2, 3, 4 or 8. */
  highBits?: CodeBits | undefined
  /** Bits of the others. */
  lowBits?: CodeBits | undefined
  /** Bits of K alone. */
  keyBits?: ByClass<CodeBits> | undefined
  /** Bits of V alone. */
  valueBits?: ByClass<CodeBits> | undefined
  /** How the range of K's channels is found. */
  keyRange?: QuantRange | ByClass<QuantRange> | undefined
  /** How the range of V's tokens is found. */
  valueRange?: QuantRange | ByClass<QuantRange> | undefined
  /** New tokens kept in 16 bits before they are compressed together. */
  window?: number | undefined
  /** Which rows are probes: a strategy of Table 2, or shares of one's own. */
  probes?: ProbeStrategy | Partial<ProbeShares> | undefined
  /** How attention becomes saliency. */
  metric?: SaliencyMetric | undefined
}

/** Options of `zipcache`; the defaults are the paper's: r = 60%, 4 and 2 bits, a window of 100. */
export interface ZipCacheOptions extends SaliencyOptions {
  /** Which policy this is. */
  name: 'zipcache'
}

/** What a policy of this kind is where its options do not say otherwise. */
interface SaliencyDefaults extends PrecisionDefaults {
  readonly saliencyRatio: number
  readonly window: number
  /** Whether as many more of a window's tokens are salient as fill their last page. */
  readonly fillsPages?: boolean
  readonly probes: ProbeStrategy
  readonly metric: SaliencyMetric
  /** Options that this policy does not have. */
  readonly fixed?: readonly ('probes' | 'metric')[]
}

/** The paper's settings (§5.1), which the policies of its kin depart from. */
export const PAPER: SaliencyDefaults = {
  saliencyRatio: 0.6,
  window: 100,
  keyBits: { high: 4, low: 2 },
  valueBits: { high: 4, low: 2 },
  keyRange: 'minmax',
  probes: 'random+recent',
  metric: 'normalized',
}

/** Tokens of a page of the cache, which holds one class of a KV head. */
const PAGE_TOKENS = 16

const METRICS: readonly SaliencyMetric[] = ['normalized', 'accumulated', 'causal', 'locality']

/**
 * The paper: the r% of tokens with the highest normalized attention at high bits, the others at low
 * bits, for every KV head.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range. Source: ZipCache (arXiv
 * 2405.14256) Algs. 2 and 3, §5.1.
 */
export function zipcache(given: ZipCacheOptions): CachePolicy {
  return bySaliency('zipcache', given, PAPER)
}

/**
 * A policy that splits tokens by saliency, read from options over defaults.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown option or a value out of range.
 */
export function bySaliency(name: string, given: object, defaults: SaliencyDefaults): CachePolicy {
  const options = new PolicyOptions(name, given)
  const { ratio, auto } = readRatio(options, defaults.saliencyRatio)
  const window = options.number('window', defaults.window, 1, 65536, true)
  const isOption = (key: 'probes' | 'metric') => !defaults.fixed?.includes(key)
  const metric = isOption('metric')
    ? options.choice('metric', auto ? 'accumulated' : defaults.metric, METRICS)
    : defaults.metric
  const precision = readPrecision(options, defaults)
  const probes = isOption('probes')
    ? readProbes(options, defaults.probes)
    : probesOf(defaults.probes)
  const saliency = options.nested('saliency')
  const correct = saliency?.choice<'position' | null>('correct', null, ['position']) ?? null
  saliency?.done()
  options.done()
  if (metric === 'locality' && (auto || correct)) {
    throw options.error('metric', metric, 'one that looks at attention, to choose r or correct it')
  }
  const correctsPosition = correct === 'position'
  const { fillsPages = false } = defaults
  const plan = { ratio, auto, correctsPosition, window, fillsPages, metric, ...precision, probes }
  return {
    name,
    tail: 'f16',
    attention: 'packed',
    compression: saliencyCompression(plan),
    rows: null,
  }
}

/** Reads `saliencyRatio` and `auto`; under `auto`, `ratio` is that of windows before any prompt. */
function readRatio(
  options: PolicyOptions,
  fallback: number,
): { ratio: number; auto: AutoRatio | null } {
  const value = options.raw('saliencyRatio') ?? fallback
  if (value !== 'auto') {
    const auto = options.raw('auto')
    if (auto !== undefined) throw options.error('auto', auto, "saliencyRatio: 'auto' beside it")
    if (typeof value === 'number' && value >= 0 && value <= 1) return { ratio: value, auto: null }
    throw options.error('saliencyRatio', value, "a number of 0 to 1, or 'auto'")
  }
  const limits = options.nested('auto') ?? options.inside('auto', {})
  const budgetBytes = limits.optional('budgetBytes', 1, Number.MAX_SAFE_INTEGER)
  const coverage = limits.number('coverage', 1, 1e-6, 1)
  const isLimited = budgetBytes !== null || coverage < 1
  const share = limits.number('share', isLimited ? 1 : fallback, 0, 1)
  limits.done()
  return { ratio: fallback, auto: { coverage, budgetBytes, share } }
}

/** The compression of Algs. 2 and 3. */
function saliencyCompression(plan: {
  ratio: number
  auto: AutoRatio | null
  correctsPosition: boolean
  window: number
  fillsPages: boolean
  metric: SaliencyMetric
  high: PrecisionClass
  low: PrecisionClass
  probes: ProbePlan
}): Compression {
  const { ratio, auto, correctsPosition, window, metric, high, low, probes } = plan
  // As the authors' code counts: the regular share is rounded down.
  const nSalient = (nTokens: number) => nTokens - Math.floor((1 - ratio) * nTokens + 1e-9)
  const inPages = (n: number) => (plan.fillsPages ? Math.ceil(n / PAGE_TOKENS) * PAGE_TOKENS : n)
  const nOfWindow = Math.min(window, inPages(nSalient(window)))
  const looks = metric !== 'locality'
  return {
    window,
    high,
    low,
    metric,
    windowMetric: metric,
    auto,
    correctsPosition,
    usesSpecialTokens: looks && probes.prompt.special > 0,
    nSalient: (nTokens) => (nTokens === window ? nOfWindow : nSalient(nTokens)),
    promptProbes: (nTokens, seed, layer, specialRows = null) =>
      looks ? promptProbes(probes.prompt, nTokens, seed, layer, specialRows) : new Int32Array(0),
    windowProbes: (seed) => {
      if (!looks) return new Int32Array(0)
      // Which of a window's tokens will be special is not known when its probes are drawn.
      const { recent, random, special } = probes.window
      return recentAndRandomProbes(window, { recent, random: random + special }, seed, 0)
    },
  }
}
