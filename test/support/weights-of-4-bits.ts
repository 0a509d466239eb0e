import {
  dequantizeFloat4Weight,
  dequantizeInt4Weight,
  type FloatDtype,
  fromF16,
  packInt4Codes,
  toF16,
} from '../../lib/reference/index.js'
import type { DeviceTensors } from './device-tensors.js'
import { integers, normals, storeAs } from './random-data.js'

/** How many elements of a row share a scale and a zero point; of float4 32 share a power of two. */
export type Grouping = 32 | 64 | 128 | 'mxfp4'

/** All of them. */
export const groupings = [32, 64, 128, 'mxfp4'] as const satisfies readonly Grouping[]

/** Elements that share a scale. */
export function groupLength(group: Grouping): number {
  return group === 'mxfp4' ? 32 : group
}

/** A weight of 4 bits as a tensor holds it: scales are bits of float16 beside zeros, else exponents. */
export interface StoredWeightOf4Bits {
  weight: Uint8Array
  scales: Uint16Array | Uint8Array
  zeros: Uint8Array | null
}

/** A weight of so many elements that are of size 1. */
export function makeWeightOf4Bits(
  group: Grouping,
  length: number,
  seed: number,
): StoredWeightOf4Bits {
  const nGroups = length / groupLength(group)
  const weight = packInt4Codes(integers(seed, length, 16))
  if (group === 'mxfp4') {
    const scales = Uint8Array.from(integers(seed + 1, nGroups, 4), (exponent) => 123 + exponent)
    return { weight, scales, zeros: null }
  }
  const scales = toF16(normals(seed + 1, nGroups).map((s) => (1 + Math.abs(s)) / 12))
  return { weight, scales, zeros: Uint8Array.from(integers(seed + 2, nGroups, 16)) }
}

/** Its tensors: the weight (…, n, k / 2), scales and zeros (…, n, k / group) of a shape (…, n, k). */
export function tensorsOf4Bits(
  tensors: DeviceTensors,
  { weight, scales, zeros }: StoredWeightOf4Bits,
  group: Grouping,
  shape: readonly number[],
) {
  const [rows, k] = [shape.slice(0, -1), shape.at(-1) as number]
  const grid = [...rows, k / groupLength(group)]
  return {
    weight: tensors.input('u8', weight, [...rows, k / 2]),
    scales:
      scales instanceof Uint16Array
        ? tensors.input('f16', scales, grid)
        : tensors.input('u8', scales, grid),
    ...(zeros && { zeros: tensors.input('u8', zeros, grid) }),
  }
}

/**
 * What a weight of 4 bits stands for where it meets x of a dtype: on a CPU, and in float4 where bfloat16
 * is multiplied, what it says; on a GPU else that in bfloat16, of scales in bfloat16, with x of bf16, and
 * in float16 with other x.
 */
export function valuesOf4Bits(
  { weight, scales, zeros }: StoredWeightOf4Bits,
  group: Grouping,
  x: FloatDtype,
  onHost: boolean,
): Float64Array {
  if (!zeros) {
    const values = dequantizeFloat4Weight({ weight, scales })
    return onHost || x !== 'f16' ? values : storeAs('f16', values).values
  }
  const exact = { weight, zeros, scales: fromF16(scales as Uint16Array) }
  if (onHost) return dequantizeInt4Weight(exact, groupLength(group))
  const dtype = x === 'bf16' ? 'bf16' : 'f16'
  const rounded = { ...exact, scales: storeAs(dtype, exact.scales).values }
  return storeAs(dtype, dequantizeInt4Weight(rounded, groupLength(group))).values
}
