#include <algorithm>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/content.h"
#include "csrc/cuda/device/positions.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kHeadThreads = 512;

// Whether all threads of the block say so.
ZC_DEVICE bool all_threads(bool good) { return __syncthreads_and(good ? 1 : 0) != 0; }

// A number of float16; what is none, or not finite, is a fault.
ZC_DEVICE f16 checked_half(const FaultSink& faults, float x, FaultReason reason, int kv_head,
                           int at) {
  const f16 half = to_f16(x);
  const float back = to_float(half);
  check_data(faults, back == x && fabsf(back) <= 65504.0f, reason, kv_head, at);
  return half;
}

// The positions of one KV head into the bitmap, where the segment has one that it writes, and
// against it; the channel parameters. A block owns one KV head. good (n_kv_heads): whether its
// table and positions are. Bound by latency.
__global__ void __launch_bounds__(kHeadThreads, 2)
    import_heads_kernel(FaultSink faults, SegmentPlace at, Content content, int32_t* good) {
  const int kv_head = blockIdx.x;
  const int d = at.head_dim;
  const int n = content.n;
  const int32_t* positions = content.positions + int64_t{kv_head} * n;
  const SegmentView view = reserved_segment(faults, at, kv_head);
  bool whole = view.valid() && holds_content(faults, view, n);
  if (whole && view.segment.span > 0) {
    const int64_t start = view.segment.start;
    const int64_t span = view.segment.span;
    bool inside = true;
    for (int slot = threadIdx.x; slot < n; slot += kHeadThreads) {
      const int64_t i = positions[slot] - start;
      inside = check_data(faults, i >= 0 && i < span, FaultReason::kPositionRange, positions[slot],
                          start, start + span - 1) &&
               inside;
    }
    whole = all_threads(inside);
    uint8_t* bitmap = view.pool + int64_t{view.segment.bitmap_unit} * kPageUnitBytes;
    for (int64_t i = threadIdx.x; whole && i < (span + 7) / 8; i += kHeadThreads)
      bitmap[i] = bitmap_byte(positions, n, start, i);
    __syncthreads();
  }
  if (whole) {
    bool same = true;
    const auto compare = [&](int slot, int64_t position) {
      same = check_data(faults, positions[slot] == position, FaultReason::kPositionOrder, slot,
                        positions[slot], position) &&
             same;
    };
    const bool complete = each_position<kHeadThreads>(view, compare);
    // A position that is wrong leaves the bitmap short: it is named first.
    whole = all_threads(same) &&
            check_data(faults, complete, FaultReason::kBitmapCount, at.layer, kv_head, at.segment);
  }
  if (whole) {
    for (int c = threadIdx.x; c < d; c += kHeadThreads) {
      const float* k_params = content.k_params + int64_t{kv_head} * 2 * d;
      for (int which = 0; which < 2; ++which)
        view.channel_params(which)[c] =
            checked_half(faults, k_params[which * d + c], FaultReason::kKeyParams, kv_head, c);
      view.channel_params(2)[c] = checked_half(faults, content.v_channel[int64_t{kv_head} * d + c],
                                               FaultReason::kValueChannel, kv_head, c);
    }
  }
  if (threadIdx.x == 0) good[kv_head] = whole ? 1 : 0;
}

// Bytes of shared memory of a warp: the codes of a page, one a byte, and its image.
ZC_HD int warp_bytes(int head_dim) {
  return 2 * kPageTokens * code_stride(head_dim) +
         static_cast<int>(page_bytes(Format::kU8, Format::kU8, head_dim));
}

// The codes of one part from its tile into the page's image.
template <bool kKey>
ZC_DEVICE void pack_part(const FaultSink& faults, const uint8_t* tile, uint8_t* part, Format f,
                         int head_dim, int kv_head, int lane) {
  const int bits = format_bits(f);
  const uint32_t beyond = (0xffu << bits & 0xffu) * 0x01010101u;
  write_part<kKey>(part, f, head_dim, lane, [&](int square) {
    LaneCodes codes = load_codes<kKey>(tile, head_dim, square, lane);
    check_data(faults, ((codes.word[0] | codes.word[1]) & beyond) == 0,
               kKey ? FaultReason::kKeyCode : FaultReason::kValueCode, kv_head, bits);
    ZC_UNROLL
    for (int p = 0; p < 2; ++p) codes.word[p] &= ~beyond;
    return codes;
  });
}

// Codes and token parameters into pages. Block (x, y) has pages of KV head y, a warp builds one
// page in shared memory, warp_bytes a warp; slots beyond the last token get 0, as in pack_segment.
// Bound by memory.
__global__ void import_segment_kernel(FaultSink faults, SegmentPlace at, Content content,
                                      const int32_t* good) {
  ZC_DYNAMIC_SHARED(shared);
  const int kv_head = blockIdx.y;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int d = at.head_dim;
  const int n = content.n;
  const int page = blockIdx.x * (blockDim.x >> 5) + warp;
  if (page * kPageTokens >= n || good[kv_head] == 0) return;
  const SegmentView view = reserved_segment(faults, at, kv_head);
  if (!page_inside(faults, at, view, page, kv_head)) return;
  uint8_t* k_tile = shared + warp * warp_bytes(d);
  uint8_t* v_tile = k_tile + kPageTokens * code_stride(d);
  uint8_t* image = v_tile + kPageTokens * code_stride(d);

  const int first = page * kPageTokens;
  const int count = n - first < kPageTokens ? n - first : kPageTokens;
  const int64_t from = (int64_t{kv_head} * n + first) * d;
  const int per_row = d / 16;
  for (int i = lane; i < kPageTokens * per_row; i += 32) {
    const int to = i / per_row * code_stride(d) + i % per_row * 16;
    const bool held = i < count * per_row;
    const uint4 none = make_uint4(0, 0, 0, 0);
    *reinterpret_cast<uint4*>(k_tile + to) =
        held ? reinterpret_cast<const uint4*>(content.k_codes + from)[i] : none;
    *reinterpret_cast<uint4*>(v_tile + to) =
        held ? reinterpret_cast<const uint4*>(content.v_codes + from)[i] : none;
  }
  const int n_words = (view.params_offset + kPageTokens * 4) / 4;
  for (int i = lane; i < n_words; i += 32) reinterpret_cast<uint32_t*>(image)[i] = 0;
  __syncwarp();
  pack_part<true>(faults, k_tile, image, view.segment.k_format, d, kv_head, lane);
  pack_part<false>(faults, v_tile, image + view.v_offset, view.segment.v_format, d, kv_head, lane);
  if (lane < count) {
    const float* params = content.v_params + int64_t{kv_head} * 2 * n + first + lane;
    const f16 scale =
        checked_half(faults, params[0], FaultReason::kValueParams, kv_head, first + lane);
    const f16 zero =
        checked_half(faults, params[n], FaultReason::kValueParams, kv_head, first + lane);
    reinterpret_cast<uint32_t*>(image + view.params_offset)[lane] = pack_token_params(scale, zero);
  }
  __syncwarp();
  uint4* to = reinterpret_cast<uint4*>(view.k_part(page));
  for (int i = lane; i < n_words / 4; i += 32) to[i] = reinterpret_cast<const uint4*>(image)[i];
}

}  // namespace

void import_segment(Context& context, const ImportSegmentArgs& a) {
  const auto n_kv_heads = static_cast<unsigned>(a.k_codes.size(0));
  if (n_kv_heads == 0) return;
  check_pool(a.pool);
  TensorView k_codes = a.k_codes;
  TensorView v_codes = a.v_codes;
  const SegmentPlace at = segment_place(a);
  with_aligned(context, {&k_codes, &v_codes}, {}, 4 * int64_t{n_kv_heads}, [&](uint8_t* scratch) {
    const Content content = content_of(a, k_codes, v_codes);
    auto* good = reinterpret_cast<int32_t*>(scratch);
    launch(context, &import_heads_kernel, n_kv_heads, kHeadThreads, 0, context.faults(), at,
           content, good);
    const int64_t own = warp_bytes(at.head_dim);
    const int64_t warps = std::clamp<int64_t>(48 * 1024 / own, 1, 4);
    launch(context, &import_segment_kernel,
           dim3(blocks_for(content.n, kPageTokens * warps), n_kv_heads),
           static_cast<unsigned>(32 * warps), static_cast<size_t>(warps * own), context.faults(),
           at, content, good);
  });
}

}  // namespace zc::cuda
