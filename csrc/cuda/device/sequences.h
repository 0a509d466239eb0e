#pragma once

#include <cstdint>

#include "csrc/cuda/device/fault.h"
#include "csrc/cuda/device/simt.h"
#include "csrc/math/hd.h"

// Sequences packed one after another: cu_seqlens (n_seqs + 1) i32 lie in device memory, so a
// launcher knows only how many sequences and how many rows there are.
namespace zc::cuda {

// Reports a list that does not rise from 0 to `rows`. Called by all threads of one block.
ZC_DEVICE void check_cu_seqlens(const FaultSink& faults, const int32_t* cu, int64_t n_seqs,
                                int64_t rows, FaultReason reason) {
  bool good = true;
  for (int64_t i = threadIdx.x; i < n_seqs; i += blockDim.x) good = good && cu[i] <= cu[i + 1];
  if (threadIdx.x == 0) good = good && cu[0] == 0 && cu[n_seqs] == rows;
  check_data(faults, good, reason, rows);
}

// A sequence's part of the rows, within [0, rows) whatever the list says.
struct SequenceRows {
  int32_t first;
  int32_t length;
};

ZC_DEVICE SequenceRows sequence_rows(const int32_t* cu, int32_t seq, int32_t rows) {
  const auto inside = [&](int32_t x) { return x < 0 ? 0 : x > rows ? rows : x; };
  const int32_t first = inside(cu[seq]);
  const int32_t last = inside(cu[seq + 1]);
  return {first, last > first ? last - first : 0};
}

// A sequence's rows in an op that adds to what the sequence holds; none where the list does not
// rise from 0 to the number of rows.
struct NewRows {
  int64_t begin;
  int64_t end;
};

ZC_DEVICE NewRows new_rows(const FaultSink& faults, const int32_t* cu, int32_t n_seqs, int64_t rows,
                           int seq) {
  const int64_t begin = cu[seq];
  const int64_t end = cu[seq + 1];
  const bool rises = (seq > 0 ? begin >= 0 : begin == 0) && begin <= end &&
                     (seq < n_seqs - 1 ? end <= rows : end == rows);
  if (!check_data(faults, rises, FaultReason::kSeqlens, rows)) return {0, 0};
  return {begin, end};
}

// Tiles of `tile_rows` rows, a sequence's own beginning with its first row.
struct SequenceTile {
  int32_t seq;  // -1: there are fewer tiles
  int32_t tile;
};

// At most so many tiles there are, whatever the lengths.
ZC_HD int64_t most_tiles(int64_t n_seqs, int64_t rows, int64_t tile_rows) {
  return rows / tile_rows + n_seqs;
}

// Where tile number `index` of all lies. Called by all 32 lanes of a warp: a lane counts the tiles
// of one sequence at a time. There are fewer than 2^31 tiles.
ZC_DEVICE SequenceTile find_tile(const int32_t* cu, int32_t n_seqs, int32_t rows, int tile_rows,
                                 int32_t index) {
  const int lane = threadIdx.x % 32;
  for (int32_t seq0 = 0; seq0 < n_seqs; seq0 += 32) {
    const int32_t seq = seq0 + lane;
    int32_t own = 0;
    if (seq < n_seqs) {
      const int32_t length = sequence_rows(cu, seq, rows).length;
      own = length / tile_rows + (length % tile_rows != 0);
    }
    int32_t last = own;  // tiles up to this sequence's last
    ZC_UNROLL for (int step = 1; step < 32; step *= 2) {
      const int32_t before = __shfl_up_sync(0xffffffffu, last, step);
      if (lane >= step) last += before;
    }
    const unsigned found = __ballot_sync(0xffffffffu, index < last);
    if (found != 0) {
      const int source = __ffs(static_cast<int>(found)) - 1;
      return {seq0 + source, index - __shfl_sync(0xffffffffu, last - own, source)};
    }
    index -= __shfl_sync(0xffffffffu, last, 31);
  }
  return {-1, 0};
}

}  // namespace zc::cuda
