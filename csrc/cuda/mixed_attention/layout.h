#pragma once

#include <cstdint>

#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/kernel.h"

// What mixedAttention's producer and its consumers agree on: how a sequence is cut into items and
// units, and how units lie in shared memory (csrc/cuda/kernels/mixed_attention.cu tells the whole).
namespace zc::cuda::mixed {

inline constexpr int kColumns = 4;  // rows of q (query, head of the group) that an item is for
inline constexpr int kTiles = 4;    // pages of a unit, at most
inline constexpr int kMaxGroup = 64;

// A sequence's cache is cut by its own length alone, so that no neighbour in the batch changes a
// sum: into splits of about 1,024 tokens, and of 2,048 where that makes more than eight.
inline constexpr int kMaxSplits = 32;
ZC_HD int split_count(int64_t n_tokens) {
  const int64_t small = (n_tokens + 512) / 1024;
  const int64_t large = (n_tokens + 1024) / 2048;
  const int64_t n = small < 8 ? small : (large < 8 ? 8 : large);
  return static_cast<int>(n < 1 ? 1 : (n > kMaxSplits ? kMaxSplits : n));
}

template <Format F>
inline constexpr bool kIsCode = static_cast<int>(F) <= 8;

struct Params {
  const uint16_t* q;  // (total_q, n_heads, head_dim) f16|bf16
  uint16_t* out;      // the same
  float* lse;         // (total_q, n_heads)
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* tables;
  int64_t tables_words;
  const int32_t* starts;
  const int32_t* cu_seqlens;
  const int32_t* positions;  // (total_q): read with a sliding window only
  int32_t sliding_window;    // 0: off
  uint4* partials;    // (blocks, kMaxSplits, LeftPart::kWarpWords): what blocks leave for others
  int32_t* arrivals;  // (blocks): how many splits are done of those
  int32_t n_seqs;
  int32_t total_q;
  int32_t n_heads;
  int32_t layer;
  float scale;
  bool bf16;  // q and out are bf16, else f16
  bool tail;
  bool causal;
  FaultSink faults;
};

// GPUs for graphics have 99 KB of shared memory a block, others 163 KB or more.
ZC_HD constexpr bool has_little_memory(int architecture) {
  return architecture == 86 || architecture == 89 || architecture >= 120;
}

// What a block is made of, for a head_dim and a kind of GPU. kBulk: copies come in bulk, sm_90's
// way. With 256 channels a warp takes twice the registers and a slot twice the bytes, so that a
// multiprocessor has one block, of as many slots as its shared memory holds beside 8 bytes for each
// of some thousands of sequences.
template <int kDim_, bool kBulk_, bool kLittleMemory>
struct BlockShape {
  static constexpr int kDim = kDim_;
  static constexpr bool kBulk = kBulk_;
  static constexpr bool kIsWide = kDim == 256;
  // Slots of a consumer's ring.
  static constexpr int kStages =
      kIsWide ? (kLittleMemory ? 2 : (kBulk ? 4 : 3)) : (kLittleMemory && kDim > 64 ? 3 : 4);
  // Warps that multiply.
  static constexpr int kConsumers = kIsWide ? (kLittleMemory ? 4 : (kBulk ? 6 : 5)) : 6;
  // And two more: one that brings them what they need, one that adds up what they have.
  static constexpr int kThreads = 32 * (kConsumers + 2);
  static_assert(kConsumers * kTiles <= 32, "a lane of the producer copies one page of a round");
};

// ---- units: the pages that a warp attends to at a time ----

// Shared memory of one slot of a consumer's ring: four pages of 2 bits, two of 4, one of 8, or the
// K or V part of one of 16.
template <int kDim>
inline constexpr int kSlotBytes = 32 * kDim + 256;

// A unit is as many whole pages as a slot has room for, four at most. Where that is less than four,
// it takes two slots and twice the pages. Pages with floats: one, K in one slot and V in the next.
template <int kDim>
ZC_HD constexpr int slot_pages(Format k, Format v, int page_bytes) {
  if (static_cast<int>(k) > 8 || static_cast<int>(v) > 8) return 0;
  return page_bytes * 4 <= kSlotBytes<kDim> ? 4 : (page_bytes * 2 <= kSlotBytes<kDim> ? 2 : 1);
}
ZC_HD constexpr int unit_pages(int in_slot) {
  return in_slot == 0 ? 1 : (in_slot == 4 ? 4 : 2 * in_slot);
}
ZC_HD constexpr int unit_slots(int in_slot) { return in_slot == 4 ? 1 : 2; }
// Where a unit's page lies: a slot of the unit, and a page of the slot.
ZC_HD constexpr int slot_of(int in_slot, int page) {
  return in_slot == 4 ? 0 : (in_slot == 2 ? page >> 1 : page);
}
ZC_HD constexpr int place_of(int in_slot, int page) {
  return page - slot_of(in_slot, page) * in_slot;
}

// A segment's page and unit in one word: how K and V are stored, pages of a unit, bytes of a page.
struct Layout {
  uint32_t word;

  ZC_DEVICE Format k_format() const { return static_cast<Format>(word & 0xff); }
  ZC_DEVICE Format v_format() const { return static_cast<Format>(word >> 8 & 0xff); }
  ZC_DEVICE int pages() const { return static_cast<int>(word >> 16 & 0x7); }
  ZC_DEVICE int page_bytes() const { return static_cast<int>(word >> 20) * kPageUnitBytes; }
  // Floats other than f16 become that on their way into a slot.
  ZC_DEVICE bool converts() const { return (word & 0x80000) != 0; }
  ZC_DEVICE bool k_quantized() const { return format_quantized(k_format()); }
  ZC_DEVICE bool v_quantized() const { return format_quantized(v_format()); }
  template <int kDim>
  ZC_DEVICE int in_slot() const {
    return slot_pages<kDim>(k_format(), v_format(), page_bytes());
  }
};

template <int kDim>
ZC_DEVICE Layout layout_of(Format k, Format v) {
  const int bytes = static_cast<int>(page_bytes(k, v, kDim));
  const int pages = unit_pages(slot_pages<kDim>(k, v, bytes));
  const auto foreign = [](Format f) { return f == Format::kF32 || f == Format::kBF16; };
  return {static_cast<uint32_t>(k) | static_cast<uint32_t>(v) << 8 |
          static_cast<uint32_t>(pages) << 16 | (foreign(k) || foreign(v) ? 0x80000u : 0u) |
          static_cast<uint32_t>(bytes / kPageUnitBytes) << 20};
}

// What a unit's arithmetic needs of its layout: known at compile time for the formats that policies
// use together, looked at while running for any others.
template <int kDim>
struct AnyShape {
  Layout layout;

  ZC_DEVICE int k_bytes() const { return format_bits(layout.k_format()) * 2 * kDim; }
  ZC_DEVICE int params_offset() const {  // from V's part on
    return format_bits(layout.v_format()) * 2 * kDim;
  }
  ZC_DEVICE int bytes() const { return layout.page_bytes(); }
  ZC_DEVICE int in_slot() const { return layout.in_slot<kDim>(); }
};

template <Format K, Format V, int kDim>
struct StaticShape {
  static constexpr int kKeyBytes = static_cast<int>(K) * 2 * kDim;
  static constexpr int kValueBytes = static_cast<int>(V) * 2 * kDim;
  static constexpr int kBytes = (kKeyBytes + kValueBytes + (kIsCode<V> ? 64 : 0) + 63) / 64 * 64;
  static constexpr int kInSlot = slot_pages<kDim>(K, V, kBytes);

  ZC_DEVICE static constexpr int k_bytes() { return kKeyBytes; }
  ZC_DEVICE static constexpr int params_offset() { return kValueBytes; }
  ZC_DEVICE static constexpr int bytes() { return kBytes; }
  ZC_DEVICE static constexpr int in_slot() { return kInSlot; }
};

// ---- items ----

// Whether all columns of an item are one query's, whatever the number of rows: then it is cut for
// what that query sees. Others are masked only, so that no sum depends on the rows beside it.
ZC_HD constexpr bool sees_as_one(int group) { return group % kColumns == 0; }

// Consecutive splits of one KV head of one sequence, and kColumns rows of q: column = query * group
// + head of the group. For a masked sequence the rows of q alone.
struct ItemHead {
  int q_begin;  // of the sequence
  int q_len;
  int group;
  int first_column;
  int n_columns;  // of this item, up to kColumns
  int kv_head;
  int n_splits;  // of the sequence
  int first_split;
  int end_split;
  int origin;  // of the piece with split 0: where blocks that share the splits meet

  ZC_DEVICE int query(int column) const { return (first_column + column) / group; }
  // Index of a column in (total_q, n_heads).
  ZC_DEVICE int64_t row(const Params& p, int column) const {
    const int c = first_column + column;
    return (int64_t{q_begin} + c / group) * p.n_heads + kv_head * group + c % group;
  }
};

// Words between two columns of q in shared memory: lanes hit different banks.
template <int kDim>
inline constexpr int kQueryWords = kDim / 2 + 8;

template <int kDim>
struct Item {
  ItemHead head;
  uint32_t q[kColumns][kQueryWords<kDim>];
};

// ---- the line of all work ----

// The part of one sequence in it. Its splits lie in a row, those of one KV head and the same
// columns next to each other.
struct SequenceWork {
  SequenceTable table;
  int n_kv_heads;
  int group;
  int q_begin;
  int q_len;
  int n_splits;
  int split_cost;
  // Blocks that take the same splits side by side, each for other columns: all heads of a group
  // read the same bytes, at the same time.
  int team;
  int n_column_teams;
  int64_t n_splits_in_line;  // (KV head, columns of a team, split), the last fastest; masked: one
};

// ---- shared memory ----

// The parts of the first sequences are kept: tables are far away, and nothing begins before they
// are read.
inline constexpr int kKeptWorks = 16;

enum Kind : uint32_t {
  kFold,  // channel parameters of the segment of the units that follow
  kUnit,  // pages, in this slot and perhaps the next
  // Marks, which all consumers hand over to the merger:
  kEnd,     // the split is done; the slot is room for the warp's results
  kMasked,  // an item without a table
  kQuit,    // there are no more items
};
inline constexpr uint32_t kItemParity = 0x100;   // which of the two items in shared memory
inline constexpr uint32_t kIsCausal = 0x200;     // kUnit: a query sees one token less than the next
inline constexpr uint32_t kIsCut = 0x400;        // kUnit: its first tokens are not for every column
inline constexpr uint32_t kHasTwoSlots = 0x800;  // kUnit: this and the next
inline constexpr uint32_t kIsLast = 0x1000;      // split of the item

// What a slot holds.
struct alignas(16) Entry {
  uint32_t layout;
  uint32_t what;     // a Kind and flags
  int32_t first;     // kUnit: its first token in the segment; kEnd: the split
  int32_t n_tokens;  // of the segment
};

// The segment that a warp is in: what it needs again at its end, for want of registers.
template <int kDim>
struct RunningSegment {
  uint32_t layout;
  uint32_t normalisers[kDim / 2];  // of V, two channels a word, float16
  int32_t seen_from[kColumns];     // with a sliding window: the columns' first tokens
};

// Arrivals that complete a slot where the producer's lanes copy: one of each, and one of the warp.
inline constexpr uint32_t kLaneArrivals = 33;

template <typename Block>
struct BlockMemory {
  static constexpr int kDim = Block::kDim;
  static constexpr int kStages = Block::kStages;
  static constexpr int kConsumers = Block::kConsumers;
  uint8_t ring[kConsumers][kStages][kSlotBytes<kDim>];
  Entry entries[kConsumers][kStages];
  int32_t seen_from[kConsumers][kStages][kColumns];  // beside kFold
  uint64_t full[kConsumers][kStages];
  uint64_t empty[kConsumers][kStages];
  uint64_t item_free[2];
  uint64_t results_full[2];  // marks in turn, of all consumers
  uint64_t results_free[2];
  Item<kDim> items[2];
  RunningSegment<kDim> running[kConsumers];
  int results[2][kConsumers];  // stages with a mark, kEnd's with the warp's results
  SequenceWork works[kKeptWorks];
  int64_t piece[2];  // of the WorkLine, for want of registers: where the block begins, ends
  int team;          // WorkLine
  // n_seqs + 1 int64 follow: WorkLine::cost_before.
};

}  // namespace zc::cuda::mixed
