#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// e^-|x| never overflows: silu(x) = x (x < 0 ? e^-|x| : 1) / (1 + e^-|x|).
ZC_DEVICE float silu(float x) {
  const float e = expf(-fabsf(x));
  return x * ((x < 0.0f ? e : 1.0f) / (1.0f + e));
}

// out = silu(gate) * up, of n elements. A thread owns kVector neighbours; bound by memory.
template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    silu_gate_kernel(const T* gate, const T* up, Out* out, int64_t n, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (i >= n) return;
  float g[kVector];
  float u[kVector];
  load_floats(gate + i, n - i, vectors, g);
  load_floats(up + i, n - i, vectors, u);
  ZC_UNROLL for (int j = 0; j < kVector; ++j) g[j] = silu(g[j]) * u[j];
  store_floats(out + i, n - i, vectors, g);
}

}  // namespace

void silu_gate(Context& context, const SiluGateArgs& a) {
  const int64_t n = a.out.length();
  const bool vectors =
      (address_bits(a.gate.data) | address_bits(a.up.data) | address_bits(a.out.data)) % 16 == 0;
  dispatch_float(a.gate.dtype, [&](auto in) {
    dispatch_float(a.out.dtype, [&](auto out) {
      using T = typename decltype(in)::type;
      using Out = typename decltype(out)::type;
      launch_early(context, &silu_gate_kernel<T, Out>, blocks_for(n, kThreads * kVector), kThreads,
                   0, a.gate.as<T>(), a.up.as<T>(), a.out.as<Out>(), n, vectors);
    });
  });
}

}  // namespace zc::cuda
