import { loadAddon } from '../native/load.js'
import { checkArguments } from './arguments.js'
import type { Device, MappedFile } from './device.js'
import { DTYPES } from './dtype.js'
import { handleOf, type Tensor } from './tensor.js'

/** How codes lie in a file; the native enum numbers them in this order. */
export const CODE_LAYOUTS = ['f8', 'i8', 'packed', 'gptq', 'awq', 'mxfp4', 'nvfp4'] as const

/** How zero points do; the native enum numbers them in this order. */
export const ZERO_LAYOUTS = ['none', 'i8', 'packed', 'gptq', 'gptq - 1', 'awq'] as const

/** What came of `unpackWeight`; the native enum numbers it in this order. */
export const UNPACKED = ['done', 'does not fit', 'bad group', 'bad zero', 'bad scale'] as const

/** Bytes in a mapped file. */
export interface FileRange {
  /** The file. */
  readonly file: MappedFile
  /** Where they begin. */
  readonly offset: number
}

/** A quantized weight (n, k) as a checkpoint stores it: value = (code - zero) * scale. */
export interface StoredWeight {
  /**
   * Of codes; words have 32 bits, little-endian, with the first code in the lowest ones.
   *
   * - `f8`: (n, k) float8 e4m3
   * - `i8`: (n, k) signed bytes
   * - `packed`: (n, ceil(k * bits / 32)) words of compressed-tensors, of values + 2^(bits - 1)
   * - `gptq`: (ceil(k * bits / 32), n) words
   * - `awq`: (k, ceil(n / 8)) words, of eight rows in the order 0, 2, 4, 6, 1, 3, 5, 7
   * - `mxfp4`: (n, ceil(k / 32), 16) bytes of two float4 e2m1, the first in the low bits (OCP Microscaling
   *   Formats 1.0, §5.3.3)
   * - `nvfp4`: (n, ceil(k / 2)) bytes of the same
   */
  readonly layout: (typeof CODE_LAYOUTS)[number]
  /**
   * Of zero points, one for each scale.
   *
   * - `none`: they are 2^(bits - 1), or 0 with `f8`, `mxfp4` and `nvfp4`
   * - `i8`: signed bytes in the order of scales, less 2^(bits - 1)
   * - `packed`: (ceil(rows of scales * bits / 32), columns of scales) words
   * - `gptq`: (columns of scales, ceil(n * bits / 32)) words; `gptq - 1`: from which a 1 was subtracted at
   *   each code
   * - `awq`: (columns of scales, ceil(n / 8)) words, in the order of `awq` above
   */
  readonly zeroLayout: (typeof ZERO_LAYOUTS)[number]
  /** Of a code: 8, or 4 where codes lie in words or are float4. */
  readonly bits: 4 | 8
  /** Rows. */
  readonly n: number
  /** Columns. */
  readonly k: number
  /** Rows that a scale serves. */
  readonly blockRows: number
  /** Columns that a scale serves. Scales are (ceil(n / blockRows), ceil(k / blockColumns)); of `gptq` and `awq` (…, n). */
  readonly blockColumns: number
  /**
   * Type of scales; u8 are float8, with `mxfp4` e8m0: 2^(byte - 127), 255 is NaN; with `nvfp4` e4m3, to be
   * multiplied by `scaleFactor` and divided by `scaleDivisor`.
   */
  readonly scaleDtype: 'f32' | 'f16' | 'bf16' | 'u8'
  /** Of all scales of `nvfp4`, as float32. Default 1. */
  readonly scaleFactor?: number | undefined
  /** Of all scales of `nvfp4`, as float32. Default 1. */
  readonly scaleDivisor?: number | undefined
  /** Where codes lie. */
  readonly codes: FileRange
  /** Where scales lie. */
  readonly scales: FileRange
  /** Where zero points lie, but with a layout of `none`. */
  readonly zeros: FileRange | null
  /** Where it is said which column of scales serves a column, (k) i32; null: `blockColumns` says it. */
  readonly columnGroups: FileRange | null
}

/** Arguments of `unpackWeight`. */
export interface UnpackWeightArgs {
  /** What is unpacked. */
  from: StoredWeight
  /** The first row that is. */
  firstRow: number
  /** How many rows of the weight lie from one that is to the next. Default 1. */
  rowStep?: number | undefined
  /**
   * Out, as many rows as it has: (rows, k) f32 or bf16, the values; i8, codes of 8 bits with one scale for
   * all columns, where all zero points are 128; (rows, k / 2) u8, codes of 4 bits as `linear` takes them.
   */
  out: Tensor
  /** Out: (rows) f32 with an `out` of i8, (rows, k / group) f16 with one of u8, (rows, k / 32) u8 of `mxfp4`. */
  scales?: Tensor | undefined
  /** Out: (rows, k / group) u8 beside `scales` of f16. */
  zeros?: Tensor<'u8'> | undefined
  /** Out: (1) i32, the index in `UNPACKED`. But for `done`, nothing else is whole. */
  status: Tensor<'i32'>
}

/**
 * Unpacks a quantized weight from a file: by all threads of a CPU's device, and for a GPU on the host, from
 * where the result is copied. Values are rounded to the nearest, ties to even, after the product by the
 * scale. It is enqueued like an op, but cannot be recorded.
 *
 * `does not fit` is said where codes or scales cannot be what `out` needs: zero points of a weight of i8,
 * columns of one group of 4 bits that have several scales, a scale that float16 would change by more than 2^-11 of
 * its row's largest.
 *
 * Throws `ERR_ZC_SHAPE`, `ERR_ZC_DTYPE`, `ERR_ZC_ARGUMENT`; `ERR_ZC_CHECKPOINT` where a file is too short.
 */
export function unpackWeight(device: Device, args: UnpackWeightArgs): void {
  checkArguments(args)
  const { from, firstRow, rowStep = 1, out, scales, zeros, status } = args
  const at = (range: FileRange | null) => [range?.file.handle, range?.offset] as const
  loadAddon().unpackWeight(
    device.handle,
    handleOf(out),
    handleOf(scales),
    handleOf(zeros),
    handleOf(status),
    ...at(from.codes),
    ...at(from.scales),
    ...at(from.zeros),
    ...at(from.columnGroups),
    CODE_LAYOUTS.indexOf(from.layout),
    ZERO_LAYOUTS.indexOf(from.zeroLayout),
    from.bits,
    from.n,
    from.k,
    from.blockRows,
    from.blockColumns,
    DTYPES.indexOf(from.scaleDtype),
    from.scaleFactor ?? 1,
    from.scaleDivisor ?? 1,
    firstRow,
    rowStep,
  )
}
