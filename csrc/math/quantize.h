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

ZC_HD float dequantize_code(uint32_t code, QuantParams p) {
  return static_cast<float>(code) * p.scale + p.zero;
}

// The channel normaliser of CST, c = sqrt(max|X_c|) (Alg. 1), as stored.
ZC_HD float channel_normalizer(float max_abs) {
  const float c = to_float(to_f16_saturated(sqrtf(max_abs)));
  return c > 0.0f ? c : 1.0f;
}

// ---- range search: minimise sum |x - x^|^p over ranges shrunk about their middle ----

inline constexpr int kRangeCandidates = 7;

ZC_HD Range shrink_range(Range full, int candidate) {
  if (candidate == 0) return full;
  // 1, .9 ... .4 as float32 literals; an array would not be usable in device code.
  const float factor = candidate == 1   ? 0.9f
                       : candidate == 2 ? 0.8f
                       : candidate == 3 ? 0.7f
                       : candidate == 4 ? 0.6f
                       : candidate == 5 ? 0.5f
                                        : 0.4f;
  const float half = (full.hi - full.lo) * 0.5f;
  const float mid = full.lo + half;
  const float reach = half * factor;
  return {mid - reach, mid + reach};
}

// A power of an error in units of the unshrunk step as a 2^20 fixed-point integer: integers add up
// to the same sum in any order, so the chosen range does not depend on how the work is split.
ZC_HD float fixed_error(float power) { return power * 1048576.0f; }
ZC_HD uint64_t whole_error(float fixed) {
  if (!(fixed > 0.0f)) return 0;
  constexpr float kCap = 4398046511104.0f;  // 2^42: 2^21 tokens still add up below 2^63
  return static_cast<uint64_t>(fixed < kCap ? fixed : kCap);
}

// |x - x^|^p as such an integer.
ZC_HD uint64_t quant_error(float x, QuantParams params, float inv, int bits, float inv_full,
                           int norm) {
  const float xf = clamp_finite(x);
  const uint32_t code = quant_code(xf, params.zero, inv, bits);
  const float e = fabsf(xf - dequantize_code(code, params)) * inv_full;
  float power = e;
  for (int i = 1; i < norm; ++i) power = power * e;
  return whole_error(fixed_error(power));
}

}  // namespace zc
