import fc from 'fast-check'
import { type Bits, packCodes, packedRowBytes, unpackCodes } from '../../lib/reference'

describe('packCodes', () => {
  test('puts element 0 into the lowest bits', () => {
    const pack = (bits: Bits, codes: number[]) => [
      ...packCodes({ codes, rows: 1, channels: codes.length, bits }),
    ]
    expect(pack(2, [0, 1, 2, 3])).toEqual([0b11_10_01_00])
    expect(pack(4, [1, 15, 7])).toEqual([0xf1, 0x07])
    expect(pack(8, [200, 3])).toEqual([200, 3])
  })

  test('splits 3 bits into a plane of two and a plane of one', () => {
    // codes 0..4 in binary: 000 001 010 011 100; low pairs 0 1 2 3 | 0, top bits 0 0 0 0 1
    const packed = packCodes({ codes: [0, 1, 2, 3, 4], rows: 1, channels: 5, bits: 3 })
    expect([...packed]).toEqual([0b11_10_01_00, 0b00, 0b10000])
  })

  test('starts each row, and each plane, on a byte and leaves spare bits 0', () => {
    const packed = packCodes({ codes: [3, 3, 3, 3, 3, 3], rows: 2, channels: 3, bits: 2 })
    expect([...packed]).toEqual([0b111111, 0b111111])
    const planes = packCodes({ codes: [7, 7], rows: 2, channels: 1, bits: 3 })
    expect([...planes]).toEqual([3, 1, 3, 1])
  })

  test('counts bytes', () => {
    const widths: Bits[] = [2, 3, 4, 8]
    expect(widths.map((bits) => packedRowBytes(64, bits))).toEqual([16, 24, 32, 64])
    expect(widths.map((bits) => packedRowBytes(7, bits))).toEqual([2, 3, 4, 7])
    expect(widths.map((bits) => packedRowBytes(0, bits))).toEqual([0, 0, 0, 0])
  })

  test('is undone by unpackCodes', () => {
    fc.assert(
      fc.property(
        fc.constantFrom<Bits>(2, 3, 4, 8),
        fc.integer({ min: 0, max: 5 }),
        fc.integer({ min: 0, max: 37 }),
        fc.infiniteStream(fc.nat(255)),
        (bits, rows, channels, stream) => {
          const random = [...stream.take(rows * channels)]
          const codes = Uint8Array.from(random, (code) => code % 2 ** bits)
          const packed = packCodes({ codes, rows, channels, bits })
          expect(packed).toHaveLength(rows * packedRowBytes(channels, bits))
          expect(unpackCodes({ packed, rows, channels, bits })).toEqual(codes)
        },
      ),
      { seed: 2, numRuns: 300 },
    )
  })

  test('refuses other widths', () => {
    expect(() => packedRowBytes(8, 5 as Bits)).toThrow('bits: is 5, expected 2, 3, 4 or 8')
  })
})
