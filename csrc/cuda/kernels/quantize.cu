#include <algorithm>

#include "csrc/cuda/device/plain_codes.h"
#include "csrc/cuda/device/range_keys.h"
#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

// Quantization to the plain format, in up to three passes over x: ranges of columns (for the
// schemes that need some), parameters of groups, codes.
namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = 256;  // rows of a block that looks at columns

struct Quantizing {
  uint8_t* codes;  // (rows, row_bytes)
  f16* scale;      // (groups)
  f16* zero;       // (groups)
  f16* channel;    // (channels), kCst only
  int64_t rows;
  int64_t channels;
  int64_t row_bytes;
  int64_t group_size;  // of a row; all channels unless kGroupwise
  QuantScheme scheme;
  int32_t bits;
  int32_t norm;
  Range* ranges;  // (channels), where those of columns are searched
  // Zero before and after:
  unsigned long long* errors;  // (kRangeCandidates, channels)
  uint32_t* keys;              // (kRangeParts, channels)
  int32_t* arrivals;           // (blocks of 32 channels)
};

ZC_DEVICE void keep_params(const Quantizing& a, int64_t group, QuantParams p) {
  a.scale[group] = to_f16(p.scale);  // exact: both are halves already
  a.zero[group] = to_f16(p.zero);
}

// Ranges of columns: parameters (kChannelwise), ranges to be searched, or normalisers (kCst). Block
// (x, y) has kChunk rows of 32 channels, a lane one channel; the last block of those channels ends
// their work. 3 KB of shared memory. Bound by memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) column_ranges_kernel(Quantizing a, const T* x) {
  constexpr int kRowsAtOnce = 8;
  ZC_SHARED(float, partial, [kWarps][kRangeParts][32]);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int64_t channel = int64_t{blockIdx.y} * 32 + lane;
  const int64_t begin = int64_t{blockIdx.x} * kChunk;
  const int64_t end = begin + kChunk < a.rows ? begin + kChunk : a.rows;
  float top[kRangeParts];
  ZC_UNROLL
  for (int part = 0; part < kRangeParts; ++part) top[part] = least_of_part(part);
  for (int64_t row = begin + warp; row < end; row += kRowsAtOnce * kWarps) {
    float value[kRowsAtOnce];
    ZC_UNROLL
    for (int u = 0; u < kRowsAtOnce; ++u) {
      const int64_t r = row + u * kWarps;
      value[u] = r < end && channel < a.channels ? to_float(x[r * a.channels + channel]) : NAN;
    }
    ZC_UNROLL
    for (int u = 0; u < kRowsAtOnce; ++u) {
      top[0] = fmaxf(top[0], value[u]);
      top[1] = fmaxf(top[1], -value[u]);
      top[2] = fmaxf(top[2], fabsf(value[u]));
    }
  }
  ZC_UNROLL
  for (int part = 0; part < kRangeParts; ++part) partial[warp][part][lane] = top[part];
  __syncthreads();
  if (warp < kRangeParts && channel < a.channels) {
    float greatest = partial[0][warp][lane];
    for (int w = 1; w < kWarps; ++w) greatest = fmaxf(greatest, partial[w][warp][lane]);
    combine_part(&a.keys[warp * a.channels + channel], warp, greatest);
  }
  if (!arrives_last(&a.arrivals[blockIdx.y], gridDim.x)) return;
  if (warp != 0 || channel >= a.channels) return;
  const ChannelRange taken = take_range(&a.keys[channel], a.channels);
  if (a.scheme == QuantScheme::kCst)
    a.channel[channel] = to_f16(channel_normalizer(taken.largest));
  else if (a.norm == 0)
    keep_params(a, channel, candidate_params(taken.range, 0, a.bits));
  else
    a.ranges[channel] = taken.range;
}

// Parameters of columns from searched ranges, blocks as above. Bound by arithmetic.
template <typename T>
__global__ void __launch_bounds__(kThreads) search_columns_kernel(Quantizing a, const T* x) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int64_t channel = int64_t{blockIdx.y} * 32 + lane;
  const int64_t begin = int64_t{blockIdx.x} * kChunk;
  const int64_t end = begin + kChunk < a.rows ? begin + kChunk : a.rows;
  if (channel < a.channels) {
    const Range range = a.ranges[channel];
    if (range.lo <= range.hi) {
      CandidateErrors own(range, a.bits, a.norm);
      with_norm(a.norm, [&](auto norm) {
        constexpr int kNorm = decltype(norm)::value;
        for (int64_t row = begin + warp; row < end; row += kWarps)
          own.add<kNorm>(to_float(x[row * a.channels + channel]));
        own.leave_nan_out<kNorm>();
      });
      ZC_UNROLL
      for (int i = 0; i < kRangeCandidates; ++i)
        atomicAdd(&a.errors[i * a.channels + channel],
                  static_cast<unsigned long long>(own.sums[i]));
    }
  }
  if (!arrives_last(&a.arrivals[blockIdx.y], gridDim.x)) return;
  if (warp != 0 || channel >= a.channels) return;
  const int best = best_candidate(
      a.bits, a.norm, [&](int i) { return atomicExch(&a.errors[i * a.channels + channel], 0ull); });
  keep_params(a, channel, candidate_params(a.ranges[channel], best, a.bits));
}

// An element as the rows' schemes quantize it.
template <typename T>
ZC_DEVICE float row_value(const Quantizing& a, const T* x, int64_t row, int64_t c) {
  const float value = to_float(x[row * a.channels + c]);
  return a.scheme == QuantScheme::kCst ? value * (1.0f / to_float(a.channel[c])) : value;
}

// Parameters of the groups of rows. A warp owns one group. Bound by memory; where ranges are
// searched, by arithmetic.
template <typename T>
__global__ void __launch_bounds__(kThreads) group_params_kernel(Quantizing a, const T* x) {
  const int lane = threadIdx.x & 31;
  const int64_t per_row = a.channels / a.group_size;
  const int64_t group = int64_t{blockIdx.x} * kWarps + (threadIdx.x >> 5);
  if (group >= a.rows * per_row) return;
  const int64_t row = group / per_row;
  const int64_t first = group % per_row * a.group_size;
  Range range{INFINITY, -INFINITY};
  for (int64_t i = lane; i < a.group_size; i += 32) {
    const float value = row_value(a, x, row, first + i);
    range.lo = fminf(range.lo, value);
    range.hi = fmaxf(range.hi, value);
  }
  ZC_UNROLL
  for (int step = 1; step < 32; step *= 2) {
    range.lo = fminf(range.lo, __shfl_xor_sync(~0u, range.lo, step));
    range.hi = fmaxf(range.hi, __shfl_xor_sync(~0u, range.hi, step));
  }
  if (range.lo <= range.hi) range = {clamp_finite(range.lo), clamp_finite(range.hi)};
  int best = 0;
  if (a.norm != 0 && range.lo <= range.hi) {
    unsigned long long sums[kRangeCandidates] = {};
    for (int64_t begin = 0; begin < a.group_size; begin += kRangeTogether * 32) {
      const int64_t left = a.group_size - begin;
      const int64_t count = left < kRangeTogether * 32 ? left : kRangeTogether * 32;
      CandidateErrors own(range, a.bits, a.norm);
      with_norm(a.norm, [&](auto norm) {
        constexpr int kNorm = decltype(norm)::value;
        for (int64_t i = lane; i < count; i += 32)
          own.add<kNorm>(row_value(a, x, row, first + begin + i));
        own.leave_nan_out<kNorm>();
      });
      ZC_UNROLL
      for (int i = 0; i < kRangeCandidates; ++i) sums[i] += own.sums[i];
    }
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i) ZC_UNROLL
    for (int step = 1; step < 32; step *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], step);
    best = best_candidate(a.bits, a.norm, [&](int i) { return sums[i]; });
  }
  if (lane == 0) keep_params(a, group, candidate_params(range, best, a.bits));
}

// Codes, from the parameters. A thread owns kCodes neighbours of one row. Bound by memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(Quantizing a, const T* x, bool vectors) {
  const int64_t per_row = (a.channels + kCodes - 1) / kCodes;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= a.rows * per_row) return;
  const int64_t row = i / per_row;
  const int64_t first = i % per_row * kCodes;
  const int64_t n = a.channels - first;
  float value[kCodes];
  load_floats(x + row * a.channels + first, n, vectors, value);
  PlainCodes codes{};
  ZC_UNROLL
  for (int j = 0; j < kCodes; ++j) {
    if (j >= n) continue;
    const int64_t c = first + j;
    const int64_t group = a.scheme == QuantScheme::kChannelwise
                              ? c
                              : row * (a.channels / a.group_size) + c / a.group_size;
    if (a.scheme == QuantScheme::kCst) value[j] = value[j] * (1.0f / to_float(a.channel[c]));
    codes.at[j] = quant_code(value[j], to_float(a.zero[group]),
                             quant_inverse(to_float(a.scale[group])), a.bits);
  }
  write_plain(a.codes + row * a.row_bytes, a.channels, first, a.bits, codes);
}

}  // namespace

void quantize(Context& context, const QuantizeArgs& a) {
  static_assert(kCodes == kVector);
  Quantizing q{};
  q.codes = a.codes.as<uint8_t>();
  q.scale = a.scale.as<f16>();
  q.zero = a.zero.as<f16>();
  q.channel = a.channel.as<f16>();
  q.rows = a.x.size(0);
  q.channels = a.x.size(1);
  q.row_bytes = a.codes.size(1);
  q.group_size = a.scheme == QuantScheme::kGroupwise ? a.group_size : q.channels;
  q.scheme = a.scheme;
  q.bits = a.bits;
  q.norm = a.norm;
  const bool by_column = a.scheme == QuantScheme::kChannelwise;
  const bool search = by_column && a.norm != 0;
  const dim3 columns(std::max(1u, blocks_for(q.rows, kChunk)), blocks_for(q.channels, 32));
  if (by_column || a.scheme == QuantScheme::kCst) {
    const int64_t n_sums = search ? kRangeCandidates * q.channels : 0;
    int32_t* counters =
        context.counters(2 * n_sums + kRangeParts * q.channels + int64_t{columns.y});
    q.errors = reinterpret_cast<unsigned long long*>(counters);
    q.keys = reinterpret_cast<uint32_t*>(counters + 2 * n_sums);
    q.arrivals = counters + 2 * n_sums + kRangeParts * q.channels;
    if (search)
      q.ranges =
          static_cast<Range*>(context.scratch(q.channels * static_cast<int64_t>(sizeof(Range))));
  }
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = a.x.as<T>();
    if (by_column || a.scheme == QuantScheme::kCst)
      launch(context, &column_ranges_kernel<T>, columns, kThreads, 0, q, x);
    if (search) launch(context, &search_columns_kernel<T>, columns, kThreads, 0, q, x);
    if (!by_column && q.channels > 0)
      launch(context, &group_params_kernel<T>, blocks_for(a.scale.length(), kWarps), kThreads, 0, q,
             x);
    const int64_t n = q.rows * ((q.channels + kCodes - 1) / kCodes);
    launch(context, &quantize_kernel<T>, blocks_for(n, kThreads), kThreads, 0, q, x,
           in_vectors(address_bits(x), q.channels));
  });
}

}  // namespace zc::cuda
