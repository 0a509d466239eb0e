#pragma once

#include <cstdint>

#include "csrc/math/float16.h"
#include "csrc/math/hd.h"

// A weight in MXFP4 (OCP Microscaling Formats 1.0): float4 e2m1, of which 32 elements of a row
// share a power of two, float8 e8m0. Codes lie in units like those of int4_weight.h.
namespace zc {

inline constexpr int kFloat4Group = 32;

// A code is a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and
// negative (section 5.3.3).
ZC_HD float float4_value(uint32_t code) {
  const int exponent = static_cast<int>(code >> 1 & 3u);
  const int mantissa = static_cast<int>(code & 1u);
  const int twice = exponent == 0 ? mantissa : (2 + mantissa) << (exponent - 1);
  const float magnitude = 0.5f * static_cast<float>(twice);
  return code & 8u ? -magnitude : magnitude;
}

// 2^(exponent - 127); 255 is NaN (section 5.4.1).
ZC_HD float float8_power(uint8_t exponent) {
  if (exponent == 0) return bits_to_float(0x00400000u);
  return bits_to_float(exponent == 255 ? 0x7fc00000u : static_cast<uint32_t>(exponent) << 23);
}

}  // namespace zc
