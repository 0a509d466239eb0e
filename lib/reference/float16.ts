/**
 * The 16-bit float formats, as numbers and as their 16 bits.
 *
 * binary16 ("f16"): 1 sign, 5 exponent, 10 fraction bits. Finite values reach 65504; below 2^-14
 * the spacing stays 2^-24 (subnormals). bfloat16 ("bf16"): the upper half of a float32.
 */

/** The largest finite f16 value, (2 - 2^-10) * 2^15. */
export const MAX_F16 = 65504

const F16_NAN = 0x7e00
const F16_INFINITY = 0x7c00

const f32Scratch = new Float32Array(1)
const u32Scratch = new Uint32Array(f32Scratch.buffer)

/** The 32 bits of a number rounded to float32. */
function f32Bits(x: number): number {
  f32Scratch[0] = x
  return u32Scratch[0]
}

/** The float32 number with these 32 bits. */
function f32FromBits(bits: number): number {
  u32Scratch[0] = bits
  return f32Scratch[0]
}

/** The integer nearest to x, halves to the even one: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2. Keeps NaN. */
export function roundHalfEven(x: number): number {
  const below = Math.floor(x)
  const fraction = x - below
  if (fraction < 0.5) return below
  if (fraction > 0.5) return below + 1
  return below % 2 === 0 ? below : below + 1
}

/** The e of |x| in [2^e, 2^(e+1)), not under -14, where f16's subnormals begin. */
function f16Exponent(x: number): number {
  return Math.max(((f32Bits(x) >>> 23) & 0xff) - 127, -14)
}

/** The distance of neighbouring f16 values around |x|. */
function f16Spacing(x: number): number {
  return 2 ** (f16Exponent(x) - 10)
}

/** The bits of a value that f16 holds exactly (or of an infinity, or of NaN). */
function f16BitsOfExact(x: number): number {
  if (Number.isNaN(x)) return F16_NAN
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0
  const magnitude = Math.abs(x)
  if (magnitude === Number.POSITIVE_INFINITY) return sign | F16_INFINITY
  if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24)
  const fraction = magnitude / f16Spacing(magnitude) - 1024
  return sign | ((f16Exponent(magnitude) + 15) << 10) | fraction
}

/** The number that 16 f16 bits stand for. */
export function f16ToF32(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >>> 10) & 0x1f
  const fraction = bits & 0x3ff
  if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  if (exponent === 0) return sign * fraction * 2 ** -24
  return sign * (1024 + fraction) * 2 ** (exponent - 25)
}

/**
 * The f16 bits nearest to float32(x), ties to even; from 65520 on infinity, NaN as 0x7e00.
 */
export function f32ToF16(x: number): number {
  const value = Math.fround(x)
  if (!Number.isFinite(value)) return f16BitsOfExact(value)
  const spacing = f16Spacing(value)
  const rounded = roundHalfEven(value / spacing) * spacing
  if (Math.abs(rounded) > MAX_F16) return f16BitsOfExact(rounded * Number.POSITIVE_INFINITY)
  // roundHalfEven(-0.1) is +0: the sign of a value that vanishes is kept, as hardware does.
  return rounded === 0
    ? f16BitsOfExact(value < 0 || Object.is(value, -0) ? -0 : 0)
    : f16BitsOfExact(rounded)
}

/**
 * The bits of the largest f16 <= float32(x), saturated to +-65504, so that `zero <= min` for every
 * stored zero in range. Never -0, since equal minima must give equal bits; NaN as 0x7e00.
 */
export function f32ToF16Down(x: number): number {
  return directed(x, Math.floor)
}

/**
 * The bits of the smallest f16 >= float32(x), saturated to +-65504, so that `scale * L` covers the
 * range. Never -0; NaN as 0x7e00.
 */
export function f32ToF16Up(x: number): number {
  return directed(x, Math.ceil)
}

function directed(x: number, round: (steps: number) => number): number {
  const value = Math.fround(x)
  if (Number.isNaN(value)) return F16_NAN
  const saturated = Math.min(Math.max(value, -MAX_F16), MAX_F16)
  const spacing = f16Spacing(saturated)
  return f16BitsOfExact(round(saturated / spacing) * spacing + 0) // + 0 turns -0 into +0
}

/** The number that 16 bf16 bits stand for. */
export function bf16ToF32(bits: number): number {
  return f32FromBits((bits << 16) >>> 0)
}

/** The bf16 bits nearest to float32(x), ties to even; NaN stays NaN. */
export function f32ToBf16(x: number): number {
  const bits = f32Bits(x)
  const notANumber = (bits & 0x7fffffff) > 0x7f800000
  // Rounding could carry a NaN's fraction into infinity: keep the upper half, made quiet.
  if (notANumber) return (bits >>> 16) | 0x40
  const lastKeptBit = (bits >>> 16) & 1
  return ((bits + 0x7fff + lastKeptBit) >>> 16) & 0xffff
}

/** Values to f16 bits, nearest even. */
export function toF16(values: ArrayLike<number>): Uint16Array {
  return Uint16Array.from(values, f32ToF16)
}

/** f16 bits to values. */
export function fromF16(bits: ArrayLike<number>): Float64Array {
  return Float64Array.from(bits, f16ToF32)
}

/** Values to bf16 bits, nearest even. */
export function toBf16(values: ArrayLike<number>): Uint16Array {
  return Uint16Array.from(values, f32ToBf16)
}

/** bf16 bits to values. */
export function fromBf16(bits: ArrayLike<number>): Float64Array {
  return Float64Array.from(bits, bf16ToF32)
}
