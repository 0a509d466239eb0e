#pragma once

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/fault.h"
#include "csrc/cuda/device/sequences.h"
#include "csrc/cuda/kernel.h"
#include "csrc/ops/state_table.h"

// Where the states of recurrent layers lie. Tables are data, written from outside: every address is
// checked before it is followed.
namespace zc::cuda {

struct StatePlace {
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* tables;
  int64_t tables_words;
  const int32_t* states;      // (n_seqs)
  const int32_t* cu_seqlens;  // (n_seqs + 1)
  int64_t rows;
  int32_t n_seqs;
  int32_t n_heads;
  int32_t layer;
  bool from_zero;
};

struct StatePage {
  float* data;  // null for a masked sequence, and for one whose table is wrong
  bool is_masked;
};

// A page of `bytes` that a sequence's table names: of a layer 0 is the convolution's, 1 + h that of
// head h.
ZC_DEVICE StatePage state_page(const FaultSink& faults, const StatePlace& a, int seq, int page,
                               int64_t bytes) {
  const int64_t start = a.states[seq];
  if (start == -1) return {nullptr, true};
  const int64_t first = start + state_word(a.layer, a.n_heads);
  if (!check_data(faults, start >= 0 && first + 1 + a.n_heads <= a.tables_words,
                  FaultReason::kStateTable, seq, start, a.layer, a.tables_words))
    return {nullptr, false};
  const int64_t address = a.tables[first + page];
  if (!check_data(faults, address >= 0 && address * kPageUnitBytes + bytes <= a.pool_bytes,
                  FaultReason::kStatePage, address))
    return {nullptr, false};
  return {reinterpret_cast<float*>(a.pool + address * kPageUnitBytes), false};
}

ZC_DEVICE NewRows new_rows(const FaultSink& faults, const StatePlace& a, int seq) {
  return new_rows(faults, a.cu_seqlens, a.n_seqs, a.rows, seq);
}

// Args: those of an op of recurrent layers, of so many rows and heads.
template <typename Args>
StatePlace state_place(const Args& a, int64_t rows, int64_t n_heads) {
  check_pool(a.pool);
  return {a.pool.template as<uint8_t>(),
          a.pool.size(0),
          a.tables.template as<int32_t>(),
          a.tables.size(0),
          a.states.template as<int32_t>(),
          a.cu_seqlens.template as<int32_t>(),
          rows,
          static_cast<int32_t>(a.states.size(0)),
          static_cast<int32_t>(n_heads),
          a.layer,
          a.from_zero};
}

}  // namespace zc::cuda
