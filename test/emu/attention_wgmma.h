#pragma once

#include "csrc/cuda/device/simt.h"

// FlashAttention-3 in small (arXiv 2407.08608), to test the emulator with what Hopper's kernels are
// made of: a producer thread copies tiles by tensor maps, a warpgroup multiplies them by wgmma,
// they hand stages to each other through mbarriers. 64 queries of one head of 64 channels, keys in
// tiles of 64, bfloat16. Defects can be planted.
namespace zc::test::attention_wgmma {

enum class Defect {
  kNone,
  kDoesNotWaitForEmpty,
  kExpectsHalfTheBytes,
  kNoWgmmaWait,
  kReleasesBeforeWait,
};

struct Params {
  bf16* out;   // (n, n_heads, 64)
  float* lse;  // (n_heads, n)
  int n;
  int n_heads;
  float scale_log2;
  bool causal;
};

inline constexpr int kThreads = 256;
inline constexpr int kHeadDim = 64;
inline constexpr int kTile = 64;
inline constexpr uint32_t kTileBytes = kTile * kHeadDim * 2;
inline constexpr int kSharedBytes = 5 * kTileBytes + 64;  // Q, two stages of K and V, mbarriers

// Rows of 128 bytes, swizzled, eight to a group.
ZC_DEVICE uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kGroupBytes = 1024;
  return (address >> 4) | uint64_t{1} << 16 | (kGroupBytes >> 4) << 32 | kSwizzle128;
}

template <Defect kDefect>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(const __grid_constant__ simt::TensorMap q,
                     const __grid_constant__ simt::TensorMap k,
                     const __grid_constant__ simt::TensorMap v, const __grid_constant__ Params p) {
  ZC_DYNAMIC_SHARED(memory);
  const uint32_t q_tile = simt::smem_u32(memory);
  const uint32_t k_tiles = q_tile + kTileBytes;
  const uint32_t v_tiles = k_tiles + 2 * kTileBytes;
  const uint32_t q_full = v_tiles + 2 * kTileBytes;
  const uint32_t full = q_full + 8;    // of each stage
  const uint32_t empty = q_full + 24;  // of each stage
  const int first_row = static_cast<int>(blockIdx.x) * kTile;
  const int head = static_cast<int>(blockIdx.y);
  const int n_keys = p.causal ? min(p.n, first_row + kTile) : p.n;
  const int n_tiles = (n_keys + kTile - 1) / kTile;
  if (threadIdx.x == 0) {
    simt::mbarrier_init(q_full, 1);
    for (uint32_t stage = 0; stage < 2; ++stage) {
      simt::mbarrier_init(full + 8 * stage, 1);
      simt::mbarrier_init(empty + 8 * stage, 128);
    }
    simt::fence_mbarrier_init();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    simt::setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    simt::mbarrier_arrive_expect_tx(q_full, kTileBytes);
    simt::tma_load_3d(q_tile, &q, q_full, 0, head, first_row);
    for (int tile = 0; tile < n_tiles; ++tile) {
      const uint32_t stage = static_cast<uint32_t>(tile & 1);
      // The first wait for each stage returns at once: the phase before the first counts as done.
      if constexpr (kDefect != Defect::kDoesNotWaitForEmpty)
        simt::mbarrier_wait(empty + 8 * stage, static_cast<uint32_t>(tile >> 1 & 1) ^ 1u);
      simt::mbarrier_arrive_expect_tx(
          full + 8 * stage, kDefect == Defect::kExpectsHalfTheBytes ? kTileBytes : 2 * kTileBytes);
      simt::tma_load_3d(k_tiles + stage * kTileBytes, &k, full + 8 * stage, 0, head, tile * kTile);
      simt::tma_load_3d(v_tiles + stage * kTileBytes, &v, full + 8 * stage, 0, head, tile * kTile);
    }
    return;
  }

  simt::setmaxnreg_inc<232>();
  const int warp = static_cast<int>(threadIdx.x) / 32 - 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  float out[32] = {};
  float highest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
  simt::mbarrier_wait(q_full, 0);
  for (int tile = 0; tile < n_tiles; ++tile) {
    const uint32_t stage = static_cast<uint32_t>(tile & 1);
    simt::mbarrier_wait(full + 8 * stage, static_cast<uint32_t>(tile >> 1 & 1));
    float scores[32];
    simt::wgmma_fence();
    ZC_UNROLL
    for (uint32_t i = 0; i < kHeadDim / 16; ++i)
      simt::wgmma_m64k16<false, false>(scores, descriptor(q_tile + 32 * i),
                                       descriptor(k_tiles + stage * kTileBytes + 32 * i), i != 0,
                                       bf16{});
    simt::wgmma_commit();
    if constexpr (kDefect != Defect::kNoWgmmaWait) simt::wgmma_wait<0>();

    const int row = first_row + warp * 16 + g;
    ZC_UNROLL
    for (int i = 0; i < 32; ++i) {
      const int key = tile * kTile + i / 4 * 8 + t * 2 + (i & 1);
      if (key >= p.n || (p.causal && key > row + (i >> 1 & 1) * 8)) scores[i] = -INFINITY;
    }
    ZC_UNROLL
    for (int r = 0; r < 2; ++r) {
      float m = highest[r];
      ZC_UNROLL
      for (int j = 0; j < 8; ++j)
        m = fmaxf(m, fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      const float base = m == -INFINITY ? 0.0f : m * p.scale_log2;
      const float shrink = simt::ex2(highest[r] * p.scale_log2 - base);
      highest[r] = m;
      sum[r] *= shrink;
      ZC_UNROLL
      for (int j = 0; j < 8; ++j) {
        ZC_UNROLL
        for (int e = 4 * j + 2 * r; e < 4 * j + 2 * r + 2; ++e) {
          out[e] *= shrink;
          scores[e] = simt::ex2(scores[e] * p.scale_log2 - base);
          sum[r] += scores[e];
        }
      }
    }
    uint32_t weights[kTile / 16][4];
    ZC_UNROLL
    for (int i = 0; i < kTile / 16; ++i) {
      ZC_UNROLL
      for (int r = 0; r < 4; ++r)
        weights[i][r] = simt::pack2(scores[8 * i + 2 * r], scores[8 * i + 2 * r + 1], bf16{});
    }
    simt::wgmma_fence();
    ZC_UNROLL
    for (uint32_t i = 0; i < kTile / 16; ++i)
      simt::wgmma_m64k16<true>(out, weights[i], descriptor(v_tiles + stage * kTileBytes + 2048 * i),
                               true, bf16{});
    simt::wgmma_commit();
    if constexpr (kDefect == Defect::kReleasesBeforeWait) simt::mbarrier_arrive(empty + 8 * stage);
    simt::wgmma_wait<0>();
    if constexpr (kDefect != Defect::kReleasesBeforeWait) simt::mbarrier_arrive(empty + 8 * stage);
  }

  ZC_UNROLL
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    const int row = first_row + warp * 16 + g + r * 8;
    if (row >= p.n) continue;
    const float inverse = 1.0f / sum[r];
    bf16* to = p.out + (int64_t{row} * p.n_heads + head) * kHeadDim + t * 2;
    ZC_UNROLL
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<uint32_t*>(to + j * 8) =
          simt::pack2(out[4 * j + 2 * r] * inverse, out[4 * j + 2 * r + 1] * inverse, bf16{});
    if (t == 0)
      p.lse[int64_t{head} * p.n + row] = highest[r] * p.scale_log2 * 0.69314718056f + logf(sum[r]);
  }
}

}  // namespace zc::test::attention_wgmma
