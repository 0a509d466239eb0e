#pragma once

#include <cstdint>

#include "csrc/cuda/kernel.h"

// Which rows of x a block of a product multiplies, and by whose matrix. What the router chose is
// known on the device alone, so that a launch has room for any choice: of every expert that may
// have pairs a tile, and as many as all pairs fill. Blocks without a tile end.
namespace zc::cuda {

// Tiles are neighbouring rows, of one matrix.
struct AllRows {
  static constexpr bool kOfExperts = false;
};

// Tiles are the pairs of one expert (ExpertLinearArgs); matrices lie one after another.
struct ExpertRows {
  static constexpr bool kOfExperts = true;
  FaultSink faults;
  const int32_t* pairs;    // (n_pairs)
  const int32_t* offsets;  // (n_experts + 1)
  int n_experts;
  int n_pairs;
  int pairs_per_row;

  // The most tiles of so many rows that there can be.
  int64_t most_tiles(int rows) const {
    return int64_t{n_pairs < n_experts ? n_pairs : n_experts} + n_pairs / rows;
  }
};

struct ExpertTile {
  int expert = 0;
  int rows = 0;                       // 0: no such tile
  const int32_t* x_rows = nullptr;    // shared memory: row of x, or of its planes
  const int32_t* out_rows = nullptr;  // the same: row of out; -1: none
};

// Tile `index` of up to kRows pairs, for a whole block. x has `planes` rows in the place of one, in
// which x_rows counts; there are at most kPlaneRows of them. What pairs and offsets say is checked.
template <int kRows, int kPlaneRows>
ZC_DEVICE ExpertTile find_tile(const ExpertRows& of, int index, int rows_of_tile, int planes) {
  ZC_SHARED(int32_t, x_rows, [kPlaneRows]);
  ZC_SHARED(int32_t, out_rows, [kRows]);
  const int lane = static_cast<int>(threadIdx.x % 32);
  ExpertTile tile{};
  int first = 0;
  int before = 0;  // tiles of the experts in front
  ZC_NO_UNROLL for (int e0 = 0; e0 < of.n_experts; e0 += 32) {
    const int expert = e0 + lane;
    const bool is_one = expert < of.n_experts;
    const int begin = is_one ? of.offsets[expert] : 0;
    int end = is_one ? of.offsets[expert + 1] : 0;
    const bool good = begin >= 0 && begin <= end && end <= of.n_pairs &&
                      (expert > 0 || begin == 0) &&
                      (expert + 1 != of.n_experts || end == of.n_pairs);
    if (!check_data(of.faults, good, FaultReason::kExpertOffsets, of.n_pairs)) end = begin;
    const int tiles = (end - begin + rows_of_tile - 1) / rows_of_tile;
    int up_to = tiles;
    ZC_UNROLL for (int step = 1; step < 32; step *= 2) {
      const int lower = __shfl_up_sync(~0u, up_to, step);
      if (lane >= step) up_to += lower;
    }
    const int own_index = index - before - (up_to - tiles);
    const uint32_t votes = __ballot_sync(~0u, own_index >= 0 && own_index < tiles);
    if (votes != 0) {
      const int owner = __ffs(static_cast<int>(votes)) - 1;
      tile.expert = e0 + owner;
      first = __shfl_sync(~0u, begin + own_index * rows_of_tile, owner);
      tile.rows = min(rows_of_tile, __shfl_sync(~0u, end, owner) - first);
    }
    before += __shfl_sync(~0u, up_to, 31);
  }
  for (int i = static_cast<int>(threadIdx.x); i < tile.rows * planes;
       i += static_cast<int>(blockDim.x)) {
    const int pair = of.pairs[first + i / planes];
    const bool good = check_data(of.faults, pair >= 0 && pair < of.n_pairs,
                                 FaultReason::kExpertPair, pair, of.n_pairs - 1);
    x_rows[i] = (good ? pair / of.pairs_per_row : 0) * planes + i % planes;
    if (i % planes == 0) out_rows[i / planes] = good ? pair : -1;
  }
  __syncthreads();
  tile.x_rows = x_rows;
  tile.out_rows = out_rows;
  return tile;
}

}  // namespace zc::cuda
