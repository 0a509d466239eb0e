#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"

namespace zc::cuda {

struct Scanned {
  int32_t before;  // the sum over the threads before this one
  int32_t total;   // the sum over all
};

// Prefix sum over the kThreads threads of a block, at most 1024, all of which call it. 4 (kThreads
// / 32 + 1) bytes of shared memory, free again when it returns.
template <int kThreads>
ZC_DEVICE Scanned block_scan(int32_t value) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32);
  ZC_SHARED(int32_t, sums, [kWarps + 1]);  // of the warps before; of all
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const auto warp_scan = [&](int32_t x) {
    ZC_UNROLL
    for (int step = 1; step < 32; step *= 2) {
      const int32_t lower = __shfl_up_sync(~0u, x, step);
      if (lane >= step) x += lower;
    }
    return x;
  };
  const int32_t up_to = warp_scan(value);
  if (lane == 31) sums[warp + 1] = up_to;
  __syncthreads();
  if (warp == 0) {
    const int32_t all = warp_scan(lane < kWarps ? sums[lane + 1] : 0);
    if (lane < kWarps) sums[lane + 1] = all;
    if (lane == 0) sums[0] = 0;
  }
  __syncthreads();
  const Scanned result{sums[warp] + up_to - value, sums[kWarps]};
  __syncthreads();
  return result;
}

}  // namespace zc::cuda
