#include <algorithm>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/content.h"
#include "csrc/cuda/device/positions.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kHeadThreads = 512;

// Positions and channel parameters of one KV head, which a block owns; good (n_kv_heads): whether
// its table is. Bound by latency.
__global__ void __launch_bounds__(kHeadThreads, 2)
    export_heads_kernel(FaultSink faults, SegmentPlace at, Content content, int32_t* good) {
  const int kv_head = blockIdx.x;
  const int d = at.head_dim;
  const SegmentView view = listed_segment(faults, at, kv_head);
  bool whole = view.valid() && holds_content(faults, view, content.n);
  if (whole) {
    int32_t* positions = content.positions + int64_t{kv_head} * content.n;
    whole = check_data(
        faults,
        each_position<kHeadThreads>(
            view,
            [&](int slot, int64_t position) { positions[slot] = static_cast<int32_t>(position); }),
        FaultReason::kBitmapCount, at.layer, kv_head, at.segment);
    for (int i = threadIdx.x; i < d; i += kHeadThreads) {
      content.k_params[int64_t{kv_head} * 2 * d + i] = to_float(view.channel_params(0)[i]);
      content.k_params[(int64_t{kv_head} * 2 + 1) * d + i] = to_float(view.channel_params(1)[i]);
      content.v_channel[int64_t{kv_head} * d + i] = to_float(view.channel_params(2)[i]);
    }
  }
  if (threadIdx.x == 0) good[kv_head] = whole ? 1 : 0;
}

// Codes and token parameters. Block (x, y) has pages of KV head y, a warp takes one page; codes
// leave through a tile in shared memory, 32 code_stride bytes a warp. Bound by memory.
__global__ void export_segment_kernel(FaultSink faults, SegmentPlace at, Content content,
                                      const int32_t* good) {
  ZC_DYNAMIC_SHARED(shared);
  const int kv_head = blockIdx.y;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int d = at.head_dim;
  const int n = content.n;
  const int page = blockIdx.x * (blockDim.x >> 5) + warp;
  if (page * kPageTokens >= n || good[kv_head] == 0) return;
  const SegmentView view = listed_segment(faults, at, kv_head);
  if (!page_inside(faults, at, view, page, kv_head)) return;
  uint8_t* k_tile = shared + warp * 2 * kPageTokens * code_stride(d);
  uint8_t* v_tile = k_tile + kPageTokens * code_stride(d);
  for (int square = 0; square < d / 16; ++square) {
    store_codes<true>(k_tile, d, square, lane,
                      read_codes<true>(view.k_part(page), view.segment.k_format, d, square, lane));
    store_codes<false>(
        v_tile, d, square, lane,
        read_codes<false>(view.v_part(page), view.segment.v_format, d, square, lane));
  }
  __syncwarp();
  const int first = page * kPageTokens;
  const int count = n - first < kPageTokens ? n - first : kPageTokens;
  const int64_t to = (int64_t{kv_head} * n + first) * d;
  const int per_row = d / 16;
  for (int i = lane; i < count * per_row; i += 32) {
    const int from = i / per_row * code_stride(d) + i % per_row * 16;
    reinterpret_cast<uint4*>(content.k_codes + to)[i] =
        *reinterpret_cast<const uint4*>(k_tile + from);
    reinterpret_cast<uint4*>(content.v_codes + to)[i] =
        *reinterpret_cast<const uint4*>(v_tile + from);
  }
  if (lane < count) {
    const uint32_t params = view.token_params(page)[lane];
    const int64_t at_slot = int64_t{kv_head} * 2 * n + first + lane;
    content.v_params[at_slot] = to_float(token_scale(params));
    content.v_params[at_slot + n] = to_float(token_zero(params));
  }
}

}  // namespace

void export_segment(Context& context, const ExportSegmentArgs& a) {
  const auto n_kv_heads = static_cast<unsigned>(a.k_codes.size(0));
  if (n_kv_heads == 0) return;
  check_pool(a.pool);
  TensorView k_codes = a.k_codes;
  TensorView v_codes = a.v_codes;
  const SegmentPlace at = segment_place(a);
  with_aligned(context, {}, {&k_codes, &v_codes}, 4 * int64_t{n_kv_heads}, [&](uint8_t* scratch) {
    const Content content = content_of(a, k_codes, v_codes);
    auto* good = reinterpret_cast<int32_t*>(scratch);
    launch(context, &export_heads_kernel, n_kv_heads, kHeadThreads, 0, context.faults(), at,
           content, good);
    const int64_t warp_bytes = 2 * kPageTokens * code_stride(at.head_dim);
    constexpr int kWarps = 4;
    launch(context, &export_segment_kernel,
           dim3(blocks_for(content.n, kPageTokens * kWarps), n_kv_heads), 32 * kWarps,
           static_cast<size_t>(kWarps * warp_bytes), context.faults(), at, content, good);
  });
}

}  // namespace zc::cuda
