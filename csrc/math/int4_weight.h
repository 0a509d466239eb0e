#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/math/float16.h"
#include "csrc/math/hd.h"

// A weight in 4 bits: groups of a row's elements share a scale of float16 and a zero point of 4
// bits, w^ = (code - zero) * scale. Every intermediate is rounded to float32 (callers are compiled
// without contraction), so codes, scales and zeros are bit-equal everywhere.
namespace zc {

inline constexpr int kInt4Unit = 64;         // codes in 32 bytes
inline constexpr int kInt4Words = 16;        // 16-bit words of a unit
inline constexpr float kInt4Levels = 15.0f;  // the largest code, and the largest zero

// The bits of element i of a unit lie from this bit on in word i % kInt4Words.
ZC_HD int int4_shift(int i) { return i / kInt4Words * 4; }

struct Int4Params {
  float scale;  // as it is stored, widened
  float zero;   // 0 to 15
};

// The ends of a group, 0 among them: the zero point is a code.
struct Int4Range {
  float lo;  // 0 or less
  float hi;  // 0 or more
};

// Ranges that are tried, from the whole one down to 0.65 of it: elements beyond the ends are cut
// off, the others are nearer to a code. The one with the least sum of squared errors is taken, of
// equal ones the widest.
inline constexpr int kInt4Candidates = 8;

ZC_HD Int4Params int4_params(Int4Range range, int candidate) {
  const float kept = 1.0f - 0.05f * static_cast<float>(candidate);
  const float lo = range.lo * kept;
  const float hi = range.hi * kept;
  const float scale = to_float(to_f16_up((hi - lo) / kInt4Levels));
  if (!(scale > 0.0f)) return {0.0f, 0.0f};
  const float zero = rintf(-lo / scale);
  return {scale, zero < kInt4Levels ? zero : kInt4Levels};
}

// 1 / scale, of a group of zeros 0.
ZC_HD float int4_inverse(Int4Params p) { return p.scale > 0.0f ? 1.0f / p.scale : 0.0f; }

// 0 to 15.
ZC_HD float int4_code(float w, Int4Params p, float inverse) {
  const float code = rintf(w * inverse) + p.zero;
  return code > 0.0f ? (code < kInt4Levels ? code : kInt4Levels) : 0.0f;
}

// The square of what a code misses its element by. A group's are added in one order: those of the
// elements i, i + 16, i + 32, ... for each i below 16, and these 16 sums pairwise, i with i + 8,
// then i with i + 4, i + 2 and i + 1.
ZC_HD float int4_error(float w, float code, Int4Params p) {
  const float error = w - (code - p.zero) * p.scale;  // the product is exact
  return error * error;
}

}  // namespace zc
