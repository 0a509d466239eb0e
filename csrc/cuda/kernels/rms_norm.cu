#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kMaxThreads = 512;  // of a row
constexpr int kWarpWidth = 512;   // rows up to here are a warp's: norms of single heads
constexpr int kBlockRows = 4;     // such rows in a block

// The sum of x over the threads of a row, the same in each of them: the lanes of a warp by halves,
// the warps in order.
ZC_DEVICE double sum_of_row(double x, int row_warps, double* warp_sums) {
  ZC_UNROLL for (int distance = 16; distance > 0; distance /= 2) x +=
      __shfl_xor_sync(0xffffffffu, x, distance);
  if (row_warps == 1) return x;
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < row_warps; ++w) sum += warp_sums[w];
  return sum;
}

// out = scale (x / sqrt(mean(x^2) + eps) * weight) (arXiv 1910.07467), out being added in the
// brackets where it accumulates; without a weight, of ones.
// Threads (row_threads, rows of a block); a thread adds the squares of its elements, kVector at a
// time, in double, which no float overflows. Shared memory: 128 bytes. Bound by memory and, for few
// rows, by the reduction. out may be x: a thread reads its elements again before it writes them.
template <typename T, typename W, typename Out>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_kernel(const T* x, const W* weight, Out* out, int64_t n_rows, int64_t width, float eps,
                    bool accumulate, float scale, bool vectors) {
  ZC_SHARED(double, warp_sums, [kMaxThreads / 32]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= n_rows) return;  // rows share a block only where none waits for another
  const int64_t begin = row * width;
  const int64_t first = int64_t{threadIdx.x} * kVector;
  const int64_t step = int64_t{blockDim.x} * kVector;
  double sum = 0.0;
  for (int64_t c = first; c < width; c += step) {
    float values[kVector];
    load_floats(x + begin + c, width - c, vectors, values);
    ZC_UNROLL for (int j = 0; j < kVector; ++j) sum += double{values[j]} * double{values[j]};
  }
  sum = sum_of_row(sum, static_cast<int>(blockDim.x / 32), warp_sums);
  const float inv =
      static_cast<float>(1.0 / sqrt(sum / static_cast<double>(width) + static_cast<double>(eps)));
  for (int64_t c = first; c < width; c += step) {
    float values[kVector];
    float weights[kVector];
    load_floats(x + begin + c, width - c, vectors, values);
    if (weight != nullptr)
      load_floats(weight + c, width - c, vectors, weights);
    else
      ZC_UNROLL for (int j = 0; j < kVector; ++j) weights[j] = 1.0f;
    ZC_UNROLL for (int j = 0; j < kVector; ++j) values[j] = values[j] * inv * weights[j];
    if (accumulate) {
      float before[kVector];
      load_floats(out + begin + c, width - c, vectors, before);
      ZC_UNROLL for (int j = 0; j < kVector; ++j) values[j] += before[j];
    }
    ZC_UNROLL for (int j = 0; j < kVector; ++j) values[j] *= scale;
    store_floats(out + begin + c, width - c, vectors, values);
  }
}

}  // namespace

void rms_norm(Context& context, const RmsNormArgs& a) {
  const int64_t n_rows = a.x.size(0);
  const int64_t width = a.x.size(1);
  if (width == 0) return;
  const int64_t threads = (width + 32 * kVector - 1) / (32 * kVector) * 32;
  const dim3 block =
      width <= kWarpWidth
          ? dim3(32, kBlockRows)
          : dim3(static_cast<unsigned>(threads < kMaxThreads ? threads : kMaxThreads));
  const void* weights = a.weight.defined() ? a.weight.data : nullptr;
  const bool vectors =
      in_vectors(address_bits(a.x.data) | address_bits(weights) | address_bits(a.out.data), width);
  dispatch_float(a.x.dtype, [&](auto in) {
    dispatch_float(a.weight.defined() ? a.weight.dtype : DType::kF32, [&](auto weight) {
      dispatch_float(a.out.dtype, [&](auto out) {
        using T = typename decltype(in)::type;
        using W = typename decltype(weight)::type;
        using Out = typename decltype(out)::type;
        launch_early(context, &rms_norm_kernel<T, W, Out>, blocks_for(n_rows, block.y), block, 0,
                     a.x.as<T>(), static_cast<const W*>(weights), a.out.as<Out>(), n_rows, width,
                     a.eps, a.accumulate, a.scale, vectors);
      });
    });
  });
}

}  // namespace zc::cuda
