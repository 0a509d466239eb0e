import { type Seed, sampleWithoutReplacement } from '../random.js'
import type { PolicyOptions } from './options.js'

/** Shares of the tokens that become probes. */
export interface ProbeShares {
  /** The newest tokens. */
  recent: number
  /** Drawn from the others, without replacement. */
  random: number
  /** Drawn from the special tokens and punctuation among the others. */
  special: number
}

/** Probe strategies of the paper's Table 2, each for 10% of the rows (but for `all`). */
export const PROBE_STRATEGIES = ['random+recent', 'random', 'recent', 'special', 'all'] as const

/** One of `PROBE_STRATEGIES`. */
export type ProbeStrategy = (typeof PROBE_STRATEGIES)[number]

const SHARES: Record<ProbeStrategy, ProbeShares> = {
  'random+recent': { recent: 0.05, random: 0.05, special: 0 },
  random: { recent: 0, random: 0.1, special: 0 },
  recent: { recent: 0.1, random: 0, special: 0 },
  special: { recent: 0, random: 0, special: 0.1 },
  all: { recent: 1, random: 0, special: 0 },
}

/** Shares of the probes of prompts and of windows. */
export interface ProbePlan {
  readonly prompt: ProbeShares
  readonly window: ProbeShares
}

/**
 * Reads `probes`: a strategy, or shares of one's own. Under `all`, windows draw as under
 * `random+recent`: a window keeps its probes' queries until it closes, and those of all its rows
 * would take more than its K and V.
 */
export function readProbes(options: PolicyOptions, fallback: ProbeStrategy): ProbePlan {
  const value = options.raw('probes') ?? fallback
  if (typeof value === 'object') {
    const own = options.inside('probes', value)
    const shares = {
      recent: own.number('recent', 0.05, 0, 1),
      random: own.number('random', 0.05, 0, 1),
      special: own.number('special', 0, 0, 1),
    }
    own.done()
    return { prompt: shares, window: shares }
  }
  if (!PROBE_STRATEGIES.includes(value as ProbeStrategy)) {
    const forms = `${PROBE_STRATEGIES.join(', ')}, or an object of shares`
    throw options.error('probes', value, `one of ${forms}`)
  }
  return probesOf(value as ProbeStrategy)
}

/** The probes of a strategy. */
export function probesOf(strategy: ProbeStrategy): ProbePlan {
  const prompt = SHARES[strategy]
  return { prompt, window: strategy === 'all' ? SHARES['random+recent'] : prompt }
}

/**
 * Probe rows of a prompt, ascending: the newest `recent` share, then a `special` and a `random`
 * share of the rest. The newest row is always one, so that every token is seen by a probe and can be
 * scored. Where there are fewer special tokens than wanted, random rows fill up.
 *
 * The authors' code draws with replacement and unseeded, and has no random probe below 20 tokens.
 *
 * Source: ZipCache (arXiv 2405.14256) §4.3 and Table 2.
 */
export function promptProbes(
  shares: ProbeShares,
  nTokens: number,
  seed: Seed,
  layer: number,
  specialRows: Int32Array | null,
): Int32Array {
  const nSpecial = count(shares.special, nTokens)
  if (nSpecial === 0) return recentAndRandomProbes(nTokens, shares, seed, layer)
  const nRecent = Math.min(nTokens, Math.max(1, count(shares.recent, nTokens)))
  const nOthers = nTokens - nRecent
  const special = (specialRows ?? new Int32Array(0)).filter((row) => row < nOthers)
  const chosen = new Set<number>()
  const nDrawn = Math.min(nSpecial, special.length)
  for (const i of sampleWithoutReplacement(special.length, nDrawn, seed, SPECIAL_STREAM + layer)) {
    chosen.add(special[i] as number)
  }
  const rest: number[] = []
  for (let row = 0; row < nOthers; row++) if (!chosen.has(row)) rest.push(row)
  const nRandom = Math.min(rest.length, nSpecial - nDrawn + count(shares.random, nTokens))
  for (const i of sampleWithoutReplacement(rest.length, nRandom, seed, layer)) {
    chosen.add(rest[i] as number)
  }
  for (let row = nOthers; row < nTokens; row++) chosen.add(row)
  return Int32Array.from(chosen).sort()
}

/** Streams of a prompt's seed from here on draw special tokens; layers have those before. */
const SPECIAL_STREAM = 2 ** 16

/**
 * Probe tokens of [0, nTokens): the newest `recent` share and a random `random` share of the rest,
 * ascending; the newest token always.
 *
 * Source: ZipCache (arXiv 2405.14256) §4.3, random + recent, and Table 2.
 */
export function recentAndRandomProbes(
  nTokens: number,
  shares: Pick<ProbeShares, 'recent' | 'random'>,
  seed: Seed,
  stream: number,
): Int32Array {
  const nRecent = Math.min(nTokens, Math.max(1, count(shares.recent, nTokens)))
  const nOthers = nTokens - nRecent
  const nRandom = Math.min(nOthers, count(shares.random, nTokens))
  const probes = new Int32Array(nRandom + nRecent)
  probes.set(sampleWithoutReplacement(nOthers, nRandom, seed, stream))
  for (let i = 0; i < nRecent; i++) probes[nRandom + i] = nOthers + i
  return probes
}

function count(share: number, nTokens: number): number {
  return Math.floor(share * nTokens + 1e-9)
}
