#pragma once

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

// Sums of quant_error of each candidate, over the values that a thread sees.
struct CandidateErrors {
  QuantParams params[kRangeCandidates];
  float inverse[kRangeCandidates];
  unsigned long long sums[kRangeCandidates];

  ZC_DEVICE CandidateErrors(Range range, int bits) {
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) {
      params[i] = candidate_params(range, i, bits);
      inverse[i] = quant_inverse(params[i].scale);
      sums[i] = 0;
    }
  }
  ZC_DEVICE void add(float x, int bits, int norm) {
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i)
      sums[i] += quant_error(x, params[i], inverse[i], bits, inverse[0], norm);
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
