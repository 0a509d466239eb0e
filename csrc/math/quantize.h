#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/math/float16.h"
#include "csrc/math/hd.h"

// The quantizer's arithmetic: ZipCache (arXiv 2405.14256) Eq. 5 with a float minimum in place of
// the integer zero point, as in the authors' code. Every intermediate is rounded to float32
// (callers are compiled without contraction, see cpu/kernels/quantize-inl.h), so codes are
// bit-equal everywhere.
namespace zc {

// Scale and zero of one group as they are stored (float16), widened: x^ = code * scale + zero.
struct QuantParams {
  float scale;
  float zero;
};

struct Range {
  float lo;
  float hi;
};

ZC_HD float clamp_finite(float x) {
  constexpr float kMax = 1e38f;  // so that hi - lo stays finite; float16 saturates far below
  return x > kMax ? kMax : (x < -kMax ? -kMax : x);
}

// zero is rounded down and scale up, so that the stored grid covers [lo, hi].
ZC_HD QuantParams quant_params(Range range, int bits) {
  const float zero = to_float(to_f16_down(range.lo)) + 0.0f;  // never -0
  if (!(range.hi > zero)) return {0.0f, zero};
  const float levels = static_cast<float>((1 << bits) - 1);
  return {to_float(to_f16_up((range.hi - zero) / levels)), zero};
}

ZC_HD float quant_inverse(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

// clamp(rint((x - zero) * inv), 0, 2^bits - 1); NaN gives 0.
ZC_HD uint32_t quant_code(float x, float zero, float inv, int bits) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const float code = rintf((clamp_finite(x) - zero) * inv);
  if (!(code > 0.0f)) return 0;
  return static_cast<uint32_t>(code < levels ? code : levels);
}

// A row of a weight in 8 bits, w^ = code * scale with codes of -127 to 127: no zero point, so that
// a product with integers is one of integers.
inline constexpr float kWeightLevels = 127.0f;

ZC_HD float weight_scale(float max_abs) { return max_abs / kWeightLevels; }

// For a scale above 0.
ZC_HD float weight_code(float w, float scale) {
  const float code = rintf(w / scale);
  return code < kWeightLevels ? (code > -kWeightLevels ? code : -kWeightLevels) : kWeightLevels;
}

ZC_HD float dequantize_code(uint32_t code, QuantParams p) {
  return static_cast<float>(code) * p.scale + p.zero;
}

// The channel normaliser of CST, c = sqrt(max|X_c|) (Alg. 1), as stored.
ZC_HD float channel_normalizer(float max_abs) {
  const float c = to_float(to_f16_saturated(sqrtf(max_abs)));
  return c > 0.0f ? c : 1.0f;
}

}  // namespace zc
