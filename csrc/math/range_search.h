#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "csrc/math/hd.h"
#include "csrc/math/quantize.h"

// Range search (not in the paper): of seven ranges that shrink about the middle of a group's
// [lo, hi], the one with the least sum of |x - x^|^norm, where a shrunk range cuts elements off.
//
// An element counts by its place in [lo, hi], rounded to 2^-12 of the range, so that one set of
// constants serves all groups, and its distance from the nearest code is exact in float32, whether
// products and sums are fused or not. A power of it becomes an integer, so that the sum, and with
// it the range, does not depend on how the work is split. What is searched for is the range; only
// the one found has its ends rounded to float16.
namespace zc {

inline constexpr int kRangeCandidates = 7;

// The width that a candidate keeps, as a float32.
ZC_HD float range_factor(int candidate) {  // an array would not be usable in device code
  return candidate == 0   ? 1.0f
         : candidate == 1 ? 0.9f
         : candidate == 2 ? 0.8f
         : candidate == 3 ? 0.7f
         : candidate == 4 ? 0.6f
         : candidate == 5 ? 0.5f
                          : 0.4f;
}

ZC_HD Range shrink_range(Range full, int candidate) {
  if (candidate == 0) return full;
  const float half = (full.hi - full.lo) * 0.5f;
  const float mid = full.lo + half;
  const float reach = half * range_factor(candidate);
  return {mid - reach, mid + reach};
}

ZC_HD float power_of_two(int exponent) {  // of a normal number
  return bits_to_float(static_cast<uint32_t>(127 + exponent) << 23);
}

// Of [lo, hi]; 0, with which the whole range wins, where there is nothing to gain: the range is a
// point, or float16 does not hold its ends.
ZC_HD float range_inverse(Range full) {
  const float width = full.hi - full.lo;
  const bool searched = width >= 1e-37f && full.lo >= -65504.0f && full.hi <= 65504.0f;
  return searched ? 1.0f / width : 0.0f;
}

// a * b + c of a product that is exact: the same bits in one instruction or in two.
ZC_HD float exact_fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

// Adding and taking away these rounds to 2^-12 and to an integer: 1.5 times a power of two.
inline constexpr float kRoundsPlace = 3072.0f;
inline constexpr float kRoundsCode = 12582912.0f;

// Distance of x from the middle of [lo, hi], in widths, 0 to 1/2.
ZC_HD float range_place(float x, float lo, float inverse) {
  const float share = (x - lo) * inverse;
  const float held = share > 0.0f ? (share < 1.0f ? share : 1.0f) : 0.0f;
  return fabsf((held + kRoundsPlace) - (kRoundsPlace + 0.5f));
}

// Steps of a candidate across the unshrunk range, of 12 bits, so that products with places are
// exact.
ZC_HD float range_spread(int candidate, int bits) {
  const float shrinks = candidate == 0   ? 1.0f
                        : candidate == 1 ? 10.0f / 9.0f
                        : candidate == 2 ? 10.0f / 8.0f
                        : candidate == 3 ? 10.0f / 7.0f
                        : candidate == 4 ? 10.0f / 6.0f
                        : candidate == 5 ? 10.0f / 5.0f
                                         : 10.0f / 4.0f;
  const float levels = static_cast<float>((1 << bits) - 1);
  return rintf(levels * shrinks * power_of_two(10 - bits)) * power_of_two(bits - 10);
}

// The last code, counted from the middle of the codes in steps.
ZC_HD float range_last(int bits) { return static_cast<float>((1 << (bits - 1)) - 1); }

// The exponent of what a power of an error is multiplied by before it becomes an integer: the
// greatest with which none, of half a step or of an end that is cut off, is above 2^22.
ZC_HD int range_exponent(int candidate, int bits, int norm) {
  const float levels = static_cast<float>((1 << bits) - 1);
  const float cut = (range_spread(candidate, bits) - levels) * 0.5f;
  const float most = cut > 0.5f ? cut : 0.5f;
  const int above = static_cast<int>((float_to_bits(most) + 0x7fffffu) >> 23) - 127;
  return 22 - norm * above;
}

// One of these integers in steps of the unshrunk range, to the power norm.
ZC_HD double range_weight(int candidate, int bits, int norm) {
  double weight = static_cast<double>(power_of_two(-range_exponent(candidate, bits, norm)));
  for (int i = 0; i < norm; ++i) weight *= static_cast<double>(range_factor(candidate));
  return weight;
}

// The error of an element at such a place, in steps of the candidate.
ZC_HD float range_error(float place, float spread, float last) {
  const float code = exact_fma(place, spread, -0.5f);
  const float nearest = fminf((code + kRoundsCode) - kRoundsCode, last);
  return fabsf(code - nearest);
}

// error^norm, norm 2 to 6, in the order that every backend multiplies in.
ZC_HD float range_power(float error, int norm) {
  const float square = error * error;
  const float even = norm < 4 ? square : norm < 6 ? square * square : square * square * square;
  return norm % 2 == 0 ? even : even * error;
}

// As many of these integers add up below 2^32.
inline constexpr int kRangeTogether = 1023;

ZC_HD uint32_t range_units(float power, float unit) {
  return float_to_bits(exact_fma(power, unit, kRoundsCode)) - float_to_bits(kRoundsCode);
}

// Calls body with the norm, 2 to 6, as a constant.
template <typename Body>
ZC_HD void with_norm(int norm, const Body& body) {
  switch (norm) {
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    default:
      return body(std::integral_constant<int, 6>{});
  }
}

// The candidate with the least of the errors sum_of(i) * weight_of(i); ties go to the wider range.
template <typename Sum, typename Weight>
ZC_HD int best_range(const Sum& sum_of, const Weight& weight_of) {
  int best = 0;
  double least = static_cast<double>(sum_of(0)) * weight_of(0);
#if defined(__CUDA_ARCH__)
#pragma unroll  // sums in registers have no index
#endif
  for (int i = 1; i < kRangeCandidates; ++i) {
    const double error = static_cast<double>(sum_of(i)) * weight_of(i);
    if (error >= least) continue;
    best = i;
    least = error;
  }
  return best;
}

}  // namespace zc
