import fc from 'fast-check'
import {
  type Bits,
  dequantize,
  f16ToF32,
  f32ToF16,
  type QuantizeOptions,
  type QuantizeScheme,
  quantize,
  unpackCodes,
} from '../../lib/reference'
import { randomKeys, randomNumbers, randomValues } from '../support/random-data'
import { matrixShapes } from '../support/shapes'

/** quantize with the codes unpacked, as plain arrays. */
function quantized(options: QuantizeOptions) {
  const { codes, scale, zero, channel } = quantize(options)
  return {
    codes: [...unpackCodes({ packed: codes, ...options })],
    scale: [...scale],
    zero: [...zero],
    channel: [...channel],
  }
}

const row = (x: number[], bits: Bits) =>
  ({ x, rows: 1, channels: x.length, bits, scheme: 'tokenwise' }) as const

describe('quantize, numbers by hand', () => {
  test('an exact grid', () => {
    const { codes, scale, zero } = quantize(row([3, 4, 5, 6], 2))
    expect([...codes]).toEqual([0b11_10_01_00])
    expect([...scale]).toEqual([1])
    expect([...zero]).toEqual([3])
  })

  test('ties go to the even code', () => {
    // zero -1, scale 1: positions 0, 0.5, 1.5, 2.5, 3
    expect(quantized(row([-1, -0.5, 0.5, 1.5, 2], 2)).codes).toEqual([0, 0, 2, 2, 3])
  })

  test('zero is rounded down to f16, scale up', () => {
    // f16 around 0.1 goes in steps of 2^-14: 1638 of them are 0.09997…, the largest not above it.
    // (0.7 - 0.09997…) / 15 = 0.0400016… = 1310.77 * 2^-15, up to 1311.
    expect(quantized(row([0.1, 0.7], 4))).toEqual({
      codes: [0, 15],
      zero: [1638 * 2 ** -14],
      scale: [1311 * 2 ** -15],
      channel: [],
    })
  })

  test('channelwise shares over rows, tokenwise over channels, groupwise over runs of channels', () => {
    const x = [0, 10, 4, 40, 3, 16, 8, 44]
    const shape = { x, rows: 2, channels: 4, bits: 2 } as const
    expect(quantized({ ...shape, scheme: 'channelwise' })).toMatchObject({
      codes: [0, 0, 0, 0, 3, 3, 3, 3],
      scale: [1, 2, 1.333984375, 1.333984375], // 4/3 up: 1366 * 2^-10
      zero: [0, 10, 4, 40],
    })
    expect(quantized({ ...shape, scheme: 'tokenwise' })).toMatchObject({
      codes: [0, 1, 0, 3, 0, 1, 0, 3],
      scale: [13.3359375, 13.671875], // 40/3 and 41/3 up in steps of 2^-7
      zero: [0, 3],
    })
    expect(quantized({ ...shape, scheme: 'groupwise', groupSize: 2 })).toMatchObject({
      codes: [0, 3, 0, 3, 0, 3, 0, 3],
      scale: [3.333984375, 12, 1110 / 256, 12], // 10/3, 36/3, 13/3 up in steps of 2^-9 and 2^-8
      zero: [0, 4, 3, 8],
    })
  })

  test('CST divides each channel by sqrt(max) first', () => {
    // c = sqrt(16), sqrt(1); y = [1, 1], [-4, 0.25]; row 1: 4.25 / 3 = 1.41666… up to 1451 * 2^-10
    const options = { x: [4, 1, -16, 0.25], rows: 2, channels: 2, bits: 2, scheme: 'cst' } as const
    expect(quantized(options)).toEqual({
      codes: [0, 0, 0, 3],
      scale: [0, 1451 / 1024],
      zero: [1, -4],
      channel: [4, 1],
    })
    expect([...dequantize({ ...options, ...quantize(options) })]).toEqual([4, 1, -16, 0.2509765625])
  })

  test('CST takes c = 1 where a channel is 0 or its root vanishes in f16', () => {
    const options = { x: [0, 2 ** -51, 2 ** -50 * 1.01], rows: 1, channels: 3, bits: 4 } as const
    // sqrt(2^-51) < 2^-25 rounds to 0; just above 2^-25 rounds to 2^-24
    expect(quantized({ ...options, scheme: 'cst' }).channel).toEqual([1, 1, 2 ** -24])
  })

  test('constant groups have scale 0 when f16 holds the constant, and no NaN otherwise', () => {
    expect(quantized(row([2, 2, 2], 4))).toMatchObject({ codes: [0, 0, 0], scale: [0], zero: [2] })
    const third = quantized(row([1 / 3, 1 / 3], 2))
    expect(third.codes).toEqual([3, 3])
    expect(third.scale[0] * 3 + third.zero[0]).toBeCloseTo(1 / 3, 6)
  })

  test('zero is never -0, whichever zero came first', () => {
    for (const x of [
      [-0, 0],
      [0, -0],
      [-0, -0],
    ]) {
      const { zero, scale } = quantize(row(x, 4))
      expect([Object.is(zero[0], 0), Object.is(scale[0], 0)]).toEqual([true, true])
    }
  })

  test('NaN takes no part and gets code 0; infinities are the largest float32', () => {
    expect(quantized(row([Number.NaN, 1, 4], 2))).toMatchObject({
      codes: [0, 0, 3],
      scale: [1],
      zero: [1],
    })
    expect(quantized(row([Number.NaN, Number.NaN], 2))).toMatchObject({
      codes: [0, 0],
      scale: [0],
      zero: [0],
    })
    const infinite = quantized(row([Number.NEGATIVE_INFINITY, 0, Number.POSITIVE_INFINITY], 4))
    expect(infinite).toMatchObject({ codes: [0, 1, 15], scale: [65504], zero: [-65504] })
  })

  test('parameters saturate', () => {
    // positions (1e6 - 65504) / 65504 = 14.3 and 29.5
    expect(quantized(row([1e6, 2e6], 4))).toMatchObject({
      codes: [14, 15],
      scale: [65504],
      zero: [65504],
    })
    // all below the saturated zero
    expect(quantized(row([-1e6, -9e5], 4))).toMatchObject({
      codes: [0, 0],
      scale: [0],
      zero: [-65504],
    })
    const channel = quantized({ ...row([1e10], 4), scheme: 'cst' }).channel
    expect(channel).toEqual([65504])
  })

  test('empty matrices', () => {
    const empty = { x: [], rows: 0, channels: 3, bits: 2 } as const
    expect(quantized({ ...empty, scheme: 'tokenwise' })).toEqual({
      codes: [],
      scale: [],
      zero: [],
      channel: [],
    })
    expect(quantized({ ...empty, scheme: 'channelwise' })).toMatchObject({
      scale: [0, 0, 0],
      zero: [0, 0, 0],
    })
    expect(quantized({ ...empty, scheme: 'cst' })).toMatchObject({ scale: [], channel: [1, 1, 1] })
  })

  test('refuses unknown schemes and group sizes', () => {
    const options = row([1, 2, 3], 2)
    expect(() => quantize({ ...options, scheme: 'rowwise' as QuantizeScheme })).toThrow(
      expect.objectContaining({ code: 'ERR_ZC_ARGUMENT', argument: 'scheme' }),
    )
    expect(() => quantize({ ...options, scheme: 'groupwise', groupSize: 2 })).toThrow(
      'groupSize: is 2, expected a divisor of channels = 3',
    )
  })
})

describe('the range search', () => {
  // Outliers -3 and 6 around k times [0, 1, 2, 3]; the middle is 1.5, half the width 4.5.
  const around = (k: number) => [-3, 6, ...Array.from({ length: 4 * k }, (_, i) => i % 4)]

  test('weighs outliers against the bulk, by hand', () => {
    // Squared errors (bulk per set of 4, both outliers), steps of 3f from 1.5 - 4.5 f:
    //   f = 1: 2, 0   0.9: 1.49, 0.4   0.8: 1.16, 1.62   0.7: 1.01, 3.6   0.6: 1.04, 6.5   0.4: 0.2, 14.6
    // 4 sets: 0.8 wins with 6.26; 20 sets: 0.4 with 18.6.
    const few = quantized({ ...row(around(4), 2), range: { norm: 2 } })
    expect(few.zero).toEqual([-1076 / 512]) // -2.1 down in steps of 2^-9
    expect(few.scale).toEqual([1230 / 512]) // (5.1 + 2.1015625) / 3 up
    expect(few.codes.slice(0, 6)).toEqual([0, 3, 1, 1, 2, 2])

    const many = quantized({ ...row(around(20), 2), range: { norm: 2 } })
    expect(many.zero[0]).toBeCloseTo(-0.3, 3)
    expect(many.scale[0]).toBeCloseTo(1.2, 2)
    expect(many.codes.slice(0, 6)).toEqual([0, 3, 0, 1, 2, 3])
  })

  test('a high norm keeps the outliers', () => {
    // 20 sets, sixth powers: 1 costs 40, 0.9 15, 0.8 4.7 + 1.1, 0.7 1.4 + 12.1
    expect(quantized({ ...row(around(20), 2), range: { norm: 6 } }).zero).toEqual([-1076 / 512])
  })

  test('ties go to the widest range', () => {
    for (const x of [
      [5, 5, 5],
      [0, 3],
      [Number.NaN, 1],
    ]) {
      expect(quantized({ ...row(x, 2), range: { norm: 3 } })).toEqual(quantized(row(x, 2)))
    }
  })

  test('does not search a width that overflows float32', () => {
    const x = [-3e38, 1, 3e38]
    expect(quantized({ ...row(x, 2), range: { norm: 2 } })).toEqual(quantized(row(x, 2)))
  })

  test('never does worse than min and max, in its own norm', () => {
    for (const norm of [2, 3, 4, 5, 6] as const) {
      for (const bits of [2, 3, 4] as const) {
        const x = randomKeys(norm * 10 + bits, { nTokens: 200, nKvHeads: 1, headDim: 16 })
        const shape = { x, rows: 200, channels: 16, bits, scheme: 'channelwise' } as const
        const errors = (range: QuantizeOptions['range']) => {
          const restored = dequantize({ ...shape, ...quantize({ ...shape, range }) })
          const sums = new Float64Array(16)
          restored.forEach((value, i) => {
            sums[i % 16] += Math.abs(value - x[i]) ** norm
          })
          return sums
        }
        const plain = errors('minmax')
        const worse = errors({ norm }).filter((error, c) => error > plain[c] * (1 + 1e-5))
        expect([...worse]).toEqual([])
      }
    }
  })

  test('does not depend on the order of the rows', () => {
    const shape = {
      rows: 1500,
      channels: 3,
      bits: 2,
      scheme: 'channelwise',
      range: { norm: 4 },
    } as const
    const x = randomKeys(3, { nTokens: 1500, nKvHeads: 1, headDim: 3 })
    const reversed = Float32Array.from(x, (_, i) => x[(1499 - Math.floor(i / 3)) * 3 + (i % 3)])
    const { scale, zero } = quantize({ x, ...shape })
    expect(quantize({ x: reversed, ...shape })).toMatchObject({ scale, zero })
  })
})

describe('quantize, properties', () => {
  const schemes = ['channelwise', 'tokenwise', 'groupwise', 'cst'] as const
  const arbitraryCase = fc.record({
    rows: fc.integer({ min: 1, max: 20 }),
    channels: fc.integer({ min: 1, max: 9 }).map((n) => 2 * n),
    bits: fc.constantFrom<Bits>(2, 3, 4, 8),
    scheme: fc.constantFrom(...schemes),
    exponent: fc.integer({ min: -20, max: 10 }), // times 30.5 still within f16
    offset: fc.constantFrom(0, 1, -30),
    dataSeed: fc.nat(),
  })

  test('|x - x^| <= c scale / 2 inside the range, and stored parameters stay near the ideal ones', () => {
    fc.assert(
      fc.property(arbitraryCase, ({ rows, channels, bits, scheme, exponent, offset, dataSeed }) => {
        const next = randomNumbers(dataSeed)
        const x = Float32Array.from(
          { length: rows * channels },
          () => (next() - 0.5 + offset) * 2 ** exponent,
        )
        const shape = { x, rows, channels, bits, scheme, groupSize: 2 }
        const result = quantize(shape)
        const restored = dequantize({ ...shape, ...result })
        const levels = 2 ** bits - 1
        const groupOf = {
          channelwise: (i: number) => i % channels,
          tokenwise: (i: number) => Math.floor(i / channels),
          groupwise: (i: number) => Math.floor(i / 2),
          cst: (i: number) => Math.floor(i / channels),
        }[scheme]
        const groupMin = new Float64Array(result.scale.length).fill(Number.POSITIVE_INFINITY)
        const groupMax = new Float64Array(result.scale.length).fill(Number.NEGATIVE_INFINITY)
        restored.forEach((value, i) => {
          const g = groupOf(i)
          const c = scheme === 'cst' ? result.channel[i % channels] : 1
          groupMin[g] = Math.min(groupMin[g], x[i] / c)
          groupMax[g] = Math.max(groupMax[g], x[i] / c)
          // Beside half a step: float32 roundings of x / c and of the position on the grid.
          const bound = ((c * result.scale[g]) / 2) * (1 + 1e-4) + Math.abs(x[i]) * 2 ** -22
          const error = Math.abs(value - x[i])
          if (error > bound)
            throw new Error(`element ${i}: x ${x[i]}, restored ${value}, bound ${bound}`)
        })
        result.scale.forEach((scale, g) => {
          // zero lies under the minimum by one f16 step at most, and scale above the quotient by
          // one.
          const f16Step = (value: number) => Math.max(Math.abs(value) * 2 ** -10, 2 ** -24)
          const slack = f16Step(result.zero[g]) + Math.abs(groupMin[g]) * 2 ** -21
          const zeroError = groupMin[g] - result.zero[g]
          expect(zeroError >= -Math.abs(groupMin[g]) * 2 ** -21 && zeroError <= slack).toBe(true)
          const ideal = (groupMax[g] - groupMin[g]) / levels
          const largest = ideal + (2 * slack) / levels
          expect(scale >= ideal - slack && scale <= largest + f16Step(largest)).toBe(true)
        })
      }),
      { seed: 3, numRuns: 300 },
    )
  })

  test('codes lie in [0, 2^bits), parameters are f16 numbers, nothing is NaN', () => {
    const wild = fc.oneof(
      fc.float(),
      fc.constantFrom(
        Number.NaN,
        Number.POSITIVE_INFINITY,
        Number.NEGATIVE_INFINITY,
        -0,
        2 ** -149,
        7e4,
      ),
    )
    fc.assert(
      fc.property(
        fc.array(wild, { minLength: 6, maxLength: 6 }),
        fc.constantFrom<Bits>(2, 3, 4, 8),
        fc.constantFrom(...schemes),
        fc.constantFrom('minmax' as const, { norm: 2 as const }, { norm: 6 as const }),
        (x, bits, scheme, range) => {
          const shape = { x, rows: 3, channels: 2, bits, scheme, groupSize: 2, range }
          const result = quantize(shape)
          const codes = unpackCodes({ packed: result.codes, ...shape })
          expect(codes.every((code) => code < 2 ** bits)).toBe(true)
          const parameters = [...result.scale, ...result.zero, ...result.channel]
          expect(parameters.filter((value) => value !== f16ToF32(f32ToF16(value)))).toEqual([])
          expect(parameters.every(Number.isFinite)).toBe(true)
          expect(Math.min(...result.scale)).toBeGreaterThanOrEqual(0)
          expect(dequantize({ ...shape, ...result }).some(Number.isNaN)).toBe(false)
        },
      ),
      { seed: 4, numRuns: 500 },
    )
  })

  test('restores tokens of every shape better with more bits', () => {
    for (const [rows, channels] of matrixShapes) {
      const x = randomValues(rows * 1000 + channels, {
        nTokens: rows,
        nKvHeads: 1,
        headDim: channels,
      })
      const errors = ([2, 3, 4, 8] as const).map((bits) => {
        const shape = { x, rows, channels, bits, scheme: 'cst' } as const
        const restored = dequantize({ ...shape, ...quantize(shape) })
        return restored.reduce((sum, value, i) => sum + (value - x[i]) ** 2, 0)
      })
      if (rows * channels > 1) {
        expect(errors).toEqual(errors.toSorted((a, b) => b - a))
        expect(errors[3]).toBeLessThan(errors[0] / 1000 + 1e-9)
      }
    }
  })
})
