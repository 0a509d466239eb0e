import type { RopeConfig } from './rope-config.js'

/**
 * What `ropeTable` needs: an angle is `position * invFreq[i]`, and cos and sin are multiplied by
 * `attentionScale`.
 */
export interface RopeFrequencies {
  /** (rotaryDim / 2) radians per position. */
  readonly invFreq: Float32Array
  readonly attentionScale: number
}

const f32 = Math.fround

/**
 * Rotation frequencies of RoPE: theta^(-2i / rotaryDim) for i < rotaryDim / 2, then stretched for
 * longer contexts as the type says:
 * - linear: all divided by `factor`;
 * - llama3: low frequencies divided by `factor`, high ones kept, a linear blend between;
 * - yarn: the same idea with a ramp over dimensions, and cos and sin multiplied by `0.1 ln(factor)
 *   + 1`;
 * - longrope: each divided by a factor of its own, of one list up to the original context and of
 *   another where contexts may be longer, and cos and sin multiplied, too;
 * - proportional: those of the first `share` of the pairs divided by `factor`, the others 0.
 *
 * Each operation is rounded to float32, in the order of transformers, since angles of far positions
 * magnify every last bit: at position 100,000 one unit in the last place of a frequency of 1 is an
 * angle of 0.006.
 * @param rope null: nothing rotates, there are no frequencies
 * @param rotaryDim channels of a head that rotate, even
 * @param maxPositions the longest context there can be, in tokens. Rotations of a longrope follow from
 *   it and not from how long a context is now: those of its first tokens are in the cache already.
 * Source: transformers `modeling_rope_utils.py`; YaRN (arXiv 2309.00071) §3; LongRoPE (arXiv 2402.13753).
 */
export function ropeFrequencies(
  rope: RopeConfig | null,
  rotaryDim: number,
  maxPositions: number,
): RopeFrequencies {
  if (!rope) return { invFreq: new Float32Array(0), attentionScale: 1 }
  switch (rope.type) {
    case 'default':
      return { invFreq: plainFrequencies(rope.theta, rotaryDim), attentionScale: 1 }
    case 'linear': {
      const factor = f32(rope.factor)
      const invFreq = plainFrequencies(rope.theta, rotaryDim).map((freq) => freq / factor)
      return { invFreq, attentionScale: 1 }
    }
    case 'llama3':
      return { invFreq: llama3Frequencies(rope, rotaryDim), attentionScale: 1 }
    case 'yarn':
      return yarnFrequencies(rope, rotaryDim)
    case 'longrope': {
      const isLong = maxPositions > rope.originalMaxPositions
      const factors = isLong ? rope.longFactor : rope.shortFactor
      const invFreq = plainPeriods(rope.theta, rotaryDim).map(
        (period, i) => 1 / f32(f32(factors[i] as number) * period),
      )
      return { invFreq, attentionScale: rope.attentionFactor }
    }
    case 'proportional': {
      const nTurning = Math.floor((rope.share * rotaryDim) / 2)
      const factor = f32(rope.factor)
      const invFreq = plainFrequencies(rope.theta, rotaryDim).map((freq, i) =>
        i < nTurning ? freq / factor : 0,
      )
      return { invFreq, attentionScale: 1 }
    }
  }
}

/** theta^(2i / rotaryDim), the wavelengths over 2 pi. */
function plainPeriods(theta: number, rotaryDim: number): Float32Array {
  const periods = new Float32Array(rotaryDim / 2)
  const base = f32(theta)
  for (let i = 0; i < periods.length; ++i) periods[i] = base ** f32((2 * i) / rotaryDim)
  return periods
}

function plainFrequencies(theta: number, rotaryDim: number): Float32Array {
  return plainPeriods(theta, rotaryDim).map((period) => 1 / period)
}

function llama3Frequencies(
  rope: Extract<RopeConfig, { type: 'llama3' }>,
  rotaryDim: number,
): Float32Array {
  const contextLength = rope.originalMaxPositions
  const factor = f32(rope.factor)
  const low = f32(rope.lowFreqFactor)
  const range = f32(rope.highFreqFactor - rope.lowFreqFactor)
  const longestKept = f32(contextLength / rope.highFreqFactor)
  const longestBlended = f32(contextLength / rope.lowFreqFactor)
  return plainFrequencies(rope.theta, rotaryDim).map((freq) => {
    const wavelength = f32(f32(2 * Math.PI) / freq)
    if (wavelength < longestKept) return freq
    if (wavelength > longestBlended) return freq / factor
    const smooth = f32(f32(f32(contextLength / wavelength) - low) / range)
    return f32(f32(f32(1 - smooth) * freq) / factor) + f32(smooth * freq)
  })
}

function yarnFrequencies(
  rope: Extract<RopeConfig, { type: 'yarn' }>,
  rotaryDim: number,
): RopeFrequencies {
  const { originalMaxPositions, factor } = rope

  /**
   * The dimension, of rotaryDim / 2, whose wave turns `rotations` times within the original context.
   */
  const dimensionOf = (rotations: number): number =>
    (rotaryDim * Math.log(originalMaxPositions / (rotations * 2 * Math.PI))) /
    (2 * Math.log(rope.theta))
  let first = dimensionOf(rope.betaFast)
  let last = dimensionOf(rope.betaSlow)
  if (rope.truncate) {
    first = Math.floor(first)
    last = Math.ceil(last)
  }
  first = Math.max(first, 0)
  // rotaryDim - 1 and not rotaryDim / 2 - 1: so it stands in YaRN's code and in transformers.
  last = Math.min(last, rotaryDim - 1)
  if (first === last) last += 0.001

  const invFreq = plainPeriods(rope.theta, rotaryDim).map((period, i) => {
    const extrapolated = f32(1 / period)
    const interpolated = f32(1 / f32(f32(factor) * period))
    const ramp = f32(f32(i - f32(first)) / f32(last - first))
    const kept = f32(1 - Math.min(Math.max(ramp, 0), 1))
    return f32(interpolated * f32(1 - kept)) + f32(extrapolated * kept)
  })
  return { invFreq, attentionScale: rope.attentionFactor ?? yarnAttentionFactor(rope, factor) }
}

/**
 * 0.1 m ln(factor) + 1, or the quotient of two such where the config names both mscale and
 * mscale_all_dim.
 */
function yarnAttentionFactor(rope: Extract<RopeConfig, { type: 'yarn' }>, factor: number): number {
  const scaleOf = (mscale: number): number =>
    factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1
  if (rope.mscale !== null && rope.mscaleAllDim !== null) {
    return scaleOf(rope.mscale) / scaleOf(rope.mscaleAllDim)
  }
  return scaleOf(1)
}
