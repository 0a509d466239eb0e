/** Element types of tensors; the native enum numbers them in this order. */
export const DTYPES = ['f32', 'f16', 'bf16', 'i32', 'u8', 'i8'] as const

/** One of `DTYPES`. */
export type DType = (typeof DTYPES)[number]

/** What a tensor of each dtype reads as: the 16-bit types as their raw bits. */
export interface TypedArrays {
  /** IEEE single precision. */
  f32: Float32Array
  /** IEEE half precision, as raw bits. */
  f16: Uint16Array
  /** The upper half of a float32, as raw bits. */
  bf16: Uint16Array
  /** Signed integers. */
  i32: Int32Array
  /** Bytes. */
  u8: Uint8Array
  /** Signed bytes. */
  i8: Int8Array
}

/** Bytes of one element. */
export const DTYPE_BYTES: Record<DType, number> = { f32: 4, f16: 2, bf16: 2, i32: 4, u8: 1, i8: 1 }

/** The class of `TypedArrays` for each dtype. */
export const TYPED_ARRAYS = {
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
  u8: Uint8Array,
  i8: Int8Array,
} as const
