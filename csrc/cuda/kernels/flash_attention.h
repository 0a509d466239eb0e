#pragma once

#include "csrc/cuda/device/sequences.h"
#include "csrc/cuda/device/softmax.h"
#include "csrc/cuda/kernel.h"
#include "csrc/math/key_range.h"

// What the kernels of flash_attention share.
namespace zc::cuda {

struct FlashParams {
  const void* q;                // (total_q, n_heads, head_dim)
  const void* k;                // (total_k, n_kv_heads, head_dim)
  const void* v;                // (total_k, n_kv_heads, head_dim)
  void* out;                    // (total_q, n_heads, head_dim)
  float* lse;                   // (total_q, n_heads)
  const int32_t* cu_seqlens_q;  // (n_seqs + 1)
  const int32_t* cu_seqlens_k;  // (n_seqs + 1)
  int64_t n_seqs;
  int64_t total_q;
  int64_t total_k;
  int n_heads;
  int group;  // n_heads / n_kv_heads
  int head_dim;
  int q_stride;   // n_heads head_dim
  int kv_stride;  // n_kv_heads head_dim
  float scale;
  int window;  // 0: off
  bool causal;
  FaultSink faults;
};

// Tiles of query rows times heads, more or as many as there are: with the heads of a tile side by
// side, those of a group read the same keys at about the same time, and find them in L2.
inline int64_t flash_items(const FlashParams& p, int tile_rows) {
  return most_tiles(p.n_seqs, p.total_q, tile_rows) * p.n_heads;
}

// A tile of query rows of one head, and the keys of its sequence.
struct FlashTile {
  int64_t q_row;   // of q and out
  int64_t k_row;   // of k and v: the sequence's first
  int32_t n_rows;  // 0: nothing to do
  int32_t kv_len;
  int32_t position;  // of the first row: the last row of the sequence sees the last key
  int32_t head;
};

// Item `item` of flash_items. A sequence's last rows come first: they see the most keys, and what
// is begun last should be short. Called by a whole warp.
ZC_DEVICE FlashTile flash_tile(const FlashParams& p, int tile_rows, int64_t item) {
  const int64_t n_tiles = most_tiles(p.n_seqs, p.total_q, tile_rows);
  const int64_t index = n_tiles - 1 - item / p.n_heads;
  const SequenceTile at = find_tile(p.cu_seqlens_q, p.n_seqs, p.total_q, tile_rows, index);
  FlashTile tile{};
  if (at.seq < 0) return tile;
  const SequenceRows q = sequence_rows(p.cu_seqlens_q, at.seq, p.total_q);
  const SequenceRows k = sequence_rows(p.cu_seqlens_k, at.seq, p.total_k);
  const int64_t row = at.tile * tile_rows;
  tile.q_row = q.first + row;
  tile.k_row = k.first;
  tile.n_rows = static_cast<int32_t>(min(q.length - row, int64_t{tile_rows}));
  tile.kv_len = static_cast<int32_t>(k.length);
  tile.position = static_cast<int32_t>(k.length - q.length + row);
  tile.head = static_cast<int32_t>(item % p.n_heads);
  return tile;
}

// The blocks of keys of which some row of a tile sees a key, and among them those that all rows see
// whole. Blocks begin at multiples of their size, so that a row meets the same blocks in the same
// order whichever rows are beside it: its bits do not depend on them.
struct FlashBlocks {
  int32_t first;
  int32_t last;
  int32_t first_full;
  int32_t last_full;

  ZC_DEVICE bool masked(int block) const { return block < first_full || block >= last_full; }
};

ZC_DEVICE FlashBlocks flash_blocks(const FlashParams& p, const FlashTile& tile, int block_keys) {
  const auto range = [&](int row) {
    return visible_keys(int64_t{tile.position} + row, tile.kv_len, p.causal, p.window);
  };
  const KeyRange top = range(0);
  const KeyRange bottom = range(tile.n_rows - 1);
  FlashBlocks blocks;
  blocks.first = static_cast<int32_t>(top.first / block_keys);
  blocks.last = static_cast<int32_t>((bottom.last + block_keys - 1) / block_keys);
  blocks.first_full = static_cast<int32_t>((bottom.first + block_keys - 1) / block_keys);
  blocks.last_full = static_cast<int32_t>(top.last / block_keys);
  return blocks;
}

// Of the block of keys that begins at key0, those that a row sees.
ZC_DEVICE SeenKeys seen_keys(const FlashParams& p, const FlashTile& tile, int row, int64_t key0,
                             int block_keys) {
  const KeyRange range =
      visible_keys(int64_t{tile.position} + row, tile.kv_len, p.causal, p.window);
  const auto inside = [&](int64_t key) {
    return static_cast<int32_t>(max(int64_t{0}, min(key - key0, int64_t{block_keys})));
  };
  return {inside(range.first), inside(range.last)};
}

// f32: without tensor cores, whose products of f32 are less exact.
void flash_attention_f32(Context& context, const FlashParams& p);

}  // namespace zc::cuda
