#pragma once

#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/device/square.h"
#include "csrc/ops/op_args.h"

// The logical content of a packed segment, as exportSegment gives it and importSegment takes it.
namespace zc::cuda {

struct Content {
  uint8_t* k_codes;    // (n_kv_heads, n, head_dim), 16-byte aligned
  uint8_t* v_codes;    // (n_kv_heads, n, head_dim), 16-byte aligned
  float* k_params;     // (n_kv_heads, 2, head_dim): scale, zero
  float* v_params;     // (n_kv_heads, 2, n): scale, zero
  float* v_channel;    // (n_kv_heads, head_dim)
  int32_t* positions;  // (n_kv_heads, n)
  int32_t n;
};

inline Content content_of(const ExportSegmentArgs& a, const TensorView& k_codes,
                          const TensorView& v_codes) {
  ZC_CHECK(a.k_codes.size(1) < int64_t{1} << 30, ErrorCode::kUnsupported,
           "kCodes: %lld tokens, expected below 2^30", static_cast<long long>(a.k_codes.size(1)));
  return {k_codes.as<uint8_t>(),
          v_codes.as<uint8_t>(),
          a.k_params.as<float>(),
          a.v_params.as<float>(),
          a.v_channel.as<float>(),
          a.positions.as<int32_t>(),
          static_cast<int32_t>(a.k_codes.size(1))};
}

inline SegmentPlace segment_place(const ExportSegmentArgs& a) {
  return {a.pool.as<uint8_t>(),
          a.pool.size(0),
          a.table.as<int32_t>(),
          a.table.size(0),
          a.layer,
          a.segment,
          static_cast<int32_t>(a.k_codes.size(0)),
          static_cast<int32_t>(a.k_codes.size(2))};
}

// A packed segment against the tokens of a content.
ZC_DEVICE bool holds_content(const FaultSink& faults, const SegmentView& view, int64_t n) {
  return check_data(faults, view.segment.n_tokens == n && view.k_quantized() && view.v_quantized(),
                    FaultReason::kContent, n, view.segment.n_tokens);
}

// Distance of two rows of a tile (16, head_dim) of codes, a byte each: lanes that hold one column
// of eight tokens meet different banks.
ZC_HD int code_stride(int head_dim) { return head_dim + 16; }

template <bool kKey>
ZC_DEVICE void store_codes(uint8_t* tile, int head_dim, int square, int lane,
                           const LaneCodes& codes) {
  ZC_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    tile[lane_token<kKey>(lane, p, hi, odd) * code_stride(head_dim) +
         lane_channel<kKey>(lane, square, p, hi, odd)] =
        static_cast<uint8_t>(codes.word[p] >> (16 * odd + 8 * hi));
  }
}

template <bool kKey>
ZC_DEVICE LaneCodes load_codes(const uint8_t* tile, int head_dim, int square, int lane) {
  LaneCodes codes{};
  ZC_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    codes.word[p] |= uint32_t{tile[lane_token<kKey>(lane, p, hi, odd) * code_stride(head_dim) +
                                   lane_channel<kKey>(lane, square, p, hi, odd)]}
                     << (16 * odd + 8 * hi);
  }
  return codes;
}

}  // namespace zc::cuda
