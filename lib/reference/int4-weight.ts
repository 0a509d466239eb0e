import { f16ToF32, f32ToF16Up, roundHalfEven } from './float16.js'

/** A weight in 4 bits: (code - zero) * scale. */
export interface Int4Weight {
  /** (n, k / 2): codes, packed as `packInt4Codes` does. */
  weight: Uint8Array
  /** (n, k / group), each a float16. */
  scales: Float64Array
  /** (n, k / group), 0 to 15. */
  zeros: Uint8Array
}

/** Where the code of element `i` of a row lies: the byte, and the lowest of its bits there. */
function placeOf(i: number): { byte: number; shift: number } {
  const [unit, inUnit] = [Math.floor(i / 64), i % 64]
  const [field, word] = [Math.floor(inUnit / 16), inUnit % 16]
  return { byte: 32 * unit + 2 * word + (field >> 1), shift: 4 * (field & 1) }
}

/**
 * Codes of 4 bits two a byte: 64 of a row are 16 little-endian words of 16 bits, of which word l holds
 * those of elements l, 16 + l, 32 + l and 48 + l, the first one in its lowest bits.
 *
 * - `codes` (n, k), 0 to 15, k a multiple of 64; returns (n, k / 2)
 */
export function packInt4Codes(codes: ArrayLike<number>): Uint8Array {
  const packed = new Uint8Array(codes.length / 2)
  for (let i = 0; i < codes.length; i++) {
    const { byte, shift } = placeOf(i)
    packed[byte] = (packed[byte] as number) | ((codes[i] as number) << shift)
  }
  return packed
}

/** The codes (n, k) that `packInt4Codes` packed. */
export function unpackInt4Codes(packed: ArrayLike<number>): Uint8Array {
  return Uint8Array.from({ length: 2 * packed.length }, (_, i) => {
    const { byte, shift } = placeOf(i)
    return ((packed[byte] as number) >> shift) & 15
  })
}

/** What a weight in 4 bits stands for: (n, k), whose rows have a scale for each `group` elements. */
export function dequantizeInt4Weight(
  weight: { [Part in keyof Int4Weight]: ArrayLike<number> },
  group: number,
): Float64Array {
  return Float64Array.from(unpackInt4Codes(weight.weight), (code, i) => {
    const at = Math.floor(i / group)
    return (code - (weight.zeros[at] as number)) * (weight.scales[at] as number)
  })
}

/** Shares of the range of a group that are tried, the whole one first. */
const SHARES = Float32Array.from({ length: 8 }, (_, i) => 1 - Math.fround(Math.fround(0.05) * i))

const { fround } = Math

/**
 * A weight in 4 bits. For each group of elements scale = (hi - lo) / 15, zero = -lo / scale and codes x /
 * scale + zero, with lo and hi its ends, 0 among them, times that one of eight shares which leaves the
 * least sum of squared errors, the largest of equal ones. The scale is rounded up to float16, all else
 * to the nearest, every step to float32. The squared errors of elements 16 apart are added in order,
 * and those 16 sums pairwise.
 *
 * - `x` (n, k), k a multiple of 64 and of the group
 */
export function quantizeInt4Weight(x: ArrayLike<number>, group: number): Int4Weight {
  const codes = new Uint8Array(x.length)
  const scales = new Float64Array(x.length / group)
  const zeros = new Uint8Array(x.length / group)
  for (let g = 0; g < scales.length; g++) {
    const own = Array.from({ length: group }, (_, i) => x[g * group + i] as number)
    if (!own.every(Number.isFinite)) {
      scales[g] = Number.NaN
      continue
    }
    const candidates = Array.from(SHARES, (share) => quantizeGroup(own, share))
    const best = candidates.reduce((least, own) => (own.error < least.error ? own : least))
    scales[g] = best.scale
    zeros[g] = best.zero
    codes.set(best.codes, g * group)
  }
  return { weight: packInt4Codes(codes), scales, zeros }
}

/** A group with so much of its range. */
function quantizeGroup(x: readonly number[], share: number) {
  const lo = fround(Math.min(0, ...x) * share)
  const hi = fround(Math.max(0, ...x) * share)
  const scale = f16ToF32(f32ToF16Up(fround(fround(hi - lo) / 15)))
  const zero = scale > 0 ? Math.min(15, roundHalfEven(fround(-lo / scale))) : 0
  const inverse = scale > 0 ? fround(1 / scale) : 0
  const codes = x.map((w) => {
    const code = roundHalfEven(fround(w * inverse)) + zero
    return Math.max(0, Math.min(code, 15))
  })
  const sums = new Float32Array(16)
  for (const [i, w] of x.entries()) {
    const error = fround(w - ((codes[i] as number) - zero) * scale)
    sums[i % 16] = (sums[i % 16] as number) + fround(error * error)
  }
  for (let half = 8; half >= 1; half /= 2) {
    for (let i = 0; i < half; i++) sums[i] = (sums[i] as number) + (sums[i + half] as number)
  }
  return { scale, zero, codes, error: sums[0] as number }
}
