#include "csrc/cuda/device/sigmoid.h"
#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/activation.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

struct Silu {
  ZC_DEVICE float operator()(float g, float u) const { return g * sigmoid(g) * u; }
};

struct Gelu {
  ZC_DEVICE float operator()(float g, float u) const {
    return g * sigmoid(kGeluSlope * (g + kGeluCubic * g * g * g)) * u;
  }
};

// A comparison with NaN is false, so that NaN stays.
struct ClampedSwiglu {
  float alpha;
  float limit;

  ZC_DEVICE float operator()(float g, float u) const {
    g = g > limit ? limit : g;
    u = u > limit ? limit : u;
    u = u < -limit ? -limit : u;
    return (u + 1.0f) * (g * sigmoid(alpha * g));
  }
};

// out = activation(gate, up), of n elements. A thread owns kVector neighbours; bound by memory.
template <typename Activation, typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    gate_kernel(const T* gate, const T* up, Out* out, int64_t n, bool vectors,
                Activation activation) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (i >= n) return;
  float g[kVector];
  float u[kVector];
  load_floats(gate + i, n - i, vectors, g);
  load_floats(up + i, n - i, vectors, u);
  ZC_UNROLL for (int j = 0; j < kVector; ++j) g[j] = activation(g[j], u[j]);
  store_floats(out + i, n - i, vectors, g);
}

// out = sigmoid(gate) x, of n elements. As above.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_gate_kernel(const float* gate, const T* x, T* out, int64_t n, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (i >= n) return;
  float g[kVector];
  float y[kVector];
  load_floats(gate + i, n - i, vectors, g);
  load_floats(x + i, n - i, vectors, y);
  ZC_UNROLL for (int j = 0; j < kVector; ++j) y[j] *= sigmoid(g[j]);
  store_floats(out + i, n - i, vectors, y);
}

template <typename Activation>
void gate(Context& context, const GateArgs& a, const Activation& activation) {
  const int64_t n = a.out.length();
  const bool vectors =
      (address_bits(a.gate.data) | address_bits(a.up.data) | address_bits(a.out.data)) % 16 == 0;
  dispatch_float(a.gate.dtype, [&](auto in) {
    dispatch_float(a.out.dtype, [&](auto out) {
      using T = typename decltype(in)::type;
      using Out = typename decltype(out)::type;
      launch_early(context, &gate_kernel<Activation, T, Out>, blocks_for(n, kThreads * kVector),
                   kThreads, 0, a.gate.as<T>(), a.up.as<T>(), a.out.as<Out>(), n, vectors,
                   activation);
    });
  });
}

}  // namespace

void silu_gate(Context& context, const GateArgs& a) { gate(context, a, Silu{}); }
void gelu_gate(Context& context, const GateArgs& a) { gate(context, a, Gelu{}); }
void clamped_swiglu(Context& context, const ClampedSwigluArgs& a) {
  gate(context, a.rows(), ClampedSwiglu{a.alpha, a.limit});
}

void sigmoid_gate(Context& context, const SigmoidGateArgs& a) {
  const int64_t n = a.out.length();
  const bool vectors =
      (address_bits(a.gate.data) | address_bits(a.x.data) | address_bits(a.out.data)) % 16 == 0;
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_early(context, &sigmoid_gate_kernel<T>, blocks_for(n, kThreads * kVector), kThreads, 0,
                 a.gate.as<float>(), a.x.as<T>(), a.out.as<T>(), n, vectors);
  });
}

}  // namespace zc::cuda
