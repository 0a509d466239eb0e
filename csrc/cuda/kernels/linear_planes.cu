#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// Planes (m kPlanes, stride) of x (m, k), zeros from k on, and their scales (m, parts). Blocks:
// (row, part); bound by memory.
template <typename X, typename T>
__global__ void __launch_bounds__(kThreads)
    linear_planes_kernel(const X* x, T* planes, float* scales, int64_t k, int64_t stride,
                         int part_length, bool vectors) {
  ZC_SHARED(uint32_t, largest, [kThreads / 32]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t row = blockIdx.x;
  const int own = static_cast<int>(threadIdx.x);
  const int64_t begin = int64_t{blockIdx.y} * part_length;
  const int64_t end = begin + part_length < stride ? begin + part_length : stride;
  x += row * k;
  planes += row * kPlanes<X, T> * stride;
  PlaneScale scale{1.0f, 1.0f};
  if constexpr (kScaled<X, T>) {
    uint32_t most = 0;
    for (int64_t c = begin + own * kVector; c < end; c += kThreads * kVector) {
      float values[kVector];
      load_floats(x + c, k - c, vectors, values);
      most = largest_bits(values, most);
    }
    most = __reduce_max_sync(0xffffffffu, most);
    if (own % 32 == 0) largest[own / 32] = most;
    __syncthreads();
    for (int w = 0; w < kThreads / 32; ++w) most = max(most, largest[w]);
    scale = plane_scale(most);
    if (own == 0) scales[row * gridDim.y + blockIdx.y] = scale.back;
  }
  for (int64_t c = begin + own * kVector; c < end; c += kThreads * kVector) {
    float rest[kVector];
    load_floats(x + c, k - c, vectors, rest);
    ZC_UNROLL for (int j = 0; j < kVector; ++j) rest[j] = whole_of_planes<X, T>(rest[j], scale);
    ZC_UNROLL for (int plane = 0; plane < kPlanes<X, T>; ++plane) *
        reinterpret_cast<uint4*>(planes + plane * stride + c) = take_plane(rest, T{});
  }
}

}  // namespace

template <typename X, typename T>
void linear_planes(Context& context, const TensorView& x, int64_t stride, T* planes,
                   float* scales) {
  const int64_t k = x.size(1);
  launch_early(context, &linear_planes_kernel<X, T>,
               dim3(blocks_for(x.size(0), 1), static_cast<unsigned>(part_count(k))), kThreads, 0,
               x.as<X>(), planes, scales, k, stride, part_length(k),
               in_vectors(address_bits(x.data), k));
}

#define ZC_PLANES(X, T) \
  template void linear_planes<X, T>(Context&, const TensorView&, int64_t, T*, float*);
ZC_PLANES(float, bf16)
ZC_PLANES(f16, bf16)
ZC_PLANES(bf16, bf16)
ZC_PLANES(float, f16)
ZC_PLANES(f16, f16)
ZC_PLANES(bf16, f16)
#undef ZC_PLANES

}  // namespace zc::cuda
