#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kChains = 4;  // FMAs of a thread that do not wait on each other: their latency is 4

// out = `steps` times y = factor y + summand, from y = x, of n elements. A thread owns kChains of
// them; bound by the rate of FMAs.
__global__ void __launch_bounds__(kThreads)
    multiply_add_kernel(const float* x, float* out, int64_t n, float factor, float summand,
                        int32_t steps) {
  const int64_t first = int64_t{blockIdx.x} * kThreads * kChains + threadIdx.x;
  float y[kChains];
  ZC_UNROLL for (int i = 0; i < kChains; ++i) {
    const int64_t at = first + i * kThreads;
    y[i] = at < n ? x[at] : 0.0f;
  }
  for (int32_t step = 0; step < steps; ++step)
    ZC_UNROLL for (int i = 0; i < kChains; ++i) y[i] = fmaf(y[i], factor, summand);
  ZC_UNROLL for (int i = 0; i < kChains; ++i) {
    const int64_t at = first + i * kThreads;
    if (at < n) out[at] = y[i];
  }
}

}  // namespace

void multiply_add(Context& context, const MultiplyAddArgs& a) {
  const int64_t n = a.out.length();
  launch(context, &multiply_add_kernel, blocks_for(n, kThreads * kChains), kThreads, 0,
         a.x.as<float>(), a.out.as<float>(), n, a.factor, a.summand, a.steps);
}

}  // namespace zc::cuda
