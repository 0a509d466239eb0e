// The 16-bit floating-point types of model files, as numbers and back. Node 20 has no Float16Array.

const bits = new Uint32Array(1)
const asFloat = new Float32Array(bits.buffer)

/** The float32 value of float16 bits. Source: IEEE 754-2019, binary16. */
export function fromF16(half) {
  const sign = half & 0x8000 ? -1 : 1
  const exponent = (half >> 10) & 31
  const fraction = half & 1023
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

/** The float16 bits nearest to a float32 value, ties to even; infinity where it is too large. */
export function toF16(value) {
  asFloat[0] = value
  const sign = (bits[0] >>> 16) & 0x8000
  const magnitude = bits[0] & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00
  // 65520 and above round to infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00
  // Below the smallest normal number, 2^-14, the grid has a step of 2^-24.
  if (magnitude < 0x38800000) return sign | roundToEven(Math.abs(asFloat[0]) * 2 ** 24)
  // 112: the difference of the exponents' biases. A carry out of the fraction raises the exponent.
  const odd = (magnitude >>> 13) & 1
  return sign | ((magnitude - (112 << 23) + 0xfff + odd) >>> 13)
}

/** The float32 value of bfloat16 bits. */
export function fromBf16(brain) {
  bits[0] = brain << 16
  return asFloat[0]
}

/** The bfloat16 bits nearest to a float32 value, ties to even. */
export function toBf16(value) {
  asFloat[0] = value
  if (Number.isNaN(value)) return (bits[0] >>> 16) | 0x40
  const odd = (bits[0] >>> 16) & 1
  return (bits[0] + 0x7fff + odd) >>> 16
}

function roundToEven(value) {
  const floor = Math.floor(value)
  const rest = value - floor
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor
}
