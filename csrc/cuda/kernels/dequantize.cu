#include "csrc/cuda/device/plain_codes.h"
#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/quantize.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

struct Quantized {
  const uint8_t* codes;  // (rows, row_bytes)
  const f16* scale;      // (groups)
  const f16* zero;       // (groups)
  const f16* channel;    // (channels), kCst only
  int64_t rows;
  int64_t channels;
  int64_t row_bytes;
  int64_t group_size;
  QuantScheme scheme;
  int32_t bits;
};

// out = code * scale + zero, and for kCst that times the channel's normaliser. A thread owns kCodes
// neighbours of one row. Bound by memory.
template <typename T>
__global__ void dequantize_kernel(Quantized a, T* out, bool vectors) {
  const int64_t per_row = (a.channels + kCodes - 1) / kCodes;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= a.rows * per_row) return;
  const int64_t row = i / per_row;
  const int64_t first = i % per_row * kCodes;
  const int64_t n = a.channels - first;
  const PlainCodes codes = read_plain(a.codes + row * a.row_bytes, a.channels, first, a.bits);
  float x[kCodes];
  ZC_UNROLL
  for (int j = 0; j < kCodes; ++j) {
    x[j] = 0.0f;
    if (j >= n) continue;
    const int64_t c = first + j;
    const int64_t group = a.scheme == QuantScheme::kChannelwise ? c
                          : a.scheme == QuantScheme::kGroupwise
                              ? row * (a.channels / a.group_size) + c / a.group_size
                              : row;
    x[j] = dequantize_code(codes.at[j], {to_float(a.scale[group]), to_float(a.zero[group])});
    if (a.scheme == QuantScheme::kCst) x[j] = x[j] * to_float(a.channel[c]);
  }
  store_floats(out + row * a.channels + first, n, vectors, x);
}

}  // namespace

void dequantize(Context& context, const DequantizeArgs& a) {
  const Quantized q{a.codes.as<uint8_t>(),
                    a.scale.as<f16>(),
                    a.zero.as<f16>(),
                    a.channel.as<f16>(),
                    a.out.size(0),
                    a.out.size(1),
                    a.codes.size(1),
                    a.group_size,
                    a.scheme,
                    a.bits};
  const int64_t n = q.rows * ((q.channels + kCodes - 1) / kCodes);
  const bool vectors = in_vectors(address_bits(a.out.data), q.channels);
  dispatch_float(a.out.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &dequantize_kernel<T>, blocks_for(n, kThreads), kThreads, 0, q, a.out.as<T>(),
           vectors);
  });
}

}  // namespace zc::cuda
