import { dequantizeInt4Weight, type FloatDtype, fromF16 } from '../../lib/reference/index.js'
import { storeAs } from './random-data.js'

/** A weight of 4 bits as a tensor holds it, scales as the bits of float16. */
interface StoredInt4Weight {
  weight: Uint8Array
  scales: Uint16Array
  zeros: Uint8Array
}

/**
 * What a weight of 4 bits stands for where it meets x of a dtype: on a CPU what it says, on a GPU that
 * in bfloat16, of scales in bfloat16, with x of bf16, else in float16.
 */
export function int4Values(
  { weight, scales, zeros }: StoredInt4Weight,
  group: number,
  x: FloatDtype,
  onHost: boolean,
): Float64Array {
  const exact = { weight, zeros, scales: fromF16(scales) }
  if (onHost) return dequantizeInt4Weight(exact, group)
  const dtype = x === 'bf16' ? 'bf16' : 'f16'
  const rounded = { ...exact, scales: storeAs(dtype, exact.scales).values }
  return storeAs(dtype, dequantizeInt4Weight(rounded, group)).values
}
