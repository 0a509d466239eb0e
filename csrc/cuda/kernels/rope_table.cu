#include "csrc/cuda/launchers.h"
#include "csrc/math/rope.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// cos and sin (n, half) of position times inverse frequency, the angle rounded to float as
// transformers does. A thread owns one angle; bound by the arithmetic in double.
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(const int32_t* positions, const float* inv_freq, float* cos, float* sin,
                      int64_t n, int half, float attention_scale, float growth, int32_t period) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const int32_t position = positions[i / half];
  const RopeTurn turn = rope_turn(static_cast<float>(position) * inv_freq[i % half]);
  const float scale = attention_scale * query_growth(position, growth, period);
  cos[i] = turn.cos * scale;
  sin[i] = turn.sin * scale;
}

}  // namespace

void rope_table(Context& context, const RopeTableArgs& a) {
  const int64_t n = a.cos.length();
  launch_early(context, &rope_table_kernel, blocks_for(n, kThreads), kThreads, 0,
               a.positions.as<int32_t>(), a.inv_freq.as<float>(), a.cos.as<float>(),
               a.sin.as<float>(), n, static_cast<int>(a.inv_freq.size(0)), a.attention_scale,
               a.growth, a.period);
}

}  // namespace zc::cuda
