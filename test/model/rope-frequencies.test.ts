import type { RopeConfig } from '../../lib/model/config'
import { ropeFrequencies } from '../../lib/model/rope-frequencies'

/** Relative: the last bits of powers and of a few float32 operations after them. */
const kFloat32 = 4e-7

function expectClose(actual: ArrayLike<number>, expected: readonly number[]): void {
  expect(actual.length).toBe(expected.length)
  expected.forEach((value, i) => {
    const error = Math.abs((actual[i] as number) - value) / value
    expect({ i, isClose: error <= kFloat32, actual: actual[i], value }).toMatchObject({
      isClose: true,
    })
  })
}

const kYarn: Extract<RopeConfig, { type: 'yarn' }> = {
  type: 'yarn',
  theta: 10000,
  factor: 4,
  originalMaxPositions: 2048,
  attentionFactor: null,
  mscale: null,
  mscaleAllDim: null,
  betaFast: 32,
  betaSlow: 1,
  truncate: true,
}

describe('ropeFrequencies', () => {
  test('default: theta^(-2i / headDim)', () => {
    const { invFreq, attentionScale } = ropeFrequencies({ type: 'default', theta: 10000 }, 8, 99)
    expect(attentionScale).toBe(1)
    // Exact in float32: 1, and the float32 nearest to a tenth, a hundredth, a thousandth.
    expect([...invFreq]).toEqual([1, 0.1, 0.01, 0.001].map(Math.fround))
  })

  test('linear: divided by the factor', () => {
    const { invFreq } = ropeFrequencies({ type: 'linear', theta: 10000, factor: 4 }, 8, 99)
    expectClose(invFreq, [0.25, 0.025, 0.0025, 0.00025])
  })

  test('proportional: the first pairs of a whole head, the others stay', () => {
    const rope: RopeConfig = { type: 'proportional', theta: 10000, share: 0.5, factor: 4 }
    const { invFreq, attentionScale } = ropeFrequencies(rope, 8, 99)
    expect(attentionScale).toBe(1)
    expectClose(invFreq.subarray(0, 2), [0.25, 0.025])
    expect([...invFreq.subarray(2)]).toEqual([0, 0])
    // As many as are whole: of transformers, 32 channels and a share of 0.2.
    const few = ropeFrequencies({ ...rope, share: 0.2 }, 32, 99)
    expect([...few.invFreq].map((freq) => freq > 0).indexOf(false)).toBe(3)
  })

  test('llama3: kept, blended, divided', () => {
    // Of theta 10000, headDim 8 the wavelengths are 6.28, 62.8, 628.3, 6283. An original context of
    // 1000 with factors 1 and 4 keeps those below 250, divides those above 1000, and blends the
    // third: smooth = (1000 / 628.3185 - 1) / 3 = 0.1971831.
    const rope: RopeConfig = {
      type: 'llama3',
      theta: 10000,
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositions: 1000,
    }
    const smooth = (1000 / (200 * Math.PI) - 1) / 3
    expect(smooth).toBeCloseTo(0.1971831, 7)
    const blended = (1 - smooth) * (0.01 / 8) + smooth * 0.01
    const expected = [1, 0.1, blended, 0.001 / 8]
    expectClose(ropeFrequencies(rope, 8, 99).invFreq, expected)
  })

  test('yarn: a ramp over the dimensions', () => {
    // headDim 64, theta 10000, 2048 positions. The dimension that turns n times is 64 ln(2048 / (2
    // pi n)) / (2 ln 10000): 8.06 for 32 turns, 20.11 for one. Truncated: the ramp runs from 8 to
    // 21.
    const { invFreq, attentionScale } = ropeFrequencies(kYarn, 64, 8192)
    const frequency = (i: number) => 10000 ** (-i / 32)
    expectClose([invFreq[0] as number, invFreq[8] as number], [1, frequency(8)])
    const kept = 1 - (12 - 8) / (21 - 8)
    expectClose([invFreq[12] as number], [(frequency(12) / 4) * (1 - kept) + frequency(12) * kept])
    expectClose(
      [invFreq[21] as number, invFreq[31] as number],
      [frequency(21) / 4, frequency(31) / 4],
    )
    expect(attentionScale).toBeCloseTo(1.1386294, 7) // 0.1 ln 4 + 1
  })

  test('yarn: the ramp without truncation', () => {
    const dimension = (turns: number) =>
      (64 * Math.log(2048 / (turns * 2 * Math.PI))) / (2 * Math.log(10000))
    expect(dimension(32)).toBeCloseTo(8.06, 2)
    expect(dimension(1)).toBeCloseTo(20.105, 2)
    const { invFreq } = ropeFrequencies({ ...kYarn, truncate: false }, 64, 8192)
    const kept = 1 - (12 - dimension(32)) / (dimension(1) - dimension(32))
    const frequency = 10000 ** (-12 / 32)
    expectClose([invFreq[12] as number], [(frequency / 4) * (1 - kept) + frequency * kept])
  })

  test('yarn: attention factor', () => {
    const scale = (change: Partial<typeof kYarn>) =>
      ropeFrequencies({ ...kYarn, ...change }, 64, 8192).attentionScale
    expect(scale({ attentionFactor: 0.5 })).toBe(0.5)
    expect(scale({ factor: 1 })).toBe(1)
    expect(scale({ mscale: 1, mscaleAllDim: 1 })).toBe(1)
    const quotient = (0.1 * 0.75 * Math.log(40) + 1) / (0.1 * Math.log(40) + 1)
    expect(scale({ factor: 40, mscale: 0.75, mscaleAllDim: 1 })).toBeCloseTo(quotient, 12)
    expect(scale({ mscale: 0.75 })).toBeCloseTo(1.1386294, 7) // one alone is not used
  })

  test('yarn: ends that meet do not divide by zero', () => {
    const { invFreq } = ropeFrequencies({ ...kYarn, originalMaxPositions: 6 }, 64, 8192)
    expect(invFreq.every((freq) => Number.isFinite(freq) && freq > 0)).toBe(true)
  })

  test('longrope: short factors where no context is longer than the original, else long ones', () => {
    const rope: RopeConfig = {
      type: 'longrope',
      theta: 10000,
      originalMaxPositions: 4096,
      shortFactor: [1, 1, 2, 4],
      longFactor: [1, 3, 5, 8],
      attentionFactor: 1.19,
    }
    const short = ropeFrequencies(rope, 8, 4096)
    expectClose(short.invFreq, [1, 0.1, 0.01 / 2, 0.001 / 4])
    const long = ropeFrequencies(rope, 8, 4097)
    expectClose(long.invFreq, [1, 0.1 / 3, 0.01 / 5, 0.001 / 8])
    expect([short.attentionScale, long.attentionScale]).toEqual([1.19, 1.19])
  })

  test('no rope: no frequencies', () => {
    expect(ropeFrequencies(null, 64, 99).invFreq).toHaveLength(0)
  })
})
