#include <algorithm>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/positions.h"
#include "csrc/cuda/device/range_keys.h"
#include "csrc/cuda/device/square.h"
#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

// Quantizes selected rows into the pages of a segment, or of two at once: K channelwise, V
// channel-separable tokenwise (ZipCache, arXiv 2405.14256, Algs. 1 and 2), in two passes over the
// rows: ranges of channels, then pages. Slots beyond the last token count as NaN, which has no part
// in a range and the code 0.
namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
// Tokens of a block of the first pass: as many as leave each multiprocessor three blocks. They end
// with some hundred atomic operations, which fewer tokens do not pay.
constexpr int kMostChunk = 256;
constexpr int kLeastChunk = 64;
constexpr int kChunkBlocks = 3;

// One segment; of the grids, blockIdx.z is the segment's.
struct Packing {
  SegmentPlace at;
  const int32_t* ids;  // (n_kv_heads, n), rows of k and v
  int64_t n_rows;
  int32_t n;
  int32_t chunk;     // tokens of a block of the first pass
  int32_t n_chunks;  // 1 or more
  int32_t k_norm;
  int32_t v_norm;
  // Between the kernels:
  int32_t* good;  // (n_kv_heads): whether the head's table and ids are
  Range* ranges;  // (n_kv_heads, head_dim): of K, for a search
  // Zero before and after:
  int32_t* arrivals;           // (n_kv_heads): blocks that are done
  int32_t* bad_ids;            // (n_kv_heads): whether a block met some
  uint32_t* keys;              // (n_kv_heads, kRangeParts, head_dim): of K, and the last one of V
  unsigned long long* errors;  // (n_kv_heads, kRangeCandidates, head_dim): sums of range_units
};

struct Packings {
  Packing of[kMaxClasses];
};

ZC_DEVICE void keep_params(const SegmentView& view, int channel, QuantParams p) {
  view.channel_params(0)[channel] = to_f16(p.scale);  // exact: both are halves already
  view.channel_params(1)[channel] = to_f16(p.zero);
}

// Ranges of K's channels and the largest |V| of each, the ids checked on the way. Block (x, y) has
// a chunk of tokens of KV head y; a thread has one vector of channels of every group-th row and
// keeps four rows of K and of V under way. The last block of a head turns ranges into parameters.
// Shared memory: 12 bytes for each thread's elements. Bound by memory.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    segment_ranges_kernel(FaultSink faults, const __grid_constant__ Packings all, const T* k,
                          const T* v) {
  constexpr int kRowsAtOnce = 4;
  ZC_DYNAMIC_SHARED(shared);
  ZC_SHARED(int32_t, rows, [kMostChunk]);
  ZC_SHARED(int32_t, bad, [1]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const Packing& a = all.of[blockIdx.z];
  if (static_cast<int>(blockIdx.x) >= a.n_chunks) return;
  const int thread = threadIdx.x;
  const int kv_head = blockIdx.y;
  const int d = a.at.head_dim;
  const int32_t* ids = a.ids + int64_t{kv_head} * a.n;
  const int begin = blockIdx.x * a.chunk;
  const int count = a.n - begin < a.chunk ? a.n - begin : a.chunk;

  if (thread == 0) bad[0] = 0;
  __syncthreads();
  for (int i = thread; i < count; i += kThreads) {
    const int32_t id = ids[begin + i];
    const int32_t before = begin + i > 0 ? ids[begin + i - 1] : -1;
    const bool good = check_data(faults, id >= 0 && id < a.n_rows && id > before,
                                 FaultReason::kIdsOrder, a.n_rows);
    rows[i] = good ? id : -1;
    if (!good) atomicExch(&bad[0], 1);
  }
  __syncthreads();

  const int columns = d / kPer16Bytes<T>;
  const int groups = kThreads / columns;
  const int column = thread % columns;
  const int group = thread / columns;
  float top[kRangeParts][kPer16Bytes<T>];
  ZC_UNROLL
  for (int part = 0; part < kRangeParts; ++part) ZC_UNROLL
  for (int e = 0; e < kPer16Bytes<T>; ++e) top[part][e] = least_of_part(part);
  for (int first = group; first < count && group < groups; first += kRowsAtOnce * groups) {
    const uint4 nan = make_uint4(~0u, ~0u, ~0u, ~0u);
    uint4 k_vectors[kRowsAtOnce];
    uint4 v_vectors[kRowsAtOnce];
    ZC_UNROLL
    for (int u = 0; u < kRowsAtOnce; ++u) {
      const int i = first + u * groups;
      const int64_t row = i < count ? rows[i] : -1;
      const int64_t at = (row * a.at.n_kv_heads + kv_head) * d + column * kPer16Bytes<T>;
      k_vectors[u] = row >= 0 ? *reinterpret_cast<const uint4*>(k + at) : nan;
      v_vectors[u] = row >= 0 ? *reinterpret_cast<const uint4*>(v + at) : nan;
    }
    ZC_UNROLL
    for (int u = 0; u < kRowsAtOnce; ++u) {
      float x[kPer16Bytes<T>];
      unpack_16_bytes<T>(k_vectors[u], x);
      ZC_UNROLL
      for (int e = 0; e < kPer16Bytes<T>; ++e) {
        top[0][e] = fmaxf(top[0][e], x[e]);
        top[1][e] = fmaxf(top[1][e], -x[e]);
      }
      unpack_16_bytes<T>(v_vectors[u], x);
      ZC_UNROLL
      for (int e = 0; e < kPer16Bytes<T>; ++e) top[2][e] = fmaxf(top[2][e], fabsf(x[e]));
    }
  }

  float* partial = reinterpret_cast<float*>(shared);  // (groups, kRangeParts, d)
  if (group < groups) {
    ZC_UNROLL for (int s = 0; s < 3; ++s) ZC_UNROLL for (int e = 0; e < kPer16Bytes<T>; ++e)
        partial[(group * 3 + s) * d + column * kPer16Bytes<T> + e] = top[s][e];
  }
  __syncthreads();
  uint32_t* keys = a.keys + int64_t{kv_head} * kRangeParts * d;
  for (int i = thread; i < kRangeParts * d; i += kThreads) {
    float x = partial[i];
    for (int g = 1; g < groups; ++g) x = fmaxf(x, partial[g * kRangeParts * d + i]);
    combine_part(&keys[i], i / d, x);
  }
  if (thread == 0 && bad[0] != 0) atomicExch(&a.bad_ids[kv_head], 1);
  if (!arrives_last(&a.arrivals[kv_head], a.n_chunks)) return;

  const SegmentView view = reserved_segment(faults, a.at, kv_head);
  if (thread == 0) bad[0] = atomicExch(&a.bad_ids[kv_head], 0);
  __syncthreads();
  const Segment& s = view.segment;
  const int64_t span = s.span < 0 ? -int64_t{s.span} : s.span;
  const bool good =
      view.valid() &&
      check_data(faults, view.k_quantized() && view.v_quantized(), FaultReason::kSegmentFloats) &&
      check_data(faults, s.n_tokens == a.n, FaultReason::kIdsCount, a.n, s.n_tokens) &&
      check_data(faults, span == 0 || span == a.n_rows, FaultReason::kBitmapSpan, s.span,
                 a.n_rows) &&
      bad[0] == 0;
  if (thread == 0) a.good[kv_head] = good ? 1 : 0;
  for (int c = thread; c < d; c += kThreads) {
    const ChannelRange taken = take_range(&keys[c], d);
    if (!good) continue;
    view.channel_params(2)[c] = to_f16(channel_normalizer(taken.largest));
    if (a.k_norm == 0)
      keep_params(view, c, candidate_params(taken.range, 0, format_bits(s.k_format)));
    else
      a.ranges[kv_head * d + c] = taken.range;
  }
}

// K's parameters from a searched range. Block (x, y) has a chunk of tokens of KV head y, a thread
// one channel of every group-th token, or of heads with more channels than threads several, one
// after the other; sums of integers are the same in any order. Bound by arithmetic.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    search_ranges_kernel(FaultSink faults, const __grid_constant__ Packings all, const T* k) {
  constexpr int kRowsAtOnce = 4;
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const Packing& a = all.of[blockIdx.z];
  const int kv_head = blockIdx.y;
  const int d = a.at.head_dim;
  if (a.k_norm == 0 || static_cast<int>(blockIdx.x) >= a.n_chunks || a.good[kv_head] == 0) return;
  const SegmentView view = reserved_segment(faults, a.at, kv_head);
  const int bits = format_bits(view.segment.k_format);
  const int32_t* ids = a.ids + int64_t{kv_head} * a.n;
  const Range* ranges = a.ranges + int64_t{kv_head} * d;
  unsigned long long* errors = a.errors + int64_t{kv_head} * kRangeCandidates * d;

  const int group = threadIdx.x / d;
  const int groups = max(1, kThreads / d);
  for (int channel = threadIdx.x % d; channel < d && group < groups; channel += kThreads) {
    const Range range = ranges[channel];
    if (!(range.lo <= range.hi)) continue;
    CandidateErrors own(range, bits, a.k_norm);
    const int begin = blockIdx.x * a.chunk;
    const int end = a.n - begin < a.chunk ? a.n : begin + a.chunk;
    // A row of the prompt is far below 2^31 bytes; its offset in k may be above.
    const int64_t stride = a.at.n_kv_heads * d;
    const T* from = k + kv_head * d + channel;
    with_norm(a.k_norm, [&](auto norm) {
      constexpr int kNorm = decltype(norm)::value;
      int i = begin + group;
      for (; i + (kRowsAtOnce - 1) * groups < end; i += kRowsAtOnce * groups) {
        float x[kRowsAtOnce];
        ZC_UNROLL
        for (int u = 0; u < kRowsAtOnce; ++u) x[u] = to_float(from[ids[i + u * groups] * stride]);
        ZC_UNROLL
        for (int u = 0; u < kRowsAtOnce; ++u) own.add<kNorm>(x[u]);
      }
      for (; i < end; i += groups) own.add<kNorm>(to_float(from[ids[i] * stride]));
      own.leave_nan_out<kNorm>();
    });
    ZC_UNROLL
    for (int i = 0; i < kRangeCandidates; ++i)
      atomicAdd(&errors[i * d + channel], static_cast<unsigned long long>(own.sums[i]));
  }
  if (!arrives_last(&a.arrivals[kv_head], a.n_chunks)) return;
  for (int c = threadIdx.x; c < d; c += kThreads) {
    const int best =
        best_candidate(bits, a.k_norm, [&](int i) { return atomicExch(&errors[i * d + c], 0ull); });
    keep_params(view, c, candidate_params(ranges[c], best, bits));
  }
}

// Distance of two rows of a tile, in elements: the rows that ldmatrix reads, or lanes, meet
// different banks.
ZC_HD int tile_stride(int head_dim) { return head_dim + 8; }

// Bytes of a page of two parts of 8 bits, the most that one is quantized to.
ZC_HD int image_bytes(int head_dim) {
  return static_cast<int>(page_bytes(Format::kU8, Format::kU8, head_dim));
}

template <typename T>
ZC_HD int warp_bytes(int head_dim) {
  return 2 * kPageTokens * tile_stride(head_dim) * static_cast<int>(sizeof(T)) +
         kPageTokens * 2 * static_cast<int>(sizeof(float)) + image_bytes(head_dim);
}

// A lane's elements of one square of a tile (16, head_dim) of rows.
template <bool kKey>
ZC_DEVICE LaneSquare load_square(const float* tile, int head_dim, int square, int lane) {
  LaneSquare x;
  ZC_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    x.at[p][hi][odd] = tile[lane_token<kKey>(lane, p, hi, odd) * tile_stride(head_dim) +
                            lane_channel<kKey>(lane, square, p, hi, odd)];
  }
  return x;
}
template <bool kKey, typename T>
ZC_DEVICE LaneSquare load_square(const T* tile, int head_dim, int square, int lane) {
  // Matrix 2 p + hi of ldmatrix: 8 tokens by 8 channels, turned around for V.
  const int high = (lane >> 3) & 1;
  const int p = lane >> 4;
  const int token = (lane & 7) + 8 * (kKey ? high : p);
  const int channel = 16 * square + 8 * (kKey ? p : high);
  const uint32_t address = simt::smem_u32(tile + token * tile_stride(head_dim) + channel);
  uint32_t pairs[4];
  if constexpr (kKey)
    simt::ldmatrix_x4(pairs, address);
  else
    simt::ldmatrix_x4_trans(pairs, address);
  LaneSquare x;
  ZC_UNROLL
  for (int i = 0; i < 4; ++i) {
    x.at[i >> 1][i & 1][0] = low_half(pairs[i], T{});
    x.at[i >> 1][i & 1][1] = high_half(pairs[i], T{});
  }
  return x;
}

// What a value is quantized with. Codes are reckoned in units of 2^-8, which changes no bit and
// lets the multiplication clamp at no cost.
struct alignas(8) Grid {
  float zero;
  float inverse;  // of 256 scales
};
ZC_DEVICE Grid grid_of(QuantParams p) { return {p.zero, quant_inverse(p.scale) / 256.0f}; }
ZC_DEVICE float last_code(Format f) {
  return static_cast<float>((1 << format_bits(f)) - 1) / 256.0f;
}

// quant_code in the lowest byte: held between 0 and the last code before it is rounded, which
// changes nothing and lets an addition do the rounding. NaN gives 0.
ZC_DEVICE uint32_t code_bits(float x, const Grid& grid, float last) {
  const float code = fminf(__saturatef((x - grid.zero) * grid.inverse), last);
  return float_to_bits(code + 49152.0f);  // 1.5 * 2^15, whose neighbours are 2^-8 apart
}
ZC_DEVICE uint32_t join_codes(uint32_t c00, uint32_t c10, uint32_t c01, uint32_t c11) {
  return (c00 & 0xffu) | (c10 & 0xffu) << 8 | (c01 & 0xffu) << 16 | c11 << 24;
}

// Starts copying the rows of one page to the tiles of K and V.
template <typename T>
ZC_DEVICE void load_rows(const Packing& a, const T* k, const T* v, int kv_head, int page, int lane,
                         T* k_tile, T* v_tile) {
  const int d = a.at.head_dim;
  const int slot = page * kPageTokens + (lane & 15);
  int row = slot < a.n ? a.ids[int64_t{kv_head} * a.n + slot] : -1;
  if (row >= a.n_rows) row = -1;           // already reported
  const int per_row = d / kPer16Bytes<T>;  // even
  int token = lane / per_row;
  int vector = lane % per_row;
  for (int i = 0; i < per_row / 2; ++i) {
    const int64_t from_row = __shfl_sync(~0u, row, token);
    const int to = token * tile_stride(d) + vector * kPer16Bytes<T>;
    if (from_row >= 0) {
      const int64_t from = (from_row * a.at.n_kv_heads + kv_head) * d + vector * kPer16Bytes<T>;
      simt::cp_async_16(simt::smem_u32(k_tile + to), k + from);
      simt::cp_async_16(simt::smem_u32(v_tile + to), v + from);
    } else {
      const uint4 nan = make_uint4(~0u, ~0u, ~0u, ~0u);
      *reinterpret_cast<uint4*>(k_tile + to) = nan;
      *reinterpret_cast<uint4*>(v_tile + to) = nan;
    }
    token += 32 / per_row;
    vector += 32 % per_row;
    if (vector >= per_row) {
      vector -= per_row;
      ++token;
    }
  }
  simt::cp_async_commit();
}

// Of the four tokens of V that a lane has a part of, [p][odd].
struct LaneParams {
  QuantParams at[2][2];
};
struct LaneRanges {
  Range at[2][2];
};

// V over its channel's normaliser.
ZC_DEVICE float normalized(const LaneSquare& x, const float* inverse, int lane, int square, int p,
                           int hi, int odd) {
  return x.at[p][hi][odd] * inverse[lane_channel<false>(lane, square, p, hi, odd)];
}

// Ranges of tokens, not yet clamped; lo > hi where there is nothing but NaN.
template <typename T>
ZC_DEVICE LaneRanges token_ranges(const T* v_tile, const float* inverse, int d, int lane) {
  LaneRanges ranges;
  ZC_UNROLL
  for (int i = 0; i < 4; ++i) ranges.at[i >> 1][i & 1] = {INFINITY, -INFINITY};
  for (int square = 0; square < d / 16; ++square) {
    const LaneSquare x = load_square<false>(v_tile, d, square, lane);
    ZC_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
      const float y = normalized(x, inverse, lane, square, p, hi, odd);
      ranges.at[p][odd].lo = fminf(ranges.at[p][odd].lo, y);
      ranges.at[p][odd].hi = fmaxf(ranges.at[p][odd].hi, y);
    }
  }
  ZC_UNROLL
  for (int i = 0; i < 4; ++i) {
    Range& r = ranges.at[i >> 1][i & 1];
    ZC_UNROLL
    for (int step = 4; step < 32; step *= 2) {  // over the lanes of the same tokens
      r.lo = fminf(r.lo, __shfl_xor_sync(~0u, r.lo, step));
      r.hi = fmaxf(r.hi, __shfl_xor_sync(~0u, r.hi, step));
    }
  }
  return ranges;
}

ZC_DEVICE Range clamped(Range r) {
  return r.lo <= r.hi ? Range{clamp_finite(r.lo), clamp_finite(r.hi)} : r;
}

// The parameters with the least error; ties go to the wider range.
template <typename T>
ZC_DEVICE LaneParams searched_params(const T* v_tile, const float* inverse,
                                     const LaneRanges& ranges, int d, int bits, int norm,
                                     int lane) {
  const float last = range_last(bits);
  float lo[4], across[4];
  double least[4];
  int best[4];
  ZC_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Range range = clamped(ranges.at[i >> 1][i & 1]);
    lo[i] = range.lo;
    across[i] = range_inverse(range);
  }
  ZC_NO_UNROLL
  for (int candidate = 0; candidate < kRangeCandidates; ++candidate) {
    const float spread = range_spread(candidate, bits);
    const float unit = power_of_two(range_exponent(candidate, bits, norm));
    uint32_t sums[4] = {};
    ZC_NO_UNROLL
    for (int square = 0; square < d / 16; ++square) {
      const LaneSquare x = load_square<false>(v_tile, d, square, lane);
      ZC_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
        const int token = 2 * p + odd;
        const float y = normalized(x, inverse, lane, square, p, hi, odd);
        const float error = range_error(range_place(y, lo[token], across[token]), spread, last);
        if (y == y) sums[token] += range_units(range_power(error, norm), unit);
      }
    }
    const double weight = range_weight(candidate, bits, norm);
    ZC_UNROLL
    for (int i = 0; i < 4; ++i) {
      ZC_UNROLL
      for (int step = 4; step < 32; step *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], step);
      const double error = static_cast<double>(sums[i]) * weight;
      if (candidate != 0 && error >= least[i]) continue;
      least[i] = error;
      best[i] = candidate;
    }
  }
  LaneParams params;
  ZC_UNROLL
  for (int i = 0; i < 4; ++i)
    params.at[i >> 1][i & 1] = candidate_params(clamped(ranges.at[i >> 1][i & 1]), best[i], bits);
  return params;
}

// Token parameters of V, to grids (16) and, as they are stored, to words (16); both in shared
// memory of this warp. kSearch: ranges are searched where norm is not 0.
template <bool kSearch, typename T>
ZC_DEVICE void choose_token_params(const T* v_tile, const float* inverse, int d, int bits, int norm,
                                   int lane, Grid* grids, uint32_t* words) {
  const LaneRanges ranges = token_ranges(v_tile, inverse, d, lane);
  if (kSearch && norm != 0) {
    const LaneParams params = searched_params(v_tile, inverse, ranges, d, bits, norm, lane);
    if (lane < 4) {
      ZC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int token = lane_token<false>(lane, i >> 1, 0, i & 1);
        const QuantParams& p = params.at[i >> 1][i & 1];
        grids[token] = grid_of(p);
        words[token] = pack_token_params(to_f16(p.scale), to_f16(p.zero));
      }
    }
  } else {
    // Eight lanes know the ranges of the same four tokens; dividing is left to one lane a token.
    Range* shared_ranges = reinterpret_cast<Range*>(grids);
    if (lane < 4) {
      ZC_UNROLL
      for (int i = 0; i < 4; ++i)
        shared_ranges[lane_token<false>(lane, i >> 1, 0, i & 1)] = ranges.at[i >> 1][i & 1];
    }
    __syncwarp();
    const QuantParams p = candidate_params(clamped(shared_ranges[lane & 15]), 0, bits);
    __syncwarp();
    if (lane < kPageTokens) {
      grids[lane] = grid_of(p);
      words[lane] = pack_token_params(to_f16(p.scale), to_f16(p.zero));
    }
  }
  __syncwarp();
}

// Pages and the bitmap. Block (x, y) has pages of KV head y; a warp builds one page at a time in
// shared memory: its 16 rows of K and V arrive there, each lane turns its squares into its own
// words, and the page leaves in vectors. Shared memory: 12 head_dim bytes, and warp_bytes a warp.
// Bound by memory; where V's ranges are searched, by arithmetic.
template <typename T, bool kSearch>
__global__ void __launch_bounds__(128, kSearch || sizeof(T) == 4 ? 3 : 4)
    pack_segment_kernel(FaultSink faults, const __grid_constant__ Packings all, const T* k,
                        const T* v) {
  ZC_DYNAMIC_SHARED(shared);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const Packing& a = all.of[blockIdx.z];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warps = blockDim.x >> 5;
  const int kv_head = blockIdx.y;
  const int d = a.at.head_dim;
  const int n_pages = (a.n + kPageTokens - 1) / kPageTokens;
  Grid* k_grids = reinterpret_cast<Grid*>(shared);           // (d)
  float* v_inverse = reinterpret_cast<float*>(k_grids + d);  // (d): of V's channel normaliser
  uint8_t* own = shared + 12 * d + warp * warp_bytes<T>(d);
  T* k_tile = reinterpret_cast<T*>(own);
  T* v_tile = k_tile + kPageTokens * tile_stride(d);
  Grid* v_grids = reinterpret_cast<Grid*>(v_tile + kPageTokens * tile_stride(d));  // (16)
  uint8_t* image = reinterpret_cast<uint8_t*>(v_grids + kPageTokens);

  int page = blockIdx.x * warps + warp;
  // Under way while the table is read.
  if (page < n_pages) load_rows(a, k, v, kv_head, page, lane, k_tile, v_tile);
  const SegmentView view = reserved_segment(faults, a.at, kv_head);
  if (a.good[kv_head] == 0) {
    simt::cp_async_wait<0>();
    return;
  }
  for (int c = threadIdx.x; c < d; c += blockDim.x) {
    k_grids[c] =
        grid_of({to_float(view.channel_params(0)[c]), to_float(view.channel_params(1)[c])});
    v_inverse[c] = 1.0f / to_float(view.channel_params(2)[c]);
  }
  __syncthreads();

  const Format k_format = view.segment.k_format;
  const Format v_format = view.segment.v_format;
  const float k_last = last_code(k_format);
  const float v_last = last_code(v_format);
  const int page_words = (view.params_offset + kPageTokens * 4) / 4;
  const bool dense = !in_fragment_order(k_format, d) || !in_fragment_order(v_format, d);
  while (page < n_pages) {
    if (dense)
      for (int i = lane; i < page_words; i += 32) reinterpret_cast<uint32_t*>(image)[i] = 0;
    simt::cp_async_wait<0>();
    __syncwarp();

    write_part<true>(image, k_format, d, lane, [&](int square) {
      const LaneSquare x = load_square<true>(k_tile, d, square, lane);
      LaneCodes codes;
      ZC_UNROLL
      for (int p = 0; p < 2; ++p) {
        // Of two neighbouring channels.
        const Grid(&grids)[2] = *reinterpret_cast<const Grid(*)[2]>(
            k_grids + lane_channel<true>(lane, square, p, 0, 0));
        codes.word[p] = join_codes(
            code_bits(x.at[p][0][0], grids[0], k_last), code_bits(x.at[p][1][0], grids[0], k_last),
            code_bits(x.at[p][0][1], grids[1], k_last), code_bits(x.at[p][1][1], grids[1], k_last));
      }
      return codes;
    });

    uint32_t* v_params = reinterpret_cast<uint32_t*>(image + view.params_offset);
    choose_token_params<kSearch>(v_tile, v_inverse, d, format_bits(v_format), a.v_norm, lane,
                                 v_grids, v_params);
    Grid grids[2][2];  // [p][odd], of the lane's tokens
    ZC_UNROLL
    for (int i = 0; i < 4; ++i)
      grids[i >> 1][i & 1] = v_grids[lane_token<false>(lane, i >> 1, 0, i & 1)];
    write_part<false>(image + view.v_offset, v_format, d, lane, [&](int square) {
      LaneSquare x = load_square<false>(v_tile, d, square, lane);
      ZC_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
        x.at[p][hi][odd] = normalized(x, v_inverse, lane, square, p, hi, odd);
      }
      LaneCodes codes;
      ZC_UNROLL
      for (int p = 0; p < 2; ++p)
        codes.word[p] = join_codes(code_bits(x.at[p][0][0], grids[p][0], v_last),
                                   code_bits(x.at[p][1][0], grids[p][0], v_last),
                                   code_bits(x.at[p][0][1], grids[p][1], v_last),
                                   code_bits(x.at[p][1][1], grids[p][1], v_last));
      return codes;
    });
    __syncwarp();

    if (page_inside(faults, a.at, view, page, kv_head)) {
      uint4* to = reinterpret_cast<uint4*>(view.k_part(page));
      for (int i = lane; i < page_words / 4; i += 32)
        to[i] = reinterpret_cast<const uint4*>(image)[i];
    }
    __syncwarp();
    page += gridDim.x * warps;
    if (page < n_pages) load_rows(a, k, v, kv_head, page, lane, k_tile, v_tile);
  }

  if (view.segment.span <= 0) return;
  // The salient segment writes the bitmap that both classes share.
  uint8_t* bitmap = view.pool + int64_t{view.segment.bitmap_unit} * kPageUnitBytes;
  const int64_t n_bytes = (int64_t{view.segment.span} + 7) / 8;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n_bytes;
       i += int64_t{gridDim.x} * blockDim.x)
    bitmap[i] = bitmap_byte(a.ids + int64_t{kv_head} * a.n, a.n, 0, i);
}

// Segments of the same rows, each class with a segment of its own, at once.
void pack_classes(Context& context, const PackSegmentsArgs& a) {
  const auto n_kv_heads = static_cast<int32_t>(a.k.size(1));
  const auto head_dim = static_cast<int32_t>(a.k.size(2));
  if (n_kv_heads == 0) return;
  check_pool(a.pool);
  TensorView k = a.k;
  TensorView v = a.v;
  const int64_t channels = int64_t{n_kv_heads} * head_dim;
  int64_t longest = 0;
  int64_t n_tokens = 0;
  bool searches_k = false;
  bool searches_v = false;
  for (int i = 0; i < a.n_classes; ++i) {
    const int64_t n = a.classes[i].ids.size(1);
    ZC_CHECK(n < int64_t{1} << 30, ErrorCode::kUnsupported, "ids: %lld tokens, expected below 2^30",
             static_cast<long long>(n));
    longest = std::max(longest, n);
    n_tokens += n;
    searches_k = searches_k || a.classes[i].k_norm != 0;
    searches_v = searches_v || a.classes[i].v_norm != 0;
  }
  int chunk = kMostChunk;
  while (chunk > kLeastChunk &&
         n_tokens * n_kv_heads < int64_t{chunk} * kChunkBlocks * context.n_multiprocessors)
    chunk /= 2;

  // Of each class.
  const int64_t ranges_bytes = searches_k ? channels * static_cast<int64_t>(sizeof(Range)) : 0;
  const int64_t own_bytes = (ranges_bytes + 4 * n_kv_heads + 7) / 8 * 8;
  const int64_t n_sums = searches_k ? channels * kRangeCandidates : 0;
  const int64_t own_counters = 2 * n_sums + (kRangeParts * channels + 2 * n_kv_heads + 1) / 2 * 2;
  with_aligned(context, {&k, &v}, {}, a.n_classes * own_bytes, [&](uint8_t* scratch) {
    int32_t* counters = context.counters(a.n_classes * own_counters);
    Packings all{};
    for (int i = 0; i < a.n_classes; ++i) {
      const PackSegmentsArgs::Class& own = a.classes[i];
      Packing& p = all.of[i];
      p.at = {a.pool.as<uint8_t>(), a.pool.size(0), a.table.as<int32_t>(),
              a.table.size(0),      a.layer,        own.segment,
              n_kv_heads,           head_dim};
      p.ids = own.ids.as<int32_t>();
      p.n_rows = k.size(0);
      p.n = static_cast<int32_t>(own.ids.size(1));
      p.chunk = chunk;
      p.n_chunks = std::max(1, (p.n + chunk - 1) / chunk);
      p.k_norm = own.k_norm;
      p.v_norm = own.v_norm;
      p.ranges = reinterpret_cast<Range*>(scratch + i * own_bytes);
      p.good = reinterpret_cast<int32_t*>(scratch + i * own_bytes + ranges_bytes);
      int32_t* const own_counter = counters + i * own_counters;
      p.errors = reinterpret_cast<unsigned long long*>(own_counter);
      p.keys = reinterpret_cast<uint32_t*>(own_counter + 2 * n_sums);
      p.arrivals = own_counter + 2 * n_sums + kRangeParts * channels;
      p.bad_ids = p.arrivals + n_kv_heads;
    }

    const auto heads = static_cast<unsigned>(n_kv_heads);
    const auto classes = static_cast<unsigned>(a.n_classes);
    const dim3 chunks(std::max(1u, blocks_for(longest, chunk)), heads, classes);
    dispatch_float(k.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const size_t partial_bytes = kRangeParts * sizeof(float) * kPer16Bytes<T> * kThreads;
      launch_early(context, &segment_ranges_kernel<T>, chunks, kThreads, partial_bytes,
                   context.faults(), all, k.as<T>(), v.as<T>());
      if (searches_k)
        launch_early(context, &search_ranges_kernel<T>, chunks, kThreads, 0, context.faults(), all,
                     k.as<T>());
      const int64_t own = warp_bytes<T>(head_dim);
      const int64_t warps = std::clamp<int64_t>(64 * 1024 / own, 1, 4);
      // A block reads the table once: more pages for each where there are waves of blocks.
      const auto pages = [](int64_t n) { return (n + kPageTokens - 1) / kPageTokens; };
      const int64_t room = 32 * int64_t{context.n_multiprocessors} * warps;
      const int64_t per_warp = std::clamp<int64_t>(pages(n_tokens) * n_kv_heads / room, 1, 4);
      const dim3 blocks(std::max(1u, blocks_for(pages(longest), warps * per_warp)), heads, classes);
      const auto pack = [&](auto* kernel) {
        launch_early(context, kernel, blocks, static_cast<unsigned>(32 * warps),
                     static_cast<size_t>(12 * head_dim + warps * own), context.faults(), all,
                     k.as<T>(), v.as<T>());
      };
      if (searches_v)
        pack(&pack_segment_kernel<T, true>);
      else
        pack(&pack_segment_kernel<T, false>);
    });
  });
}

}  // namespace

void pack_segment(Context& context, const PackSegmentArgs& a) {
  pack_classes(context,
               {a.k, a.v, a.pool, a.table, a.layer, {{a.ids, a.segment, a.k_norm, a.v_norm}}, 1});
}

void pack_segments(Context& context, const PackSegmentsArgs& a) { pack_classes(context, a); }

}  // namespace zc::cuda
