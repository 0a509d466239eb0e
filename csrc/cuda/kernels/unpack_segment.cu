#include <algorithm>
#include <utility>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/positions.h"
#include "csrc/cuda/device/square.h"
#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kPlaceThreads = 512;
constexpr int kMostWarps = 4;  // of a page

// The row of every token: rows (n_kv_heads, n_rows) int32; n_placed (n_kv_heads) int32: tokens of
// the segment, 0 where anything is wrong. A block owns one KV head. Bound by latency.
__global__ void __launch_bounds__(kPlaceThreads)
    place_rows_kernel(FaultSink faults, SegmentPlace at, int32_t base, int64_t n_rows,
                      int32_t* rows, int32_t* n_placed) {
  const int kv_head = blockIdx.x;
  ZC_SHARED(int32_t, bad, [1]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  if (threadIdx.x == 0) bad[0] = 0;
  __syncthreads();
  const SegmentView view = listed_segment(faults, at, kv_head);
  const auto place = [&](int slot, int64_t position) {
    const int64_t row = position - base;
    if (!check_data(faults, row >= 0 && row < n_rows, FaultReason::kPositionRow, position, base,
                    base + n_rows - 1))
      atomicExch(&bad[0], 1);
    else if (slot < n_rows)  // in a segment of more tokens, one has no row
      rows[kv_head * n_rows + slot] = static_cast<int32_t>(row);
  };
  bool good = view.valid();
  if (good)
    good = check_data(faults, each_position<kPlaceThreads>(view, place), FaultReason::kBitmapCount,
                      at.layer, kv_head, at.segment);
  __syncthreads();
  if (threadIdx.x == 0) n_placed[kv_head] = good && bad[0] == 0 ? view.segment.n_tokens : 0;
}

// Distance of two rows of a tile, in elements: a row and 16 bytes, so that the lanes that write one
// column of eight tokens meet different banks.
template <typename T>
ZC_HD int tile_stride(int head_dim) {
  return head_dim + kPer16Bytes<T>;
}

// Pages back to rows of k and v (n_rows, n_kv_heads, head_dim), each token at its row:
//   K = code * scale_c + zero_c,  V = (code * scale_t + zero_t) * c_c
// Block (x, y) has page x of KV head y, a warp some squares of both parts, so that few loads wait
// for one another; the rows leave through a tile in shared memory, 32 * tile_stride elements.
// Bound by memory; of few pages, by latency.
template <typename T>
__global__ void __launch_bounds__(32 * kMostWarps, 8)
    unpack_segment_kernel(FaultSink faults, SegmentPlace at, const int32_t* rows,
                          const int32_t* n_placed, T* k, T* v, int64_t n_rows) {
  ZC_DYNAMIC_SHARED(shared);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int kv_head = blockIdx.y;
  const int page = blockIdx.x;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warps = blockDim.x >> 5;
  const int d = at.head_dim;
  const int stride = tile_stride<T>(d);
  const int n = n_placed[kv_head] - page * kPageTokens;  // tokens from this page on
  if (n <= 0) return;
  const SegmentView view = listed_segment(faults, at, kv_head);
  if (!page_inside(faults, at, view, page, kv_head)) return;

  T* k_tile = reinterpret_cast<T*>(shared);
  for (int square = warp; square < d / 16; square += warps) {
    const LaneSquare x =
        read_square<true>(view.k_part(page), view.segment.k_format, d, square, lane);
    ZC_UNROLL
    for (int p = 0; p < 2; ++p) ZC_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const int channel = lane_channel<true>(lane, square, p, 0, odd);
      ZC_UNROLL
      for (int hi = 0; hi < 2; ++hi) {
        float value = x.at[p][hi][odd];
        if (view.k_quantized())
          value = value * to_float(view.channel_params(0)[channel]) +
                  to_float(view.channel_params(1)[channel]);
        k_tile[lane_token<true>(lane, p, hi, odd) * stride + channel] = from_float<T>(value);
      }
    }
  }

  float scale[2][2] = {};  // [p][odd], of the lane's tokens
  float zero[2][2] = {};
  if (view.v_quantized()) {
    ZC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t params = view.token_params(page)[lane_token<false>(lane, i >> 1, 0, i & 1)];
      scale[i >> 1][i & 1] = to_float(token_scale(params));
      zero[i >> 1][i & 1] = to_float(token_zero(params));
    }
  }
  T* v_tile = k_tile + kPageTokens * stride;
  for (int square = warp; square < d / 16; square += warps) {
    const LaneSquare x =
        read_square<false>(view.v_part(page), view.segment.v_format, d, square, lane);
    ZC_UNROLL
    for (int hi = 0; hi < 2; ++hi) {
      const int channel = lane_channel<false>(lane, square, 0, hi, 0);
      const float c = view.v_quantized() ? to_float(view.channel_params(2)[channel]) : 1.0f;
      ZC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int p = i >> 1, odd = i & 1;
        float value = x.at[p][hi][odd];
        if (view.v_quantized()) value = (value * scale[p][odd] + zero[p][odd]) * c;
        v_tile[lane_token<false>(lane, p, hi, odd) * stride + channel] = from_float<T>(value);
      }
    }
  }
  __syncthreads();

  const int32_t* own_rows = rows + kv_head * n_rows + page * kPageTokens;
  const int per_row = d / kPer16Bytes<T>;
  const int count = (n < kPageTokens ? n : kPageTokens) * per_row;
  for (int i = threadIdx.x; i < 2 * count; i += blockDim.x) {
    const bool is_key = i < count;
    const int token = (is_key ? i : i - count) / per_row;
    const int j = (is_key ? i : i - count) % per_row;
    const int64_t to = (int64_t{own_rows[token]} * at.n_kv_heads + kv_head) * d;
    reinterpret_cast<uint4*>((is_key ? k : v) + to)[j] =
        reinterpret_cast<const uint4*>((is_key ? k_tile : v_tile) + token * stride)[j];
  }
}

}  // namespace

void unpack_segment(Context& context, const UnpackSegmentArgs& a) {
  const int64_t n_rows = a.k.size(0);
  const auto n_kv_heads = static_cast<int32_t>(a.k.size(1));
  const auto head_dim = static_cast<int32_t>(a.k.size(2));
  if (n_kv_heads == 0) return;
  check_pool(a.pool);
  const SegmentPlace at{a.pool.as<uint8_t>(), a.pool.size(0), a.table.as<int32_t>(),
                        a.table.size(0),      a.layer,        a.segment,
                        n_kv_heads,           head_dim};
  TensorView k = a.k;
  TensorView v = a.v;
  const int64_t scratch_bytes = 4 * (n_kv_heads + int64_t{n_kv_heads} * n_rows);
  with_aligned(context, {}, {&k, &v}, scratch_bytes, [&](uint8_t* scratch) {
    for (const auto& [copy, own] : {std::pair{k, a.k}, std::pair{v, a.v}})
      if (copy.data != own.data) context.copy(copy.data, own.data, own.size_bytes());
    auto* n_placed = reinterpret_cast<int32_t*>(scratch);
    int32_t* rows = n_placed + n_kv_heads;
    launch_early(context, &place_rows_kernel, static_cast<unsigned>(n_kv_heads), kPlaceThreads, 0,
                 context.faults(), at, a.base, n_rows, rows, n_placed);

    dispatch_float(k.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const int64_t warps = std::min(kMostWarps, head_dim / 16);
      launch_early(context, &unpack_segment_kernel<T>,
                   dim3(blocks_for(n_rows, kPageTokens), static_cast<unsigned>(n_kv_heads)),
                   static_cast<unsigned>(32 * warps),
                   2 * kPageTokens * static_cast<size_t>(tile_stride<T>(head_dim)) * sizeof(T),
                   context.faults(), at, rows, n_placed, k.as<T>(), v.as<T>(), n_rows);
    });
  });
}

}  // namespace zc::cuda
