#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/quantize.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// Codes (n, k) and scales (n) of a weight x (n, k). A block owns a row, which it reads twice. A row
// with what is no finite number has a scale of NaN and codes of 0. Bound by memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_weight_kernel(const T* x, int8_t* codes, float* scales, int64_t k, bool vectors) {
  ZC_SHARED(uint32_t, largest, [kThreads / 32]);
  const int64_t row = blockIdx.x;
  x += row * k;
  codes += row * k;
  uint32_t most = 0;  // bits of |x| grow with it, and beyond infinity's with NaN
  for (int64_t c = threadIdx.x * kVector; c < k; c += kThreads * kVector) {
    float values[kVector];
    load_floats(x + c, k - c, vectors, values);
    ZC_UNROLL for (int j = 0; j < kVector; ++j) most =
        max(most, float_to_bits(values[j]) & 0x7fffffffu);
  }
  most = __reduce_max_sync(0xffffffffu, most);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w) most = max(most, largest[w]);
  const bool finite = most < 0x7f800000u;
  const float scale = finite ? weight_scale(bits_to_float(most)) : bits_to_float(0x7fc00000u);
  if (threadIdx.x == 0) scales[row] = scale;
  for (int64_t c = threadIdx.x * kVector; c < k; c += kThreads * kVector) {
    float values[kVector];
    load_floats(x + c, k - c, vectors, values);
    uint32_t words[2] = {};
    ZC_UNROLL for (int j = 0; j < kVector; ++j) {
      const int code = scale > 0.0f ? static_cast<int>(weight_code(values[j], scale)) : 0;
      words[j / 4] |= (static_cast<uint32_t>(code) & 0xffu) << 8 * (j % 4);
    }
    if (vectors)  // then k is a multiple of kVector
      *reinterpret_cast<uint2*>(codes + c) = make_uint2(words[0], words[1]);
    else
      for (int j = 0; j < kVector && c + j < k; ++j)
        codes[c + j] = static_cast<int8_t>(words[j / 4] >> 8 * (j % 4));
  }
}

}  // namespace

void quantize_weight(Context& context, const QuantizeWeightArgs& a) {
  const int64_t k = a.x.size(1);
  ZC_CHECK(a.out.dtype != DType::kU8, ErrorCode::kUnsupported,
           "out: codes of 4 bits are made on a CPU only");
  if (a.x.size(0) == 0) return;
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &quantize_weight_kernel<T>, blocks_for(a.x.size(0), 1), kThreads, 0,
           a.x.as<T>(), a.out.as<int8_t>(), a.scales.as<float>(), k,
           in_vectors(address_bits(a.x.data) | address_bits(a.out.data), k));
  });
}

}  // namespace zc::cuda
