#pragma once

#include "csrc/cuda/device/order_key.h"
#include "csrc/cuda/device/simt.h"
#include "csrc/math/range_search.h"

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

// Sums of what the candidates do to the elements that a thread sees, at most kRangeTogether of
// them: nine instructions a candidate and element at norm 3, which are what bounds a search. NaN,
// which has no error, is counted as an element at the range's end and taken away afterwards.
struct CandidateErrors {
  float lo;
  float inverse;
  float last;
  float spread[kRangeCandidates];
  float unit[kRangeCandidates];
  uint32_t sums[kRangeCandidates];
  uint32_t n_nan;

  ZC_DEVICE CandidateErrors(Range range, int bits, int norm)
      : lo(range.lo), inverse(range_inverse(range)), last(range_last(bits)), n_nan(0) {
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) {
      spread[i] = range_spread(i, bits);
      unit[i] = power_of_two(range_exponent(i, bits, norm));
      sums[i] = 0;
    }
  }
  template <int kNorm>
  ZC_DEVICE uint32_t units(int i, float place) const {
    return range_units(range_power(range_error(place, spread[i], last), kNorm), unit[i]);
  }
  template <int kNorm>
  ZC_DEVICE void add(float x) {
    if (x != x) ++n_nan;
    // range_place, but that the multiplication clamps at no cost and makes 0 of NaN.
    const float share = __saturatef((x - lo) * inverse);
    const float place = fabsf((share + kRoundsPlace) - (kRoundsPlace + 0.5f));
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) sums[i] += units<kNorm>(i, place);
  }
  // Once, after all elements.
  template <int kNorm>
  ZC_DEVICE void leave_nan_out() {
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) sums[i] -= n_nan * units<kNorm>(i, 0.5f);
  }
};

// The candidate that best_range finds among sums of a channel.
template <typename Sum>
ZC_DEVICE int best_candidate(int bits, int norm, const Sum& sum_of) {
  return best_range(sum_of, [&](int i) { return range_weight(i, bits, norm); });
}

}  // namespace zc::cuda
