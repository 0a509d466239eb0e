#pragma once

#include <cstdint>

#include "csrc/math/hd.h"

// The page table of one sequence: int32 words in device memory, written by lib/cache/page-table.ts,
// read by every op over the packed cache. The tables of all sequences lie in one tensor, so that a
// batch is one call: each begins at a word of its own (`starts`).
//
//   header   kTableHeader words
//   entries  one for each (layer, kv head), layer-major: a segment count, padding, then max_segments segments
//   pages    lists of page addresses, in units of 64 bytes from the start of the pool
//
// A segment is one compression of one precision class: pages of 16 tokens of one KV head, every
// page holding K and V. Segment 0 is the tail: the newest tokens in 16 bits (or in the compute
// type), whose length is the header's.
namespace zc {

// How the elements of a segment's K or V are stored. The numbers cross N-API (lib/cache/format.ts).
enum class Format : int32_t {
  kU2 = 2,
  kU3 = 3,
  kU4 = 4,
  kU8 = 8,
  kF16 = 16,
  kBF16 = 17,
  kF32 = 32
};

ZC_HD bool format_known(int32_t f) {
  return f == 2 || f == 3 || f == 4 || f == 8 || f == 16 || f == 17 || f == 32;
}
ZC_HD int format_bits(Format f) { return f == Format::kBF16 ? 16 : static_cast<int>(f); }
ZC_HD bool format_quantized(Format f) { return static_cast<int>(f) <= 8; }

inline constexpr int kPageTokens = 16;
inline constexpr int kPageUnitBytes = 64;

inline constexpr int kTableHeader = 8;
inline constexpr int kTableTailLength =
    0;  // tokens in the tail, the rows of the running step included
inline constexpr int kTableTailStart = 1;  // position of the tail's first token
inline constexpr int kTableLayers = 2;
inline constexpr int kTableKvHeads = 3;
inline constexpr int kTableMaxSegments = 4;

inline constexpr int kEntryHeader = 8;  // word 0: segment count
inline constexpr int kSegmentWords = 8;

struct Segment {
  Format k_format;
  Format v_format;
  int32_t n_tokens;     // the tail's is in the header
  int32_t pages_begin;  // index of the first page address in the table
  int32_t params_unit;  // K scale (head_dim) f16, K zero (head_dim) f16, V channel c (head_dim)
                        // f16; -1 without
  int32_t bitmap_unit;  // one bit a token of [start, start + |span|); -1 without
  int32_t start;        // position of the bitmap's first bit, or of slot 0 without a bitmap
  int32_t span;  // > 0: this segment's tokens are the set bits; < 0: the clear ones; 0: no bitmap
};

// KV heads are counted from the first of `layer` on, past its last one to those of the next layer.
ZC_HD int64_t entry_index(const int32_t* table, int layer, int kv_head) {
  const int64_t words =
      kEntryHeader + static_cast<int64_t>(table[kTableMaxSegments]) * kSegmentWords;
  return kTableHeader + (static_cast<int64_t>(layer) * table[kTableKvHeads] + kv_head) * words;
}

ZC_HD int segment_count(const int32_t* table, int layer, int kv_head) {
  return table[entry_index(table, layer, kv_head)];
}

ZC_HD Segment read_segment(const int32_t* table, int layer, int kv_head, int index) {
  const int32_t* w = table + entry_index(table, layer, kv_head) + kEntryHeader +
                     static_cast<int64_t>(index) * kSegmentWords;
  return {static_cast<Format>(w[0]),
          static_cast<Format>(w[1]),
          index == 0 ? table[kTableTailLength] : w[2],
          w[3],
          w[4],
          w[5],
          index == 0 ? table[kTableTailStart] : w[6],
          w[7]};
}

// Bytes of one page's K (or V) part: head_dim units of 16 elements.
ZC_HD int64_t part_bytes(Format f, int head_dim) {
  return static_cast<int64_t>(format_bits(f)) * kPageTokens / 8 * head_dim;
}

// V's token parameters: scale (16) f16, zero (16) f16; none for unquantized values.
ZC_HD int64_t token_params_bytes(Format v) { return format_quantized(v) ? 2 * kPageTokens * 2 : 0; }

ZC_HD int64_t page_bytes(Format k, Format v, int head_dim) {
  const int64_t bytes = part_bytes(k, head_dim) + part_bytes(v, head_dim) + token_params_bytes(v);
  return (bytes + kPageUnitBytes - 1) / kPageUnitBytes * kPageUnitBytes;
}

ZC_HD int64_t params_bytes(int head_dim) { return 3 * 2 * static_cast<int64_t>(head_dim); }

}  // namespace zc
