import {
  dequantizeInt4Weight,
  packInt4Codes,
  quantizeInt4Weight,
  unpackInt4Codes,
} from '../../lib/reference/index.js'

describe('packInt4Codes', () => {
  test('64 codes are 16 words of 16 bits: elements l, 16 + l, 32 + l, 48 + l in word l', () => {
    const codes = new Uint8Array(128)
    codes[0] = 1
    codes[16] = 2
    codes[32] = 3
    codes[48] = 4
    codes[64 + 63] = 15
    const packed = packInt4Codes(codes)
    expect(packed.length).toBe(64)
    expect([...packed.subarray(0, 3)]).toEqual([0x21, 0x43, 0])
    expect([...packed.subarray(61)]).toEqual([0, 0, 0xf0])
  })

  test('comes back', () => {
    const codes = Uint8Array.from({ length: 192 }, (_, i) => (7 * i + (i >> 4)) % 16)
    expect([...unpackInt4Codes(packInt4Codes(codes))]).toEqual([...codes])
  })
})

describe('quantizeInt4Weight', () => {
  /** Rows of 64 whose groups of 32 begin with these and are else 0. */
  const groupsOf = (...groups: number[][]) =>
    groups.flatMap((own) => [...own, ...new Array(32 - own.length).fill(0)])

  test('what 15 steps hold is exact', () => {
    const x = groupsOf([-4, 3.5, 0.5, -0.5, 1], [15, 7, 1])
    const own = quantizeInt4Weight(x, 32)
    expect([...own.scales]).toEqual([0.5, 1])
    expect([...own.zeros]).toEqual([8, 0])
    expect([...unpackInt4Codes(own.weight).subarray(0, 6)]).toEqual([0, 15, 9, 7, 10, 8])
    expect([...dequantizeInt4Weight(own, 32)]).toEqual(x)
  })

  test('groups of one sign, and of nothing, hold 0 exactly', () => {
    const own = quantizeInt4Weight(groupsOf([-15, -1], []), 32)
    expect([...own.scales]).toEqual([1, 0])
    expect([...own.zeros]).toEqual([15, 0])
    expect([...dequantizeInt4Weight(own, 32)]).toEqual(groupsOf([-15, -1], []))
  })

  test('an end that costs the others more is cut off', () => {
    // Of the whole range 31 elements are half a step off, of 0.95 of it 0.1, and the end 0.75.
    const own = quantizeInt4Weight(groupsOf([15, ...new Array(31).fill(7.5)], [15, 7.5]), 32)
    expect(own.scales[0]).toBeCloseTo(0.95, 3)
    expect([...unpackInt4Codes(own.weight).subarray(0, 32)]).toEqual([15, ...new Array(31).fill(8)])
    expect(own.scales[1]).toBe(1)
  })

  test('what is no finite number spoils its group alone', () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const own = quantizeInt4Weight(groupsOf([1, bad], [15, 1]), 32)
      expect([...own.scales]).toEqual([Number.NaN, 1])
    }
  })
})
