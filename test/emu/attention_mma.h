#pragma once

#include "csrc/cuda/device/simt.h"

// FlashAttention-2 in small (arXiv 2307.08691), to test the emulator with what attention kernels
// are made of: cp.async into two stages, swizzled rows, ldmatrix, mma, shuffles of a quad. Four
// warps own 64 queries of one head, 16 each; keys come in tiles of 64. Defects can be planted.
namespace zc::test::attention_mma {

enum class Defect {
  kNone,
  kWaitsForOneGroupLess,
  kNoBarrierBehindWait,
  kNoBarrierBeforeRefill,
  kWarpSkipsBarrier,
  kShuffleInBranch,
  kStoresRowsBeyond,
};

struct Params {
  const void* q;  // (n, n_heads, head_dim)
  const void* k;
  const void* v;
  void* out;
  float* lse;  // (n_heads, n)
  int n;
  int n_heads;
  float scale_log2;  // of the scores, times log2(e)
  bool causal;
};

inline constexpr int kThreads = 128;
inline constexpr int kTile = 64;
inline constexpr int kChunkBytes = 16;  // 8 values

template <int kHeadDim>
constexpr int shared_bytes() {
  return 5 * kTile * kHeadDim * 2;  // Q, two stages of K and V
}

// Where chunk `chunk` (8 values) of a row lies: chunks of 8 rows change places, so that a column of
// chunks lies in different banks.
template <int kHeadDim>
ZC_DEVICE uint32_t chunk_address(uint32_t tile, int row, int chunk) {
  return tile + static_cast<uint32_t>(row * kHeadDim * 2 + ((chunk ^ (row & 7)) << 4));
}

// Begins to copy 64 rows, of which the first n_rows exist.
template <int kHeadDim, typename T>
ZC_DEVICE void load_tile(uint32_t tile, const T* rows, int64_t stride, int n_rows) {
  constexpr int kChunks = kHeadDim / 8;
  ZC_UNROLL
  for (int i = 0; i < kTile * kChunks / kThreads; ++i) {
    const int c = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = c / kChunks;
    const int chunk = c % kChunks;
    const bool exists = row < n_rows;
    simt::cp_async_16(chunk_address<kHeadDim>(tile, row, chunk),
                      rows + (exists ? row : 0) * stride + chunk * 8, exists ? kChunkBytes : 0);
  }
}

template <int kHeadDim, typename T, Defect kDefect>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Params p) {
  constexpr int kScoreTiles = kTile / 8;
  constexpr int kOutTiles = kHeadDim / 8;
  constexpr uint32_t kTileBytes = kTile * kHeadDim * 2;
  ZC_DYNAMIC_SHARED(memory);
  const uint32_t q_tile = simt::smem_u32(memory);
  const uint32_t k_tiles = q_tile + kTileBytes;
  const uint32_t v_tiles = k_tiles + 2 * kTileBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int first_row = static_cast<int>(blockIdx.x) * kTile;
  const int head = static_cast<int>(blockIdx.y);
  const int64_t stride = int64_t{p.n_heads} * kHeadDim;
  const T* q = static_cast<const T*>(p.q) + head * kHeadDim;
  const T* k = static_cast<const T*>(p.k) + head * kHeadDim;
  const T* v = static_cast<const T*>(p.v) + head * kHeadDim;
  const int n_keys = p.causal ? min(p.n, first_row + kTile) : p.n;
  const int n_tiles = (n_keys + kTile - 1) / kTile;

  load_tile<kHeadDim>(q_tile, q + first_row * stride, stride, p.n - first_row);
  load_tile<kHeadDim>(k_tiles, k, stride, p.n);
  load_tile<kHeadDim>(v_tiles, v, stride, p.n);
  simt::cp_async_commit();

  uint32_t q_fragments[kHeadDim / 16][4];
  float out[kOutTiles][4] = {};
  float highest[2] = {-INFINITY, -INFINITY};  // rows g and g + 8
  float sum[2] = {};
  for (int tile = 0; tile < n_tiles; ++tile) {
    const uint32_t stage = static_cast<uint32_t>(tile & 1);
    if (tile + 1 < n_tiles) {
      const int64_t next = (tile + 1) * kTile;
      const int n_rows = p.n - static_cast<int>(next);
      load_tile<kHeadDim>(k_tiles + (stage ^ 1) * kTileBytes, k + next * stride, stride, n_rows);
      load_tile<kHeadDim>(v_tiles + (stage ^ 1) * kTileBytes, v + next * stride, stride, n_rows);
    }
    simt::cp_async_commit();
    simt::cp_async_wait<kDefect == Defect::kWaitsForOneGroupLess ? 2 : 1>();
    if constexpr (kDefect != Defect::kNoBarrierBehindWait) __syncthreads();
    if (tile == 0) {
      ZC_UNROLL
      for (int i = 0; i < kHeadDim / 16; ++i)
        simt::ldmatrix_x4(q_fragments[i], chunk_address<kHeadDim>(q_tile, warp * 16 + (lane & 15),
                                                                  2 * i + (lane >> 4)));
    }

    const uint32_t k_tile = k_tiles + stage * kTileBytes;
    float scores[kScoreTiles][4] = {};
    ZC_UNROLL
    for (int i = 0; i < kHeadDim / 16; ++i) {
      ZC_UNROLL
      for (int j = 0; j < kScoreTiles / 2; ++j) {
        uint32_t b[4];
        simt::ldmatrix_x4(b,
                          chunk_address<kHeadDim>(k_tile, j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                  2 * i + ((lane >> 3) & 1)));
        simt::mma_m16n8k16(scores[2 * j], q_fragments[i], b[0], b[1], T{});
        simt::mma_m16n8k16(scores[2 * j + 1], q_fragments[i], b[2], b[3], T{});
      }
    }
    const int row = first_row + warp * 16 + g;
    ZC_UNROLL
    for (int j = 0; j < kScoreTiles; ++j) {
      ZC_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = tile * kTile + j * 8 + t * 2 + (e & 1);
        if (key >= p.n || (p.causal && key > row + (e >> 1) * 8)) scores[j][e] = -INFINITY;
      }
    }

    ZC_UNROLL
    for (int r = 0; r < 2; ++r) {
      float m = highest[r];
      ZC_UNROLL
      for (int j = 0; j < kScoreTiles; ++j)
        m = fmaxf(m, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      const float base = m == -INFINITY ? 0.0f : m * p.scale_log2;
      const float shrink = simt::ex2(highest[r] * p.scale_log2 - base);
      highest[r] = m;
      sum[r] *= shrink;
      ZC_UNROLL
      for (int j = 0; j < kOutTiles; ++j) {
        out[j][2 * r] *= shrink;
        out[j][2 * r + 1] *= shrink;
      }
      ZC_UNROLL
      for (int j = 0; j < kScoreTiles; ++j) {
        ZC_UNROLL
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          scores[j][e] = simt::ex2(scores[j][e] * p.scale_log2 - base);
          sum[r] += scores[j][e];
        }
      }
    }

    // The accumulators of two score tiles are the A operand of 16 keys.
    const uint32_t v_tile = v_tiles + stage * kTileBytes;
    ZC_UNROLL
    for (int i = 0; i < kTile / 16; ++i) {
      const float* left = scores[2 * i];
      const float* right = scores[2 * i + 1];
      const uint32_t a[4] = {simt::pack2(left[0], left[1], T{}), simt::pack2(left[2], left[3], T{}),
                             simt::pack2(right[0], right[1], T{}),
                             simt::pack2(right[2], right[3], T{})};
      ZC_UNROLL
      for (int j = 0; j < kOutTiles / 2; ++j) {
        uint32_t b[4];
        simt::ldmatrix_x4_trans(
            b, chunk_address<kHeadDim>(v_tile, i * 16 + (lane & 15), 2 * j + (lane >> 4)));
        simt::mma_m16n8k16(out[2 * j], a, b[0], b[1], T{});
        simt::mma_m16n8k16(out[2 * j + 1], a, b[2], b[3], T{});
      }
    }
    if (kDefect == Defect::kNoBarrierBeforeRefill) continue;
    if (kDefect == Defect::kWarpSkipsBarrier && warp == 3) continue;
    __syncthreads();
  }
  // Too late, but nothing is left under way at the end.
  if constexpr (kDefect == Defect::kWaitsForOneGroupLess) simt::cp_async_wait<0>();

  ZC_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + warp * 16 + g + r * 8;
    if (kDefect != Defect::kShuffleInBranch || row < p.n) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
    if (row >= p.n && kDefect != Defect::kStoresRowsBeyond) continue;
    const float inverse = 1.0f / sum[r];
    T* to = static_cast<T*>(p.out) + row * stride + head * kHeadDim + t * 2;
    ZC_UNROLL
    for (int j = 0; j < kOutTiles; ++j)
      *reinterpret_cast<uint32_t*>(to + j * 8) =
          simt::pack2(out[j][2 * r] * inverse, out[j][2 * r + 1] * inverse, T{});
    if (t == 0)
      p.lse[int64_t{head} * p.n + row] = highest[r] * p.scale_log2 * 0.69314718056f + logf(sum[r]);
  }
}

}  // namespace zc::test::attention_mma
