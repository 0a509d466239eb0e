import { ZipCacheError } from '../errors.js'

/** The code widths the cache packs. */
export type Bits = 2 | 3 | 4 | 8

/** Bytes of one packed row of `channels` codes. */
export function packedRowBytes(channels: number, bits: Bits): number {
  return planesOf(bits).reduce((sum, plane) => sum + planeBytes(channels, plane.bits), 0)
}

/**
 * Packs codes into bytes, row by row.
 *
 * Widths 2, 4 and 8: element c occupies `bits` bits from bit c * bits on, bit 0 being the lowest of
 * byte 0. Width 3: first a plane of the low two bits, packed so, then a plane of the top bit,
 * element c at bit c; each plane starts on a byte. Unused bits are 0.
 *
 * - `codes` (rows, channels), integers in [0, 2^bits)
 * - returns (rows, packedRowBytes(channels, bits)) u8
 */
export function packCodes(options: {
  codes: ArrayLike<number>
  rows: number
  channels: number
  bits: Bits
}): Uint8Array {
  const { codes, rows, channels, bits } = options
  const rowBytes = packedRowBytes(channels, bits)
  const packed = new Uint8Array(rows * rowBytes)
  for (let row = 0; row < rows; row++) {
    let planeStart = row * rowBytes
    for (const plane of planesOf(bits)) {
      const mask = 2 ** plane.bits - 1
      for (let c = 0; c < channels; c++) {
        const part = (codes[row * channels + c] >>> plane.shift) & mask
        const bit = c * plane.bits
        packed[planeStart + (bit >>> 3)] |= part << (bit & 7)
      }
      planeStart += planeBytes(channels, plane.bits)
    }
  }
  return packed
}

/**
 * The inverse of `packCodes`.
 *
 * - `packed` (rows, packedRowBytes(channels, bits)) u8
 * - returns (rows, channels) u8
 */
export function unpackCodes(options: {
  packed: ArrayLike<number>
  rows: number
  channels: number
  bits: Bits
}): Uint8Array {
  const { packed, rows, channels, bits } = options
  const rowBytes = packedRowBytes(channels, bits)
  const codes = new Uint8Array(rows * channels)
  for (let row = 0; row < rows; row++) {
    let planeStart = row * rowBytes
    for (const plane of planesOf(bits)) {
      const mask = 2 ** plane.bits - 1
      for (let c = 0; c < channels; c++) {
        const bit = c * plane.bits
        const part = (packed[planeStart + (bit >>> 3)] >>> (bit & 7)) & mask
        codes[row * channels + c] |= part << plane.shift
      }
      planeStart += planeBytes(channels, plane.bits)
    }
  }
  return codes
}

/**
 * A plane holds `bits` bits of every code, taken from bit `shift` of it. No element crosses a byte.
 */
interface Plane {
  bits: number
  shift: number
}

function planesOf(bits: Bits): readonly Plane[] {
  switch (bits) {
    case 2:
    case 4:
    case 8:
      return [{ bits, shift: 0 }]
    case 3:
      return [
        { bits: 2, shift: 0 },
        { bits: 1, shift: 2 },
      ]
    default:
      throw new ZipCacheError('ERR_ZC_ARGUMENT', `bits: is ${bits}, expected 2, 3, 4 or 8`, {
        op: 'quantize',
        argument: 'bits',
      })
  }
}

function planeBytes(channels: number, bits: number): number {
  return Math.ceil((channels * bits) / 8)
}
