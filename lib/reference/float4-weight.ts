import { unpackInt4Codes } from './int4-weight.js'

/** What the codes of float4 e2m1 say; from 8 on they are negative. */
const MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6] as const

/** float4 e2m1 of a code, 0 to 15 (OCP Microscaling Formats 1.0, §5.3.3). */
export function float4ToNumber(code: number): number {
  const magnitude = MAGNITUDES[code & 7] as number
  return code < 8 ? magnitude : -magnitude
}

/** float8 e8m0 of a byte: 2^(byte - 127), 255 is NaN (OCP Microscaling Formats 1.0, §5.4.1). */
export function float8PowerToNumber(byte: number): number {
  return byte === 255 ? Number.NaN : 2 ** (byte - 127)
}

/**
 * What a weight in MXFP4 stands for: (n, k), whose rows have a power of two for each 32 elements.
 *
 * - `weight` (n, k / 2): codes, packed as `packInt4Codes` does; `scales` (n, k / 32): bytes of float8 e8m0
 */
export function dequantizeFloat4Weight({
  weight,
  scales,
}: {
  weight: ArrayLike<number>
  scales: ArrayLike<number>
}): Float64Array {
  return Float64Array.from(unpackInt4Codes(weight), (code, i) => {
    return float4ToNumber(code) * float8PowerToNumber(scales[Math.floor(i / 32)] as number)
  })
}
