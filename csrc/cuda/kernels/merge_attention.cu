#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/softmax_state.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// Joins two attention results over disjoint sets of keys by their log-sum-exps. A warp owns one
// (row, head) of n; bound by memory. The results may lie over the inputs: a warp reads both LSEs
// before it writes one, and a lane its elements.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_attention_kernel(const T* out_a, const float* lse_a, const T* out_b, const float* lse_b,
                           T* out, float* lse, int64_t n, int head_dim, bool vectors) {
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (i >= n) return;
  const MergeWeights w = merge_weights(lse_a[i], lse_b[i]);
  __syncwarp();
  if (lane == 0) lse[i] = w.lse;
  const int64_t begin = i * head_dim;
  for (int c = lane * kVector; c < head_dim; c += 32 * kVector) {
    float a[kVector];
    float b[kVector];
    load_floats(out_a + begin + c, head_dim - c, vectors, a);
    load_floats(out_b + begin + c, head_dim - c, vectors, b);
    // A side that saw no key takes no part, not even with a NaN.
    ZC_UNROLL for (int j = 0; j < kVector; ++j) {
      const float x = w.a == 0.0f ? 0.0f : w.a * a[j];
      const float y = w.b == 0.0f ? 0.0f : w.b * b[j];
      a[j] = x + y;
    }
    store_floats(out + begin + c, head_dim - c, vectors, a);
  }
}

// A sink is a side whose attention is 0. As above: a warp reads an LSE before it writes it.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    attention_sinks_kernel(const float* sinks, T* out, float* lse, int64_t n, int n_heads,
                           int head_dim, bool vectors) {
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (i >= n) return;
  const MergeWeights w = merge_weights(lse[i], sinks[i % n_heads]);
  __syncwarp();
  if (lane == 0) lse[i] = w.lse;
  T* row = out + i * head_dim;
  for (int c = lane * kVector; c < head_dim; c += 32 * kVector) {
    float x[kVector];
    load_floats(row + c, head_dim - c, vectors, x);
    // What saw no key is 0, whatever it holds.
    ZC_UNROLL for (int j = 0; j < kVector; ++j) x[j] = w.a == 0.0f ? 0.0f : w.a * x[j];
    store_floats(row + c, head_dim - c, vectors, x);
  }
}

}  // namespace

void merge_attention(Context& context, const MergeAttentionArgs& a) {
  const int64_t n = a.out.size(0) * a.out.size(1);
  const int head_dim = static_cast<int>(a.out.size(2));
  const bool vectors = in_vectors(
      address_bits(a.out_a.data) | address_bits(a.out_b.data) | address_bits(a.out.data), head_dim);
  dispatch_float(a.out.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &merge_attention_kernel<T>, blocks_for(n, kWarps), kThreads, 0, a.out_a.as<T>(),
           a.lse_a.as<float>(), a.out_b.as<T>(), a.lse_b.as<float>(), a.out.as<T>(),
           a.lse.as<float>(), n, head_dim, vectors);
  });
}

void attention_sinks(Context& context, const AttentionSinksArgs& a) {
  const int n_heads = static_cast<int>(a.out.size(1));
  const int head_dim = static_cast<int>(a.out.size(2));
  const int64_t n = a.out.size(0) * n_heads;
  const bool vectors = in_vectors(address_bits(a.out.data), head_dim);
  dispatch_float(a.out.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &attention_sinks_kernel<T>, blocks_for(n, kWarps), kThreads, 0,
           a.sinks.as<float>(), a.out.as<T>(), a.lse.as<float>(), n, n_heads, head_dim, vectors);
  });
}

}  // namespace zc::cuda
