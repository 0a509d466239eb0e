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

// The table of `n_words` words that begins at `words`, its header checked.
ZC_DEVICE SequenceTable checked_table(const FaultSink& faults, const int32_t* words,
                                      int64_t n_words, int layer, int n_kv_heads) {
  // Divided, since the product of three words that lie may overflow.
  const int64_t entry_words = kEntryHeader + int64_t{words[kTableMaxSegments]} * kSegmentWords;
  const bool good =
      words[kTableKvHeads] == n_kv_heads && layer >= 0 && layer < words[kTableLayers] &&
      words[kTableMaxSegments] >= 1 && words[kTableTailLength] >= 0 &&
      int64_t{words[kTableLayers]} * n_kv_heads <= (n_words - kTableHeader) / entry_words;
  if (!check_data(faults, good, FaultReason::kTableHeader, words[kTableLayers],
                  words[kTableKvHeads], layer, n_kv_heads))
    return {nullptr, 0};
  return {words, n_words};
}

// The table that starts[seq] names, its header checked.
ZC_DEVICE SequenceTable sequence_table(const FaultSink& faults, const int32_t* tables,
                                       int64_t tables_words, const int32_t* starts, int seq,
                                       int layer, int n_kv_heads) {
  const int64_t start = starts[seq];
  if (start == -1) return {nullptr, 0};
  if (!check_data(faults, start >= 0 && start + kTableHeader <= tables_words,
                  FaultReason::kTableStart, seq, start, tables_words))
    return {nullptr, 0};
  return checked_table(faults, tables + start, tables_words - start, layer, n_kv_heads);
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

// A segment that was read, with everything checked but its pages' addresses (page_inside). One that
// is damaged comes back with no tokens and no pool.
ZC_DEVICE SegmentView checked_segment(const FaultSink& faults, const SequenceTable& table,
                                      const Segment& segment, uint8_t* pool, int64_t pool_bytes,
                                      int layer, int kv_head, int index, int head_dim) {
  SegmentView view{};
  view.head_dim = head_dim;
  view.pool = pool;
  view.segment = segment;
  const Segment& s = view.segment;
  const bool known = format_known(static_cast<int32_t>(s.k_format)) &&
                     format_known(static_cast<int32_t>(s.v_format)) && s.n_tokens >= 0;
  if (!check_data(faults, known, FaultReason::kTableDamaged, layer, kv_head, index)) {
    view.segment = {};
    view.pool = nullptr;
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
  if (!check_data(faults, good, FaultReason::kTableOutside, layer, kv_head, index)) {
    view.segment.n_tokens = 0;
    view.pool = nullptr;
  }
  return view;
}

ZC_DEVICE SegmentView view_segment(const FaultSink& faults, const SequenceTable& table,
                                   uint8_t* pool, int64_t pool_bytes, int layer, int kv_head,
                                   int index, int head_dim) {
  return checked_segment(faults, table, read_segment(table.words, layer, kv_head, index), pool,
                         pool_bytes, layer, kv_head, index, head_dim);
}

// A segment that may be read: one that the table counts. Without a pool when it is none.
ZC_DEVICE SegmentView listed_segment(const FaultSink& faults, const SequenceTable& table,
                                     uint8_t* pool, int64_t pool_bytes, int layer, int kv_head,
                                     int index, int head_dim) {
  const int count = checked_segment_count(faults, table.words, layer, kv_head);
  if (!check_data(faults, index < count, FaultReason::kSegmentIndex, index, count)) return {};
  return view_segment(faults, table, pool, pool_bytes, layer, kv_head, index, head_dim);
}

// A segment that may be written. Not against the segment count: a segment is written first and
// counted, which makes it visible, afterwards.
ZC_DEVICE SegmentView reserved_segment(const FaultSink& faults, const SequenceTable& table,
                                       uint8_t* pool, int64_t pool_bytes, int layer, int kv_head,
                                       int index, int head_dim) {
  if (!check_data(faults, index < table.words[kTableMaxSegments], FaultReason::kSegmentIndex, index,
                  table.words[kTableMaxSegments]))
    return {};
  return view_segment(faults, table, pool, pool_bytes, layer, kv_head, index, head_dim);
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

// One segment of KV heads that follow each other in one sequence's table: what the ops on segments
// are given.
struct SegmentPlace {
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* table;
  int64_t table_words;
  int32_t layer;
  int32_t segment;
  int32_t n_kv_heads;  // of whole layers, `layer` and those after it
  int32_t head_dim;
};

// The table of a place, with all layers of its KV heads.
ZC_DEVICE SequenceTable checked_table(const FaultSink& faults, const SegmentPlace& at) {
  const int of_layer = at.table[kTableKvHeads];
  const int n_layers = at.table[kTableLayers];
  const int needed = of_layer > 0 ? at.n_kv_heads / of_layer : 0;
  const bool good = of_layer > 0 && needed * of_layer == at.n_kv_heads && n_layers >= needed &&
                    at.layer <= n_layers - needed;
  if (!check_data(faults, good, FaultReason::kTableHeads, n_layers, of_layer, at.n_kv_heads,
                  at.layer))
    return {nullptr, 0};
  return checked_table(faults, at.table, at.table_words, at.layer, of_layer);
}

// The segment of one KV head of the place, without a pool when the table is wrong.
ZC_DEVICE SegmentView listed_segment(const FaultSink& faults, const SegmentPlace& at, int kv_head) {
  const SequenceTable table = checked_table(faults, at);
  if (!table.words) return {};
  return listed_segment(faults, table, at.pool, at.pool_bytes, at.layer, kv_head, at.segment,
                        at.head_dim);
}
ZC_DEVICE SegmentView reserved_segment(const FaultSink& faults, const SegmentPlace& at,
                                       int kv_head) {
  const SequenceTable table = checked_table(faults, at);
  if (!table.words) return {};
  return reserved_segment(faults, table, at.pool, at.pool_bytes, at.layer, kv_head, at.segment,
                          at.head_dim);
}
ZC_DEVICE bool page_inside(const FaultSink& faults, const SegmentPlace& at, const SegmentView& view,
                           int page, int kv_head) {
  return page_inside(faults, view, at.pool_bytes, page, at.layer, kv_head, at.segment);
}

}  // namespace zc::cuda
