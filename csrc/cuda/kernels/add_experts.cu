#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// out (n, width) = sum over a row's choices, the first one first, of weight * x, plus out where it
// accumulates. A thread owns an element, a warp's lie together; bound by memory.
__global__ void __launch_bounds__(kThreads)
    add_experts_kernel(const float* x, const float* weights, float* out, int64_t length,
                       int64_t width, int n_chosen, bool accumulate) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= length) return;
  const int64_t row = i / width;
  const float* own = x + row * n_chosen * width + i % width;
  float total = 0.0f;
  for (int choice = 0; choice < n_chosen; ++choice)
    total = fmaf(weights[row * n_chosen + choice], own[choice * width], total);
  out[i] = accumulate ? out[i] + total : total;
}

}  // namespace

void add_experts(Context& context, const AddExpertsArgs& a) {
  const int64_t length = a.out.length();
  launch_early(context, &add_experts_kernel, blocks_for(length, kThreads), kThreads, 0,
               a.x.as<float>(), a.weights.as<float>(), a.out.as<float>(), length, a.out.size(1),
               static_cast<int>(a.weights.size(1)), a.accumulate);
}

}  // namespace zc::cuda
