import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from './float16.js'

/** The float dtypes a tensor can have. */
export type FloatDtype = 'f32' | 'f16' | 'bf16'

/**
 * Rounds values to what a tensor of `dtype` can hold, nearest even: the value a `convert` to that
 * dtype and back gives.
 *
 * - `x` (n)
 * - returns (n)
 */
export function convert(options: { x: ArrayLike<number>; dtype: FloatDtype }): Float64Array {
  return Float64Array.from(options.x, rounding(options.dtype))
}

function rounding(dtype: FloatDtype): (value: number) => number {
  switch (dtype) {
    case 'f32':
      return Math.fround
    case 'f16':
      return (value) => f16ToF32(f32ToF16(value))
    case 'bf16':
      return (value) => bf16ToF32(f32ToBf16(value))
  }
}
