#pragma once

#include <climits>
#include <cstdint>

#include "csrc/cuda/device/softmax.h"
#include "csrc/cuda/device/tile.h"
#include "csrc/cuda/kernel.h"

// What the kernels of probeAttention share.
namespace zc::cuda {

// Query rows of probes, heads of a group side by side, that the kernels take at a time.
inline constexpr int kTileRows = 64;

// The keys that rows of a tile see.
struct TileKeys {
  int some_first;  // some row sees one of [some_first, some_last)
  int some_last;
  int all_first;  // every row sees all of [all_first, all_last)
  int all_last;
};

// What is known of the probes before their scores are computed, in scratch memory. Row r of
// n_tiles * kTileRows is head r % group of probe r / group; rows beyond the last see nothing.
struct ProbeRows {
  TileKeys* tiles;  // (n_tiles)
  int32_t* q_rows;  // (rows): row of q times n_heads, plus the head in its group: from
                    // first_query_head on
  SeenKeys* seen;   // (rows)
  float* offsets;   // (n_kv_heads, rows): -lse in units of log2; -inf for rows beyond the last
  int64_t n_rows;   // probes times heads of a group
  int64_t n_tiles;
};

struct ProbeParams {
  const void* q;             // (n_layers, n, n_heads, head_dim)
  const float* lse;          // (n_layers, n, n_heads)
  const void* k;             // (kv_len, n_kv_heads, head_dim)
  const int32_t* rows;       // (n_probes)
  const int32_t* positions;  // (n_probes)
  float* scores;             // (n_kv_heads, kv_len)
  ProbeRows probes;
  int64_t n_q;
  int32_t kv_len;
  int n_heads;     // of a layer
  int n_kv_heads;  // of all layers
  int group;
  int head_dim;
  float scale;
  int window;
  bool normalized;
  int n_multiprocessors;
  FaultSink faults;
};

// Where the query heads of a KV head begin in q and lse, in heads: of row 0 of its layer.
ZC_DEVICE int64_t first_query_head(const ProbeParams& p, int kv_head) {
  const int head = kv_head * p.group;  // of all layers
  return head / p.n_heads * p.n_q * p.n_heads + head % p.n_heads;
}

// The tiles of which some row sees one of the keys [key0, key0 + n_keys), in order. Called by all
// lanes of a warp; each lane looks at one tile at a time.
struct TileSearch {
  const ProbeRows& probes;
  int key0;
  int n_keys;
  int64_t base = -32;  // tile of lane 0
  unsigned seen = 0;   // lanes whose tile sees a key and has not been given
  unsigned full = 0;   // lanes all of whose rows see all keys

  struct Found {
    int64_t tile;
    bool full;
  };

  ZC_DEVICE Found next() {
    while (seen == 0) {
      base += 32;
      if (base >= probes.n_tiles) return {probes.n_tiles, false};
      const int64_t tile = base + threadIdx.x % 32;
      TileKeys keys = {INT_MAX, 0, INT_MAX, 0};
      if (tile < probes.n_tiles) keys = probes.tiles[tile];
      seen = __ballot_sync(0xffffffffu, keys.some_first < key0 + n_keys && keys.some_last > key0);
      full = __ballot_sync(0xffffffffu, keys.all_first <= key0 && keys.all_last >= key0 + n_keys);
    }
    const int lane = __ffs(static_cast<int>(seen)) - 1;
    seen &= seen - 1;
    return {base + lane, (full >> lane & 1u) != 0};
  }
};

// Rows of a tile of rows that are a probe's.
ZC_DEVICE int rows_of_tile(const ProbeRows& probes, int64_t tile) {
  const int64_t left = probes.n_rows - tile * kTileRows;
  return left < kTileRows ? static_cast<int>(left) : kTileRows;
}

// Blocks of threads in the order of their work, most first: the first keys are seen by the most
// probes. Where multiprocessors are given blocks round after round, each round goes the other way,
// so that none has the most of each.
ZC_DEVICE int work_of_block(const ProbeParams& p) {
  const int round = static_cast<int>(blockIdx.x) / p.n_multiprocessors;
  const int first = round * p.n_multiprocessors;
  const int last = min(first + p.n_multiprocessors, static_cast<int>(gridDim.x)) - 1;
  return round % 2 == 0 ? blockIdx.x : first + last - static_cast<int>(blockIdx.x);
}

// The keys of one KV head that a block owns.
struct OwnKeys {
  int kv_head;
  int first;
  int n;
};

template <int kBlockKeys>
ZC_DEVICE OwnKeys own_keys(const ProbeParams& p) {
  const int work = work_of_block(p);
  const int first = work / p.n_kv_heads * kBlockKeys;
  return {work % p.n_kv_heads, first, min(kBlockKeys, p.kv_len - first)};
}

// Sends for them, a tile of rows as a_lane reads them.
template <typename T, int kBlockKeys, int kWidth, int kThreads>
ZC_DEVICE void load_keys(const ProbeParams& p, const OwnKeys& own, uint32_t to) {
  const int stride = p.n_kv_heads * p.head_dim;
  load_tile<kBlockKeys, kWidth, kThreads>(
      to,
      static_cast<const T*>(p.k) + int64_t{own.first} * stride + int64_t{own.kv_head} * p.head_dim,
      stride, own.n, p.head_dim / 8);
  simt::cp_async_commit();
}

ZC_DEVICE float probe_score(const ProbeParams& p, float total, int n_rows_that_see) {
  const int n_probes = n_rows_that_see / p.group;
  return p.normalized && n_probes > 0 ? total / static_cast<float>(n_probes) : total;
}

// f16 and bf16 with the instructions of sm_90a, where they are taken: probe_attention_hopper.cu,
// heads of up to 256 channels.
bool takes_probe_hopper(const Context& context, const ProbeParams& p);
template <typename T>
void probe_attention_hopper(Context& context, const ProbeParams& p);

}  // namespace zc::cuda
