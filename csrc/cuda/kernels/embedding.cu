#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// out[i] = scale * weight[ids[i]], widened: `width` of a row's `stride` elements. A block owns one
// row; bound by memory. A token outside of the vocabulary is a fault and leaves its row as it was.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(FaultSink faults, const int32_t* ids, const T* weight, float* out,
                     int64_t vocab_size, int64_t width, int64_t stride, float scale, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t row = blockIdx.x;
  const int64_t id = ids[row];
  if (id < 0 || id >= vocab_size) {
    if (threadIdx.x == 0) check_data(faults, false, FaultReason::kTokenId, id, vocab_size - 1);
    return;
  }
  for (int64_t c = int64_t{threadIdx.x} * kVector; c < width; c += kThreads * kVector) {
    float x[kVector];
    load_floats(weight + id * stride + c, width - c, vectors, x);
    ZC_UNROLL for (int j = 0; j < kVector; ++j) x[j] *= scale;
    store_floats(out + row * width + c, width - c, vectors, x);
  }
}

}  // namespace

void embedding(Context& context, const EmbeddingArgs& a) {
  const int64_t width = a.out.size(1);
  const int64_t stride = a.weight.size(1);
  dispatch_float(a.weight.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* weight = a.weight.as<T>() + a.first_column();
    const uintptr_t addresses = address_bits(weight) | address_bits(a.out.data);
    const bool vectors = in_vectors(addresses, width) && in_vectors(addresses, stride);
    launch_early(context, &embedding_kernel<T>, blocks_for(a.ids.size(0), 1), kThreads, 0,
                 context.faults(), a.ids.as<int32_t>(), weight, a.out.as<float>(), a.weight.size(0),
                 width, stride, a.scale, vectors);
  });
}

}  // namespace zc::cuda
