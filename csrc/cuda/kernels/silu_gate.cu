#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// out = silu(gate) * up, silu(x) = x / (1 + e^-x). A thread owns one element; bound by memory.
template <typename T, typename Out>
__global__ void silu_gate_kernel(const T* gate, const T* up, Out* out, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const float x = to_float(gate[i]);
  out[i] = from_float<Out>(x / (1.0f + expf(-x)) * to_float(up[i]));
}

}  // namespace

void silu_gate(Context& context, const SiluGateArgs& a) {
  const int64_t n = a.out.length();
  dispatch_float(a.gate.dtype, [&](auto in) {
    dispatch_float(a.out.dtype, [&](auto out) {
      using T = typename decltype(in)::type;
      using Out = typename decltype(out)::type;
      launch(context, &silu_gate_kernel<T, Out>, blocks_for(n, kThreads), kThreads, 0,
             a.gate.as<T>(), a.up.as<T>(), a.out.as<Out>(), n);
    });
  });
}

}  // namespace zc::cuda
