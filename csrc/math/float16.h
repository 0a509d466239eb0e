#pragma once

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "csrc/math/hd.h"

// Conversions between float32 and the 16-bit types on their bits, exact including subnormals.
namespace zc {

struct f16 {
  uint16_t bits;
};

struct bf16 {
  uint16_t bits;
};

ZC_HD float bits_to_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
ZC_HD uint32_t float_to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

ZC_HD float to_float(float x) { return x; }
ZC_HD float to_float(bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

// Shifting a half's exponent and mantissa into place gives the value times 2^-112; one exact
// multiplication mends normals and subnormals alike. Infinity and NaN need their exponent filled,
// and a NaN becomes a quiet one, as by the instructions that processors have for it.
ZC_HD float to_float(f16 x) {
#if defined(__CUDA_ARCH__)
  float y;  // one instruction, with the same result
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#elif defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  float value = bits_to_float(magnitude) * bits_to_float(0x77800000u);  // * 2^112
  if (magnitude >= 0x0f800000u)
    value = bits_to_float(magnitude | (magnitude > 0x0f800000u ? 0x7fc00000u : 0x7f800000u));
  return bits_to_float(float_to_bits(value) | (static_cast<uint32_t>(x.bits & 0x8000u) << 16));
#endif
}

// Round to nearest, ties to even; overflow gives infinity, NaN stays (quiet) NaN.
ZC_HD f16 to_f16(float x) {
#if defined(__CUDA_ARCH__)
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
#if defined(__F16C__)
  return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)};
#endif
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // >= 65520
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 0.5 rounds at 2^-24
    const uint32_t rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    return {static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
#endif
}

// Nearest half, ties to even, finite: what is beyond the range becomes +-65504.
ZC_HD f16 to_f16_saturated(float x) {
  const f16 h = to_f16(x);
  if ((h.bits & 0x7fffu) != 0x7c00u) return h;
  return {static_cast<uint16_t>((h.bits & 0x8000u) | 0x7bffu)};
}

ZC_HD bf16 to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// The neighbours of a finite half on the number line.
ZC_HD f16 f16_next_up(f16 h) {
  if (h.bits == 0x8000u) return {0x0001u};
  return {static_cast<uint16_t>((h.bits & 0x8000u) ? h.bits - 1 : h.bits + 1)};
}
ZC_HD f16 f16_next_down(f16 h) {
  if (h.bits == 0x0000u) return {0x8001u};
  return {static_cast<uint16_t>((h.bits & 0x8000u) ? h.bits + 1 : h.bits - 1)};
}

// Largest half <= x, saturated to +-65504. x must not be NaN.
ZC_HD f16 to_f16_down(float x) {
  if (x <= -65504.0f) return {0xfbffu};
  if (x >= 65504.0f) return {0x7bffu};
  const f16 h = to_f16_saturated(x);
  return to_float(h) > x ? f16_next_down(h) : h;
}

// Smallest half >= x, saturated to +-65504. x must not be NaN.
ZC_HD f16 to_f16_up(float x) {
  if (x <= -65504.0f) return {0xfbffu};
  if (x >= 65504.0f) return {0x7bffu};
  const f16 h = to_f16_saturated(x);
  return to_float(h) < x ? f16_next_up(h) : h;
}

template <typename T>
ZC_HD T from_float(float x);
template <>
ZC_HD float from_float<float>(float x) {
  return x;
}
template <>
ZC_HD bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}
// Activations and cached values saturate: an infinity in the cache would poison every later step.
template <>
ZC_HD f16 from_float<f16>(float x) {
  return to_f16_saturated(x);
}

}  // namespace zc
