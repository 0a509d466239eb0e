#pragma once

#include <type_traits>

#include "csrc/cuda/state_page.h"

// States of heads, (key_dim, value_dim) each, in registers, and the rows that pass by them. What q,
// k and v are to the delta rule are C, B and x to a scan.
//
// A block owns kStateColumns columns of the state of one head of one sequence, which stay in
// registers over all rows of a call: a column has kStateLanes threads, each of which holds the
// channels 4 lane to 4 lane + 3 of every 4 kStateLanes. Sums over channels end with a shuffle among
// them. Rows are copied to shared memory in tiles.
namespace zc::cuda {

constexpr int kStateThreads = 128;
constexpr int kStateLanes = 4;  // a warp owns 8 columns, 32 bytes of a row of the state
constexpr int kStateColumns = kStateThreads / kStateLanes;
constexpr int kStateTileRows = 8;

struct StateRows {
  StatePlace place;
  const float* in;  // (rows, stride), aligned to 16 bytes as its rows are
  float* out;       // (rows, n_heads, value_dim)
  int64_t stride;
  int32_t q;  // columns of `in` where those of the first head begin
  int32_t k;
  int32_t v;
  int32_t heads_per_key;
  int32_t value_dim;
  int32_t n_slices;  // of value_dim, one a block
};

// A tile's row: q, k, v.
template <int kKeyDim>
constexpr int kStateRow = 2 * kKeyDim + kStateColumns;

// What a thread has of it.
template <int kKeyDim>
struct StateBlock {
  static constexpr int kVectors = kKeyDim / (4 * kStateLanes);  // of 4 channels, a thread's
  static constexpr int kRow = kStateRow<kKeyDim>;

  const StateRows& p;
  int head;
  int first_column;
  int n_columns;
  int begin;  // rows; cuSeqlens are of 32 bits
  int end;
  StatePage page;
  int lane;
  int column;
  bool owns;  // the same of a whole warp: there are 16 or 32 columns

  // Element (row, c) of the block's columns of the output.
  ZC_DEVICE float* out_at(int row, int c) const {
    return p.out + (int64_t{row} * p.place.n_heads + head) * p.value_dim + first_column + c;
  }

  // Where there is no page: a masked sequence's output.
  ZC_DEVICE void clear_masked() const {
    const int thread = threadIdx.x;
    if (page.is_masked && thread % kStateColumns < n_columns)
      for (int row = begin + thread / kStateColumns; row < end; row += kStateLanes)
        *out_at(row, thread % kStateColumns) = 0.0f;
  }

  ZC_DEVICE float* element(int m, int e) const {
    return page.data + first_column + column + ((m * kStateLanes + lane) * 4 + e) * p.value_dim;
  }
  ZC_DEVICE void load(float (&state)[kVectors][4]) const {
    ZC_UNROLL for (int m = 0; m < kVectors; ++m) ZC_UNROLL for (int e = 0; e < 4; ++e) state[m][e] =
        owns && !p.place.from_zero ? *element(m, e) : 0.0f;
  }
  ZC_DEVICE void store(const float (&state)[kVectors][4]) const {
    ZC_UNROLL for (int m = 0; m < kVectors; ++m) ZC_UNROLL for (int e = 0; e < 4; ++e) *
        element(m, e) = state[m][e];
  }

  ZC_DEVICE int rows_of_tile(int first) const {
    return end - first < kStateTileRows ? end - first : kStateTileRows;
  }
  // Begins to copy the rows from `first` on, by all threads of the block.
  ZC_DEVICE void copy_tile(int first, float* to) const {
    const int n = rows_of_tile(first);
    const int key = head / p.heads_per_key * kKeyDim;
    const int q = p.q + key;
    const int k = p.k + key;
    const int v = p.v + head * p.value_dim + first_column;
    const auto copy = [&](int row, int c, int from) {
      simt::cp_async_16(simt::smem_u32(to + row * kRow + c),
                        p.in + (first + row) * p.stride + from);
    };
    for (int i = threadIdx.x; i < n * (kKeyDim / 2); i += kStateThreads) {
      const int c = i % (kKeyDim / 2) * 4;
      copy(i / (kKeyDim / 2), c, c < kKeyDim ? q + c : k + c - kKeyDim);
    }
    for (int i = threadIdx.x; i < n * (kStateColumns / 4); i += kStateThreads) {
      const int c = i % (kStateColumns / 4) * 4;
      if (c < n_columns) copy(i / (kStateColumns / 4), 2 * kKeyDim + c, v + c);
    }
    simt::cp_async_commit();
  }

  // Of a row of a tile this thread's channels of q and of k, and its column's v.
  ZC_DEVICE float4 query(const float* tile, int row, int m) const {
    return *reinterpret_cast<const float4*>(tile + row * kRow + (m * kStateLanes + lane) * 4);
  }
  ZC_DEVICE float4 key(const float* tile, int row, int m) const {
    return query(tile + kKeyDim, row, m);
  }
  ZC_DEVICE float value(const float* tile, int row) const {
    return tile[row * kRow + 2 * kKeyDim + column];
  }
};

template <int kKeyDim>
ZC_DEVICE StateBlock<kKeyDim> state_block(const FaultSink& faults, const StateRows& p) {
  const int slice = blockIdx.x % p.n_slices;
  const int head = blockIdx.x / p.n_slices % p.place.n_heads;
  const int seq = blockIdx.x / p.n_slices / p.place.n_heads;
  const int first_column = slice * kStateColumns;
  const int left = p.value_dim - first_column;
  const int n_columns = left < kStateColumns ? left : kStateColumns;
  const int column = threadIdx.x / kStateLanes;
  const NewRows rows = new_rows(faults, p.place, seq);
  return {p,
          head,
          first_column,
          n_columns,
          static_cast<int>(rows.begin),
          static_cast<int>(rows.end),
          state_page(faults, p.place, seq, 1 + head, head_page_bytes(kKeyDim, p.value_dim)),
          static_cast<int>(threadIdx.x) % kStateLanes,
          column,
          column < n_columns};
}

// Args: those of an op of recurrent layers; `in` is aligned to 16 bytes.
template <typename Args>
StateRows state_rows(const Args& a, const TensorView& in, int64_t q, int64_t k, int64_t v,
                     int64_t n_key_heads) {
  const int64_t n_heads = a.out.size(1);
  const int64_t value_dim = a.out.size(2);
  return {state_place(a, in.size(0), n_heads),
          in.as<float>(),
          a.out.template as<float>(),
          in.size(1),
          static_cast<int32_t>(q),
          static_cast<int32_t>(k),
          static_cast<int32_t>(v),
          static_cast<int32_t>(n_heads / n_key_heads),
          static_cast<int32_t>(value_dim),
          static_cast<int32_t>((value_dim + kStateColumns - 1) / kStateColumns)};
}

inline unsigned state_blocks(const StateRows& p) {
  return blocks_for(int64_t{p.place.n_seqs} * p.place.n_heads * p.n_slices, 1);
}

// Calls f(std::integral_constant<int, key_dim>{}).
template <int kKeyDim = 16, typename F>
void dispatch_key_dim(int64_t key_dim, const F& f) {
  if (key_dim == kKeyDim) return f(std::integral_constant<int, kKeyDim>{});
  if constexpr (kKeyDim < 256)
    dispatch_key_dim<2 * kKeyDim>(key_dim, f);
  else
    throw Error(ErrorCode::kUnsupported,
                format("rows of a state: %lld", static_cast<long long>(key_dim)));
}

}  // namespace zc::cuda
