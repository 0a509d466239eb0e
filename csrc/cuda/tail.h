#pragma once

#include <algorithm>
#include <cstdint>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/device/sequences.h"
#include "csrc/cuda/kernel.h"

// New rows on their way into the tails of a batch's sequences: row i of a sequence's q_len goes to
// slot tail_length - q_len + i. Block (x, y, z) takes the rows z, z + gridDim.z, ... of sequence x
// and KV head y.
namespace zc::cuda {

struct AppendPlace {
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* tables;
  int64_t tables_words;
  const int32_t* starts;      // (n_seqs)
  const int32_t* cu_seqlens;  // (n_seqs + 1)
  int64_t rows;
  int32_t n_seqs;
  int32_t n_kv_heads;
  int32_t layer;
};

ZC_DEVICE NewRows new_rows(const FaultSink& faults, const AppendPlace& a, int seq) {
  return new_rows(faults, a.cu_seqlens, a.n_seqs, a.rows, seq);
}

// The tail that takes them; without a pool for a masked sequence, and for one whose table is wrong.
ZC_DEVICE SegmentView append_tail(const FaultSink& faults, const AppendPlace& a, int seq,
                                  int kv_head, int head_dim, const NewRows& rows) {
  const SequenceTable table =
      sequence_table(faults, a.tables, a.tables_words, a.starts, seq, a.layer, a.n_kv_heads);
  if (!table.words) return {};
  SegmentView tail =
      view_segment(faults, table, a.pool, a.pool_bytes, a.layer, kv_head, 0, head_dim);
  if (!tail.valid()) return tail;
  const int64_t n_rows = rows.end - rows.begin;
  const bool fits = n_rows <= tail.segment.n_tokens && !tail.k_quantized() && !tail.v_quantized();
  if (!check_data(faults, fits, FaultReason::kTailSlots, tail.segment.n_tokens, n_rows))
    tail.pool = nullptr;
  return tail;
}

// Where a row's token lies; without parts where its page is not in the pool.
struct TailSlot {
  uint8_t* k_part;
  uint8_t* v_part;
  int token;  // of the page
};

ZC_DEVICE TailSlot tail_slot(const FaultSink& faults, const AppendPlace& a, const SegmentView& tail,
                             int kv_head, const NewRows& rows, int64_t row) {
  const int64_t slot = tail.segment.n_tokens - (rows.end - row);
  const int page = static_cast<int>(slot / kPageTokens);
  if (!page_inside(faults, tail, a.pool_bytes, page, a.layer, kv_head, 0)) return {};
  return {tail.k_part(page), tail.v_part(page), static_cast<int>(slot % kPageTokens)};
}

// ---- the host's side ----

// Args: those of an op that appends. Throws kArgument for rows without a sequence.
template <typename Args>
AppendPlace append_place(const Args& a) {
  const int64_t rows = a.k.size(0);
  const int64_t n_seqs = a.starts.size(0);
  ZC_CHECK(n_seqs > 0 || rows == 0, ErrorCode::kArgument,
           "cuSeqlens: must rise from 0 to the number of rows, %lld", static_cast<long long>(rows));
  if (rows > 0) check_pool(a.pool);
  return {a.pool.template as<uint8_t>(),
          a.pool.size(0),
          a.tables.template as<int32_t>(),
          a.tables.size(0),
          a.starts.template as<int32_t>(),
          a.cu_seqlens.template as<int32_t>(),
          rows,
          static_cast<int32_t>(n_seqs),
          static_cast<int32_t>(a.k.size(1)),
          a.layer};
}

// How long each sequence is lies on the device. One block a sequence and head when decoding; more
// when there are rows for more, up to a few waves of the whole device.
inline dim3 append_grid(const Context& context, const AppendPlace& a, int64_t rows_per_block) {
  const int64_t pairs = int64_t{a.n_seqs} * std::max(a.n_kv_heads, 1);
  const int64_t wanted = blocks_for(a.rows, rows_per_block);
  const int64_t room = std::max<int64_t>(1, 64 * int64_t{context.n_multiprocessors} / pairs);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(room, 1024));
  return {blocks_for(a.n_seqs, 1), static_cast<unsigned>(a.n_kv_heads),
          static_cast<unsigned>(parts)};
}

}  // namespace zc::cuda
