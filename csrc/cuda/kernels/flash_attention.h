#pragma once

#include "csrc/cuda/device/sequences.h"
#include "csrc/cuda/device/softmax.h"
#include "csrc/cuda/device/tile.h"
#include "csrc/cuda/device/vector.h"
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
  int32_t n_seqs;
  int32_t total_q;
  int32_t total_k;
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
  int32_t q_row;   // of q and out
  int32_t k_row;   // of k and v: the sequence's first
  int32_t n_rows;  // 0: nothing to do
  int32_t kv_len;
  int32_t position;  // of the first row: the last row of the sequence sees the last key
  int32_t head;
};

// Item `item` of flash_items. A sequence's last rows come first: they see the most keys, and what
// is begun last should be short. Called by a whole warp.
ZC_DEVICE FlashTile flash_tile(const FlashParams& p, int tile_rows, int32_t item) {
  const auto n_tiles = static_cast<int32_t>(most_tiles(p.n_seqs, p.total_q, tile_rows));
  const SequenceTile at =
      find_tile(p.cu_seqlens_q, p.n_seqs, p.total_q, tile_rows, n_tiles - 1 - item / p.n_heads);
  FlashTile tile{};
  if (at.seq < 0) return tile;
  const SequenceRows q = sequence_rows(p.cu_seqlens_q, at.seq, p.total_q);
  const SequenceRows k = sequence_rows(p.cu_seqlens_k, at.seq, p.total_k);
  const int32_t row = at.tile * tile_rows;
  tile.q_row = q.first + row;
  tile.k_row = k.first;
  tile.n_rows = min(q.length - row, tile_rows);
  tile.kv_len = k.length;
  tile.position = k.length - q.length + row;
  tile.head = item % p.n_heads;
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

// Writes rows `row` and `row` + 8 of a tile, channels from channel0 on, held as accumulators of the
// tensor cores.
template <typename T, int kChunks>
ZC_DEVICE void flash_store(const FlashParams& p, const FlashTile& tile, int row,
                           const float (&o)[kChunks][4], const SoftmaxRows& softmax,
                           int channel0 = 0) {
  const int lane = threadIdx.x % 32;
  ZC_UNROLL for (int r = 0; r < 2; ++r) {
    const int64_t own = int64_t{tile.q_row} + row + 8 * r;
    const bool inside = row + 8 * r < tile.n_rows;
    const float factor = softmax.normalizer(r);
    T* const out = static_cast<T*>(p.out) + (own * p.n_heads + tile.head) * p.head_dim;
    ZC_UNROLL for (int n = 0; n < kChunks; n += 4) {
      uint32_t words[4];
      ZC_UNROLL for (int i = 0; i < 4; ++i) words[i] =
          join_halves<T>(o[n + i][2 * r] * factor, o[n + i][2 * r + 1] * factor);
      transpose_quad(words);
      const int channel = channel0 + 8 * (n + lane % 4);
      if (inside && channel < p.head_dim)
        *reinterpret_cast<uint4*>(out + channel) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
    if (inside && lane % 4 == 0 && channel0 == 0)
      p.lse[own * p.n_heads + tile.head] = softmax.lse(r, p.scale);
  }
}

// After flash_store, for a tile of which V held something that is not finite in a block that some
// row does not see whole, and was taken for 0 there: adds it to the rows that see its key. With it,
// what is not finite stays whatever else was added. Called by a warp for its 16 rows from `row0`
// on, and the channels [first, last) that it stored.
template <typename T>
ZC_DEVICE void flash_mend(const FlashParams& p, const FlashTile& tile, const FlashBlocks& blocks,
                          int block_keys, int row0, int first = 0, int last = kMaxHeadDim) {
  __syncwarp();  // the rows have been stored
  const int64_t channel0 = int64_t{tile.head / p.group} * p.head_dim;
  for (int block = blocks.first; block < blocks.last; ++block) {
    if (!blocks.masked(block)) continue;
    const int64_t key0 = int64_t{block} * block_keys;
    const int n_keys = static_cast<int>(min(int64_t{block_keys}, tile.kv_len - key0));
    for (int key = 0; key < n_keys; ++key) {
      const T* const v =
          static_cast<const T*>(p.v) + (tile.k_row + key0 + key) * p.kv_stride + channel0;
      for (int c = first + static_cast<int>(threadIdx.x % 32); c < min(last, p.head_dim); c += 32) {
        if (finite<T>(v[c].bits)) continue;
        for (int row = row0; row < min(row0 + 16, tile.n_rows); ++row) {
          if (!seen_keys(p, tile, row, key0, block_keys).sees(key)) continue;
          T* const out = static_cast<T*>(p.out) +
                         (int64_t{tile.q_row + row} * p.n_heads + tile.head) * p.head_dim + c;
          *out = from_float<T>(to_float(*out) + to_float(v[c]));
        }
      }
    }
  }
}

// f16 and bf16 with the instructions of sm_90a: flash_attention_hopper.cu, heads of up to 256
// channels. Tensor copies want neither q nor k empty.
bool takes_flash_hopper(const Context& context, const FlashParams& p);
void flash_attention_hopper(Context& context, const FlashParams& p, DType dtype);

// f32: without tensor cores, whose products of f32 are less exact.
void flash_attention_f32(Context& context, const FlashParams& p);

}  // namespace zc::cuda
