#pragma once

#include <type_traits>

#include "csrc/cuda/device/order_key.h"
#include "csrc/cuda/device/simt.h"
#include "csrc/math/quantize.h"

// Ranges of channels that many blocks see a part of each: maxima of integers and sums of integers,
// which are the same in any order. The memory that blocks combine them in is zero before and after.
namespace zc::cuda {

// True in the last of n_blocks blocks to come here, which sees the others' writes. Called by all
// threads of a block.
ZC_DEVICE bool arrives_last(int32_t* arrivals, int n_blocks) {
  ZC_SHARED(int32_t, last, [1]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last[0] = atomicAdd(arrivals, 1) == n_blocks - 1 ? 1 : 0;
    if (last[0] != 0) atomicExch(arrivals, 0);
  }
  __syncthreads();
  __threadfence();
  return last[0] != 0;
}

// What a range is made of: the greatest x, -x and |x| of a channel. NaN has no part in it.
inline constexpr int kRangeParts = 3;

ZC_DEVICE float least_of_part(int part) { return part < 2 ? -INFINITY : 0.0f; }

ZC_DEVICE void combine_part(uint32_t* keys, int part, float greatest) {
  atomicMax(keys, part < 2 ? order_key(greatest) : float_to_bits(greatest));
}

struct ChannelRange {
  Range range;    // lo > hi where there was nothing but NaN
  float largest;  // |x|
};

// Takes the parts of one channel, which lie `stride` apart, and leaves zeros.
ZC_DEVICE ChannelRange take_range(uint32_t* keys, int64_t stride) {
  const float hi = from_order_key(atomicExch(keys, 0u));
  const float lo = -from_order_key(atomicExch(keys + stride, 0u));
  const float largest = bits_to_float(atomicExch(keys + 2 * stride, 0u));
  if (!(lo <= hi)) return {{INFINITY, -INFINITY}, 0.0f};
  return {{clamp_finite(lo), clamp_finite(hi)}, clamp_finite(largest)};
}

// Parameters of a range shrunk by a candidate's factor.
ZC_DEVICE QuantParams candidate_params(Range range, int candidate, int bits) {
  if (!(range.lo <= range.hi)) return {0.0f, 0.0f};
  return quant_params(shrink_range(range, candidate), bits);
}

// Calls body with the norm, 2 to 6, as a constant.
template <typename Body>
ZC_DEVICE void with_norm(int norm, const Body& body) {
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

// Sums of quant_error of each candidate, over the values that a thread sees: the same integers by
// fewer instructions, which are what bounds a search. Codes are reckoned in units of 2^-8 and held
// between 0 and the last one before they are rounded: that changes no bit, the multiplication
// clamps at no cost and an addition rounds. Errors below 2^32, as all but wild ones are, are
// converted by instructions that run several times as fast as those for 64 bits.
struct CandidateErrors {
  float zero[kRangeCandidates];
  float scale[kRangeCandidates];    // times 256
  float inverse[kRangeCandidates];  // over 256
  float inverse_full;
  float last;
  unsigned long long sums[kRangeCandidates];

  ZC_DEVICE CandidateErrors(Range range, int bits)
      : last(static_cast<float>((1 << bits) - 1) / 256.0f) {
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) {
      const QuantParams params = candidate_params(range, i, bits);
      zero[i] = params.zero;
      scale[i] = params.scale * 256.0f;
      inverse[i] = quant_inverse(params.scale) / 256.0f;
      sums[i] = 0;
    }
    inverse_full = inverse[0] * 256.0f;
  }
  template <int kNorm>
  ZC_DEVICE void add(float x) {
    if (x != x) return;  // NaN has no error
    const float xf = clamp_finite(x);
    float fixed[kRangeCandidates];
    float greatest = 0.0f;
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) {
      constexpr float kRounds = 49152.0f;  // 1.5 * 2^15, whose neighbours are 2^-8 apart
      const float clamped = fminf(__saturatef((xf - zero[i]) * inverse[i]), last);
      const float code = (clamped + kRounds) - kRounds;
      const float e = fabsf(xf - (code * scale[i] + zero[i])) * inverse_full;
      float power = e;
      ZC_UNROLL
      for (int n = 1; n < kNorm; ++n) power = power * e;
      fixed[i] = fixed_error(power);
      greatest = fmaxf(greatest, fixed[i]);
    }
    if (greatest < 4294967296.0f) {
      ZC_UNROLL
      for (int i = 0; i < kRangeCandidates; ++i) sums[i] += static_cast<uint32_t>(fixed[i]);
    } else {
      ZC_UNROLL
      for (int i = 0; i < kRangeCandidates; ++i) sums[i] += whole_error(fixed[i]);
    }
  }
};

// The candidate with the least error; ties go to the wider range.
template <typename Error>
ZC_DEVICE int best_candidate(const Error& error_of) {
  int best = 0;
  uint64_t least = error_of(0);
  for (int candidate = 1; candidate < kRangeCandidates; ++candidate) {
    const uint64_t error = error_of(candidate);
    if (error >= least) continue;
    best = candidate;
    least = error;
  }
  return best;
}

}  // namespace zc::cuda
