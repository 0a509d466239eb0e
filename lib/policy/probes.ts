import { type Seed, sampleWithoutReplacement } from '../random.js'

/** Shares of the tokens that become probes. */
export interface ProbeShares {
  /** The newest tokens. */
  recent: number
  /** Drawn from the others, without replacement. */
  random: number
}

/**
 * Probe tokens of [0, nTokens): the newest `recent` share and a random `random` share of the rest,
 * ascending. The newest token is always one, so that every token is seen by a probe and can be
 * scored.
 *
 * The authors' code draws with replacement and unseeded, and has no random probe below 20 tokens.
 *
 * Source: ZipCache (arXiv 2405.14256) §4.3, random + recent, and Table 2.
 */
export function recentAndRandomProbes(
  nTokens: number,
  shares: ProbeShares,
  seed: Seed,
  stream: number,
): Int32Array {
  const nRecent = Math.min(nTokens, Math.max(1, Math.floor(shares.recent * nTokens + 1e-9)))
  const nOthers = nTokens - nRecent
  const nRandom = Math.min(nOthers, Math.floor(shares.random * nTokens + 1e-9))
  const probes = new Int32Array(nRandom + nRecent)
  probes.set(sampleWithoutReplacement(nOthers, nRandom, seed, stream))
  for (let i = 0; i < nRecent; i++) probes[nRandom + i] = nOthers + i
  return probes
}
