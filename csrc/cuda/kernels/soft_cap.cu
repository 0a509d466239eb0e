#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// out = cap tanh(x / cap), of n elements. A thread owns kVector neighbours; bound by memory.
__global__ void __launch_bounds__(kThreads)
    soft_cap_kernel(const float* x, float* out, int64_t n, float cap, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (i >= n) return;
  float y[kVector];
  load_floats(x + i, n - i, vectors, y);
  ZC_UNROLL for (int j = 0; j < kVector; ++j) y[j] = cap * tanhf(y[j] / cap);
  store_floats(out + i, n - i, vectors, y);
}

}  // namespace

void soft_cap(Context& context, const SoftCapArgs& a) {
  const int64_t n = a.out.length();
  const bool vectors = (address_bits(a.x.data) | address_bits(a.out.data)) % 16 == 0;
  launch_early(context, &soft_cap_kernel, blocks_for(n, kThreads * kVector), kThreads, 0,
               a.x.as<float>(), a.out.as<float>(), n, a.cap, vectors);
}

}  // namespace zc::cuda
