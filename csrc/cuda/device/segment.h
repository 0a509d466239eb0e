#pragma once

#include "csrc/cuda/device/fault.h"
#include "csrc/cuda/device/page.h"

// Page tables as kernels read them. Tables are data, written from outside: every address is checked
// against the pool and the table before it is followed.
namespace zc::cuda {

// The page table of one sequence among those of a batch.
struct SequenceTable {
  const int32_t* words;  // null for a masked row of the batch, and for one whose table is damaged
  int64_t n_words;
};

// The table that starts[seq] names, its header checked.
ZC_DEVICE SequenceTable sequence_table(const FaultSink& faults, const int32_t* tables,
                                       int64_t tables_words, const int32_t* starts, int seq,
                                       int layer, int n_kv_heads) {
  const int64_t start = starts[seq];
  if (start == -1) return {nullptr, 0};
  if (!check_data(faults, start >= 0 && start + kTableHeader <= tables_words,
                  FaultReason::kTableStart, seq, start, tables_words))
    return {nullptr, 0};
  const int32_t* table = tables + start;
  const int64_t n_words = tables_words - start;
  // Divided, since the product of three words that lie may overflow.
  const int64_t entry_words = kEntryHeader + int64_t{table[kTableMaxSegments]} * kSegmentWords;
  const bool good =
      table[kTableKvHeads] == n_kv_heads && layer >= 0 && layer < table[kTableLayers] &&
      table[kTableMaxSegments] >= 1 && table[kTableTailLength] >= 0 &&
      int64_t{table[kTableLayers]} * n_kv_heads <= (n_words - kTableHeader) / entry_words;
  if (!check_data(faults, good, FaultReason::kTableHeader, table[kTableLayers],
                  table[kTableKvHeads], layer, n_kv_heads))
    return {nullptr, 0};
  return {table, n_words};
}

// How many segments a table lists for one KV head; 0 when it lies.
ZC_DEVICE int checked_segment_count(const FaultSink& faults, const int32_t* table, int layer,
                                    int kv_head) {
  const int count = segment_count(table, layer, kv_head);
  const bool good = count >= 0 && count <= table[kTableMaxSegments];
  return check_data(faults, good, FaultReason::kTableCount, layer, kv_head, count,
                    table[kTableMaxSegments])
             ? count
             : 0;
}

// A segment with everything checked but its pages' addresses (page_inside). One that is damaged
// comes back with no tokens.
ZC_DEVICE SegmentView view_segment(const FaultSink& faults, const SequenceTable& table,
                                   uint8_t* pool, int64_t pool_bytes, int layer, int kv_head,
                                   int index, int head_dim) {
  SegmentView view{};
  view.head_dim = head_dim;
  view.pool = pool;
  view.segment = read_segment(table.words, layer, kv_head, index);
  const Segment& s = view.segment;
  const bool known = format_known(static_cast<int32_t>(s.k_format)) &&
                     format_known(static_cast<int32_t>(s.v_format)) && s.n_tokens >= 0;
  if (!check_data(faults, known, FaultReason::kTableDamaged, layer, kv_head, index)) {
    view.segment = {};
    return view;
  }
  view.pages = table.words + s.pages_begin;
  view.v_offset = static_cast<int32_t>(part_bytes(s.k_format, head_dim));
  view.params_offset = view.v_offset + static_cast<int32_t>(part_bytes(s.v_format, head_dim));
  bool good = s.n_tokens == 0 ||
              (s.pages_begin >= 0 && int64_t{s.pages_begin} + view.n_pages() <= table.n_words);
  const auto inside = [&](int64_t unit, int64_t bytes) {
    return unit >= 0 && unit * kPageUnitBytes + bytes <= pool_bytes;
  };
  if (view.k_quantized() || view.v_quantized())
    good = good && inside(s.params_unit, params_bytes(head_dim));
  const int64_t span = s.span < 0 ? -int64_t{s.span} : int64_t{s.span};
  if (span != 0) good = good && inside(s.bitmap_unit, (span + 7) / 8);
  if (!check_data(faults, good, FaultReason::kTableOutside, layer, kv_head, index))
    view.segment.n_tokens = 0;
  return view;
}

// Whether a page of the segment lies in the pool.
ZC_DEVICE bool page_inside(const FaultSink& faults, const SegmentView& view, int64_t pool_bytes,
                           int page, int layer, int kv_head, int index) {
  const int64_t address = view.pages[page];
  const int64_t bytes = page_bytes(view.segment.k_format, view.segment.v_format, view.head_dim);
  const bool good = address >= 0 && address * kPageUnitBytes + bytes <= pool_bytes;
  return check_data(faults, good, FaultReason::kTableOutside, layer, kv_head, index);
}

// Whether the token at start + i belongs to a segment with a bitmap.
ZC_DEVICE bool holds(const SegmentView& view, int64_t i) {
  const uint8_t* bitmap =
      view.pool + static_cast<int64_t>(view.segment.bitmap_unit) * kPageUnitBytes;
  return (((bitmap[i >> 3] >> (i & 7)) & 1) != 0) == (view.segment.span > 0);
}

}  // namespace zc::cuda
