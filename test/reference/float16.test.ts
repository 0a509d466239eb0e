import {
  bf16ToF32,
  convert,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  f32ToF16Down,
  f32ToF16Up,
  fromBf16,
  fromF16,
  roundHalfEven,
  toBf16,
  toF16,
} from '../../lib/reference'
import { randomNumbers } from '../support/random-data'

const view = new DataView(new ArrayBuffer(4))

function f32FromBits(bits: number): number {
  view.setUint32(0, bits)
  return view.getFloat32(0)
}

function f32Bits(x: number): number {
  view.setFloat32(0, x)
  return view.getUint32(0)
}

/** The float32 next to a positive one. */
const nextUp = (x: number) => f32FromBits(f32Bits(x) + 1)
const nextDown = (x: number) => f32FromBits(f32Bits(x) - 1)

/**
 * The value of f16 bits, found by moving the fields into a float32: no arithmetic shared with the
 * library.
 */
function f16ByFields(bits: number): number {
  const sign = (bits & 0x8000) << 16
  let exponent = (bits >>> 10) & 0x1f
  let fraction = bits & 0x3ff
  if (exponent === 0x1f) return f32FromBits((sign | 0x7f800000 | (fraction << 13)) >>> 0)
  if (exponent === 0) {
    if (fraction === 0) return f32FromBits(sign >>> 0)
    exponent = 1
    while ((fraction & 0x400) === 0) {
      fraction <<= 1
      exponent--
    }
    fraction &= 0x3ff
  }
  return f32FromBits((sign | ((exponent + 112) << 23) | (fraction << 13)) >>> 0)
}

/** `expect(actual).toBe(expected)`, fast enough for every bit pattern. */
function check(actual: number, expected: number, what: string, x: number) {
  if (Object.is(actual, expected)) return
  throw new Error(`${what} ${x}: is ${actual}, expected ${expected}`)
}

describe('f16', () => {
  test('decodes known values', () => {
    const known: [bits: number, value: number][] = [
      [0x0000, 0],
      [0x8000, -0],
      [0x0001, 2 ** -24],
      [0x03ff, 1023 * 2 ** -24],
      [0x0400, 2 ** -14],
      [0x3555, 0.333251953125],
      [0x3c00, 1],
      [0x3c01, 1.0009765625],
      [0xc000, -2],
      [0x7bff, 65504],
      [0xfc00, Number.NEGATIVE_INFINITY],
      [0x7e00, Number.NaN],
    ]
    for (const [bits, value] of known) {
      expect(f16ToF32(bits)).toBe(value)
      expect(f32ToF16(value)).toBe(bits)
    }
  })

  test('decodes and encodes all 65536 bit patterns', () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = f16ToF32(bits)
      check(value, f16ByFields(bits), 'decoding', bits)
      check(f32ToF16(value), Number.isNaN(value) ? 0x7e00 : bits, 'encoding', value)
    }
  })

  test('rounds between every two neighbours: nearest, ties to even, down and up', () => {
    for (let below = 0; below < 0x7bff; below++) {
      const above = below + 1
      const middle = (f16ToF32(below) + f16ToF32(above)) / 2
      const even = below % 2 === 0 ? below : above
      const around = [nextDown(middle), middle, nextUp(middle)]
      around.forEach((x, i) => {
        const expected = [below, even, above][i]
        check(f32ToF16(x), expected, 'nearest to', x)
        check(f32ToF16(-x), 0x8000 | expected, 'nearest to', -x)
      })
      for (const x of [nextUp(f16ToF32(below)), ...around, nextDown(f16ToF32(above))]) {
        check(f32ToF16Down(x), below, 'below', x)
        check(f32ToF16Up(x), above, 'above', x)
        check(f32ToF16Down(-x), 0x8000 | above, 'below', -x)
        // -0 never leaves the directed conversions
        check(f32ToF16Up(-x), below === 0 ? 0 : 0x8000 | below, 'above', -x)
      }
    }
  })

  test('keeps exact values when rounding down or up', () => {
    for (let bits = 1; bits <= 0x7bff; bits++) {
      for (const signed of [bits, bits | 0x8000]) {
        const x = f16ToF32(signed)
        check(f32ToF16Down(x), signed, 'below', x)
        check(f32ToF16Up(x), signed, 'above', x)
      }
    }
    expect([f32ToF16Down(0), f32ToF16Up(0), f32ToF16Down(-0), f32ToF16Up(-0)]).toEqual([0, 0, 0, 0])
  })

  test('overflows to infinity from 65520 on, directed conversions saturate', () => {
    expect(f32ToF16(nextDown(65520))).toBe(0x7bff)
    expect(f32ToF16(65520)).toBe(0x7c00)
    expect(f32ToF16(-1e38)).toBe(0xfc00)
    expect([65505, 1e38, Number.POSITIVE_INFINITY].map(f32ToF16Up)).toEqual([
      0x7bff, 0x7bff, 0x7bff,
    ])
    expect([65505, 1e38, Number.POSITIVE_INFINITY].map(f32ToF16Down)).toEqual([
      0x7bff, 0x7bff, 0x7bff,
    ])
    expect([-65505, -1e38].map(f32ToF16Down)).toEqual([0xfbff, 0xfbff])
    expect([-65505, -1e38].map(f32ToF16Up)).toEqual([0xfbff, 0xfbff])
  })

  test('rounds values far under its range', () => {
    expect(f32ToF16(2 ** -25)).toBe(0) // tie with 0, which is even
    expect(f32ToF16(nextUp(2 ** -25))).toBe(1)
    expect(f32ToF16(2 ** -149)).toBe(0)
    expect(f32ToF16(-(2 ** -149))).toBe(0x8000)
    expect(f32ToF16Up(2 ** -149)).toBe(1)
    expect(f32ToF16Down(-(2 ** -149))).toBe(0x8001)
  })

  test('takes the nearest of all values for random float32 patterns', () => {
    const next = randomNumbers(11)
    const values = Float64Array.from({ length: 0x7c00 }, (_, bits) => f16ByFields(bits))
    for (let i = 0; i < 20000; i++) {
      // exponents 2^-30 to 2^15, which f16 covers
      const x = f32FromBits(((97 + Math.floor(next() * 45)) << 23) | Math.floor(next() * 2 ** 23))
      let low = 0
      let high = values.length
      while (high - low > 1) {
        const middle = (low + high) >>> 1
        if (values[middle] <= x) low = middle
        else high = middle
      }
      const distances = [x - values[low], (values[low + 1] ?? 65536) - x]
      const nearest =
        distances[0] < distances[1] || (distances[0] === distances[1] && low % 2 === 0)
      check(f32ToF16(x), nearest ? low : low + 1, 'nearest to', x)
    }
  })
})

describe('bf16', () => {
  test('is the upper half of a float32', () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = bf16ToF32(bits)
      check(value, f32FromBits((bits << 16) >>> 0), 'decoding', bits)
      if (!Number.isNaN(value)) check(f32ToBf16(value), bits, 'encoding', value)
    }
  })

  test('rounds between every two neighbours, ties to even', () => {
    for (let below = 0; below < 0x7f80; below++) {
      const middle = f32FromBits((below << 16) | 0x8000)
      const even = below % 2 === 0 ? below : below + 1
      const expected = [below, even, below + 1]
      for (const [i, x] of [nextDown(middle), middle, nextUp(middle)].entries()) {
        check(f32ToBf16(x), expected[i], 'nearest to', x)
        check(f32ToBf16(-x), 0x8000 | expected[i], 'nearest to', -x)
      }
    }
  })

  test('keeps NaN and infinity', () => {
    expect(bf16ToF32(f32ToBf16(Number.NaN))).toBeNaN()
    expect(f32ToBf16(Number.NEGATIVE_INFINITY)).toBe(0xff80)
    expect(f32ToBf16(3.4028234663852886e38)).toBe(0x7f80) // rounds up past the largest bf16
  })
})

test('arrays and convert go through the same conversions', () => {
  const x = [0.1, -2, 1e-8, 70000]
  expect([...toF16(x)]).toEqual([0x2e66, 0xc000, 0, 0x7c00])
  expect([...toBf16(x)]).toEqual([0x3dcd, 0xc000, 0x322c, 0x4789])
  expect(convert({ x, dtype: 'f16' })).toEqual(fromF16(toF16(x)))
  expect(convert({ x, dtype: 'bf16' })).toEqual(fromBf16(toBf16(x)))
  expect([...convert({ x, dtype: 'f32' })]).toEqual(x.map(Math.fround))
})

test('roundHalfEven', () => {
  const cases = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999, 2.5001, -7, 1e300]
  expect(cases.map((x) => roundHalfEven(x) + 0)).toEqual([-2, -2, 0, 0, 2, 2, 2, 3, -7, 1e300])
  expect(roundHalfEven(Number.NaN)).toBeNaN()
  expect(roundHalfEven(Number.POSITIVE_INFINITY)).toBe(Number.POSITIVE_INFINITY)
  expect(roundHalfEven(Number.NEGATIVE_INFINITY)).toBe(Number.NEGATIVE_INFINITY)
})
