#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 2048;

// The sum of x over the block, in every thread that asks for thread 0's answer only.
ZC_DEVICE int64_t block_sum(int64_t x, int64_t* warp_sums) {
  ZC_UNROLL for (int distance = 16; distance > 0; distance /= 2) x +=
      __shfl_xor_sync(0xffffffffu, x, distance);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  int64_t sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += warp_sums[w];
  return sum;
}

// counts[b] = NaNs and infinities among the elements of block b, which takes every gridDim.x-th
// piece of kThreads * kVector. Bound by memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_non_finite_kernel(const T* x, int64_t* counts, int64_t n, bool vectors) {
  ZC_SHARED(int64_t, warp_sums, [kThreads / 32]);
  int64_t count = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads * kVector;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector; i < n; i += step) {
    float values[kVector];
    load_floats(x + i, n - i, vectors, values);
    ZC_UNROLL for (int j = 0; j < kVector; ++j) count +=
        (float_to_bits(values[j]) & 0x7f800000u) == 0x7f800000u;
  }
  count = block_sum(count, warp_sums);
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// count = the sum of counts, at most the largest int32. One block.
__global__ void __launch_bounds__(kThreads)
    add_counts_kernel(const int64_t* counts, int32_t* count, int64_t n) {
  ZC_SHARED(int64_t, warp_sums, [kThreads / 32]);
  int64_t sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += counts[i];
  sum = block_sum(sum, warp_sums);
  constexpr int64_t kMax = 0x7fffffff;
  if (threadIdx.x == 0) *count = static_cast<int32_t>(sum < kMax ? sum : kMax);
}

}  // namespace

void count_non_finite(Context& context, const CountNonFiniteArgs& a) {
  const int64_t n = a.x.length();
  const int64_t pieces = (n + kThreads * kVector - 1) / (kThreads * kVector);
  const int64_t blocks = pieces < kMaxBlocks ? pieces : kMaxBlocks;
  auto* counts = static_cast<int64_t*>(context.scratch(blocks * int64_t{sizeof(int64_t)}));
  const bool vectors = address_bits(a.x.data) % 16 == 0;
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &count_non_finite_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0,
           a.x.as<T>(), counts, n, vectors);
  });
  launch(context, &add_counts_kernel, 1, kThreads, 0, counts, a.count.as<int32_t>(), blocks);
}

}  // namespace zc::cuda
