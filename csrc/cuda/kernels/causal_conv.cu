#include <algorithm>
#include <type_traits>

#include "csrc/cuda/device/sigmoid.h"
#include "csrc/cuda/launchers.h"
#include "csrc/cuda/state_page.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRowsAtOnce = 8;       // whose loads are under way together
constexpr int64_t kLeastRows = 32;   // of a part: more than a convolution looks back
constexpr int64_t kMostParts = 256;  // of a sequence

struct ConvParams {
  StatePlace place;
  const float* x;       // (rows, channels)
  const float* weight;  // (channels, width)
  const float* bias;    // (channels), may be null
  float* out;           // (rows, channels)
  int32_t channels;
  int32_t n_blocks;  // of channels
};

// The convolution in front of a recurrent layer, its inputs from before a call kept in a page. A
// thread owns a channel of a part of a sequence's rows; that of the first part reads the page and
// then writes it, the others read rows alone. The last inputs stay in registers. Bound by memory.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    causal_conv_kernel(FaultSink faults, const __grid_constant__ ConvParams p) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  constexpr int kKept = kWidth - 1;
  const int seq = blockIdx.x / p.n_blocks;
  const int channel = blockIdx.x % p.n_blocks * kThreads + threadIdx.x;
  const int64_t channels = p.channels;
  if (channel >= channels) return;
  const NewRows rows = new_rows(faults, p.place, seq);
  const int64_t n = rows.end - rows.begin;
  const int64_t even = (n + gridDim.y - 1) / gridDim.y;
  const int64_t part_rows = even > kLeastRows ? even : kLeastRows;
  const int64_t begin = blockIdx.y * part_rows;
  const int64_t end = begin + part_rows < n ? begin + part_rows : n;
  if (begin >= end && blockIdx.y > 0) return;

  const StatePage page = state_page(faults, p.place, seq, 0, conv_page_bytes(kWidth, channels));
  float* const out = p.out + rows.begin * channels + channel;
  if (page.data == nullptr) {
    if (page.is_masked)
      for (int64_t t = begin; t < end; ++t) out[t * channels] = 0.0f;
    return;
  }
  const float* const x = p.x + rows.begin * channels + channel;
  float* const kept = page.data + channel;
  const auto input = [&](int64_t t) {
    if (t >= 0) return x[t * channels];
    return p.place.from_zero ? 0.0f : kept[(kKept + t) * channels];
  };
  float weight[kWidth];
  ZC_UNROLL for (int j = 0; j < kWidth; ++j) weight[j] = p.weight[int64_t{channel} * kWidth + j];
  const float bias = p.bias == nullptr ? 0.0f : p.bias[channel];
  float seen[kKept + kRowsAtOnce];
  ZC_UNROLL for (int j = 0; j < kKept; ++j) seen[j] = input(begin - kKept + j);
  for (int64_t t = begin; t < end; t += kRowsAtOnce) {
    ZC_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) seen[kKept + r] =
        t + r < end ? x[(t + r) * channels] : 0.0f;
    ZC_UNROLL for (int r = 0; r < kRowsAtOnce; ++r) {
      float y = bias;
      ZC_UNROLL for (int j = 0; j < kWidth; ++j) y = fmaf(weight[j], seen[r + j], y);
      if (t + r < end) out[(t + r) * channels] = y * sigmoid(y);
    }
    ZC_UNROLL for (int j = 0; j < kKept; ++j) seen[j] = seen[kRowsAtOnce + j];
  }
  if (blockIdx.y > 0) return;
  // In this order nothing is read that was written: place j is read for one before it.
  ZC_UNROLL for (int j = 0; j < kKept; ++j) kept[j * channels] = input(n - kKept + j);
}

// Calls f(std::integral_constant<int, width>{}).
template <int kWidth = 2, typename F>
void dispatch_width(int64_t width, const F& f) {
  if (width == kWidth) return f(std::integral_constant<int, kWidth>{});
  if constexpr (kWidth < kMaxConvWidth)
    dispatch_width<kWidth + 1>(width, f);
  else
    throw Error(ErrorCode::kUnsupported,
                format("weight: width is %lld", static_cast<long long>(width)));
}

}  // namespace

void causal_conv(Context& context, const CausalConvArgs& a) {
  const int64_t rows = a.x.size(0);
  const int64_t n_seqs = a.states.size(0);
  if (n_seqs == 0 || a.channels() == 0) return;
  const int64_t n_blocks = (a.channels() + kThreads - 1) / kThreads;
  const ConvParams params{state_place(a, rows, a.n_heads),
                          a.x.as<float>(),
                          a.weight.as<float>(),
                          a.bias.defined() ? a.bias.as<float>() : nullptr,
                          a.out.as<float>(),
                          static_cast<int32_t>(a.channels()),
                          static_cast<int32_t>(n_blocks)};
  // How long each sequence is lies on the device: parts for one that has all rows, up to a few
  // waves of the whole device.
  const int64_t room = 64 * int64_t{context.n_multiprocessors} / (n_seqs * n_blocks);
  const int64_t parts = std::clamp<int64_t>(std::min(rows / kLeastRows, room), 1, kMostParts);
  const dim3 grid(blocks_for(n_seqs * n_blocks, 1), static_cast<unsigned>(parts));
  dispatch_width(a.width(), [&](auto width) {
    launch_early(context, &causal_conv_kernel<decltype(width)::value>, grid, kThreads, 0,
                 context.faults(), params);
  });
}

}  // namespace zc::cuda
