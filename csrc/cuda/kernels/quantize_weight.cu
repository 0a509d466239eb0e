#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/int4_weight.h"
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

// Codes of 4 bits, (n, k / 2) bytes, with scales and zeros (n, k / kGroup), of a weight x (n, k).
// Half a warp owns a group: lane l has elements l, 16 + l, ..., so that what it adds up, and what
// lanes add to that, are the sums of int4_error in their order. Two of its elements share a byte.
// A group with what is no finite number has a scale of NaN, a zero and codes of 0. Bound by memory.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    quantize_nibbles_kernel(const T* x, uint8_t* codes, f16* scales, uint8_t* zeros,
                            int64_t n_groups) {
  constexpr int kOwn = kGroup / kInt4Words;
  const auto over_lanes = [](auto own, const auto& join) {
    ZC_UNROLL for (int step = kInt4Words / 2; step > 0; step /= 2) own =
        join(own, __shfl_xor_sync(0xffffffffu, own, step));
    return own;
  };
  const int lane = static_cast<int>(threadIdx.x) % kInt4Words;
  const int64_t group = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kInt4Words;
  const bool is_group = group < n_groups;
  float values[kOwn];
  Int4Range range{0.0f, 0.0f};
  uint32_t most = 0;  // bits of |x| grow with it, and beyond infinity's with NaN
  ZC_UNROLL for (int i = 0; i < kOwn; ++i) {
    values[i] = is_group ? to_float(x[group * kGroup + i * kInt4Words + lane]) : 0.0f;
    most = max(most, float_to_bits(values[i]) & 0x7fffffffu);
    range.lo = fminf(range.lo, values[i]);
    range.hi = fmaxf(range.hi, values[i]);
  }
  most = over_lanes(most, [](uint32_t a, uint32_t b) { return max(a, b); });
  range.lo = over_lanes(range.lo, [](float a, float b) { return fminf(a, b); });
  range.hi = over_lanes(range.hi, [](float a, float b) { return fmaxf(a, b); });

  Int4Params best{};
  float least = 0.0f;
  ZC_NO_UNROLL for (int candidate = 0; candidate < kInt4Candidates; ++candidate) {
    const Int4Params params = int4_params(range, candidate);
    const float inverse = int4_inverse(params);
    float error = 0.0f;
    ZC_UNROLL for (int i = 0; i < kOwn; ++i) error +=
        int4_error(values[i], int4_code(values[i], params, inverse), params);
    error = over_lanes(error, [](float a, float b) { return a + b; });
    if (candidate == 0 || error < least) {
      best = params;
      least = error;
    }
  }
  if (!is_group) return;
  const bool finite = most < 0x7f800000u;
  if (lane == 0) {
    scales[group] = finite ? to_f16(best.scale) : f16{0x7e00};
    zeros[group] = finite ? static_cast<uint8_t>(best.zero) : 0;
  }
  const float inverse = int4_inverse(best);
  ZC_UNROLL for (int i = 0; i < kOwn; i += 2) {
    const auto code = [&](int j) {
      return finite ? static_cast<uint32_t>(int4_code(values[j], best, inverse)) : 0u;
    };
    const int64_t pair = group * (kOwn / 2) + i / 2;  // two of them are a unit
    codes[pair / 2 * (kInt4Unit / 2) + 2 * lane + pair % 2] =
        static_cast<uint8_t>(code(i) | code(i + 1) << 4);
  }
}

template <typename T>
void quantize_to_nibbles(Context& context, const QuantizeWeightArgs& a) {
  const int64_t n_groups = a.scales.length();
  const auto run = [&](auto kernel) {
    launch(context, kernel, blocks_for(n_groups, kThreads / kInt4Words), kThreads, 0, a.x.as<T>(),
           a.out.as<uint8_t>(), a.scales.as<f16>(), a.zeros.as<uint8_t>(), n_groups);
  };
  switch (a.group()) {
    case 32:
      return run(&quantize_nibbles_kernel<T, 32>);
    case 64:
      return run(&quantize_nibbles_kernel<T, 64>);
    case 128:
      return run(&quantize_nibbles_kernel<T, 128>);
    default:
      throw Error(ErrorCode::kInternal,
                  format("device: groups of %lld", static_cast<long long>(a.group())));
  }
}

}  // namespace

void quantize_weight(Context& context, const QuantizeWeightArgs& a) {
  const int64_t k = a.x.size(1);
  if (a.x.size(0) == 0) return;
  if (a.out.dtype == DType::kU8) {
    dispatch_float(a.x.dtype, [&](auto type) {
      quantize_to_nibbles<typename decltype(type)::type>(context, a);
    });
    return;
  }
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &quantize_weight_kernel<T>, blocks_for(a.x.size(0), 1), kThreads, 0,
           a.x.as<T>(), a.out.as<int8_t>(), a.scales.as<float>(), k,
           in_vectors(address_bits(a.x.data) | address_bits(a.out.data), k));
  });
}

}  // namespace zc::cuda
