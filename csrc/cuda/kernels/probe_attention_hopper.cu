#include "csrc/cuda/device/operand.h"
#include "csrc/cuda/kernels/probe_attention.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;  // two warpgroups
constexpr int kBlockKeys = kThreads / 32 * 16;

// Dynamic shared memory: two stages of rows of q, as wgmma reads them, then of what is known of
// them. First the keys take the place of the stages.
template <int kWidth>
struct HopperProbeBytes {
  static constexpr int kRowBytes = kTileRows * kWidth * 2;
  static constexpr int kSeenBytes = kTileRows * static_cast<int>(sizeof(SeenKeys));
  static constexpr int kOffsetBytes = kTileRows * static_cast<int>(sizeof(float));
  static constexpr int kFactBytes = kSeenBytes + kOffsetBytes;
  static constexpr int kFacts = 2 * kRowBytes;
  static constexpr int kBytes = kFacts + 2 * kFactBytes;
  static_assert(kBlockKeys * kWidth * 2 <= kFacts);
};

// Scores of keys as probe_attention_kernel gives them, by the instructions of Hopper.
//
// A block owns kBlockKeys keys of one KV head, a warp 16 of them: as the first operand of the
// products of its warpgroup, in registers from begin to end, so that a key's sum is a sum along a
// row of accumulators. Rows of probes, the second operand, pass by in tiles of kTileRows, two
// stages in shared memory; the next tile is sent for while one is multiplied, and exponentials of
// one block are computed beside the products of the multiprocessor's other one. Sums run in the
// order of the probes within a lane, then over the four lanes of a row. Shared memory:
// HopperProbeBytes::kBytes, 34 KB at head_dim 128. Bound by the tensor cores and by exponentials,
// which take as long.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth <= 128 ? 2 : 1)
    probe_attention_hopper_kernel(const __grid_constant__ ProbeParams p) {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __trap();  // runs_sm_90a has said no
#else
  using Bytes = HopperProbeBytes<kWidth>;
  ZC_DYNAMIC_SHARED(shared);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const uint32_t shared_at = simt::smem_u32(shared);
  const ProbeRows& probes = p.probes;
  const OwnKeys own = own_keys<kBlockKeys>(p);
  const auto [kv_head, key0, n_keys] = own;
  const int n_chunks = p.head_dim / 8;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp_key = thread / 32 * 16;

  load_keys<T, kBlockKeys, kWidth, kThreads>(p, own, shared_at);
  TileSearch search = {probes, key0, n_keys};
  TileSearch::Found tile = search.next();  // while the keys are on their way
  simt::cp_async_wait<0>();
  __syncthreads();
  uint32_t k[kWidth / 16][4];
  const uint32_t k_at = a_lane<kWidth>(shared_at, warp_key);
  ZC_UNROLL for (int i = 0; i < kWidth / 16; ++i) load_a<kWidth>(k[i], k_at, 0, i);
  __syncthreads();

  const float* const offsets = probes.offsets + kv_head * probes.n_tiles * kTileRows;
  const T* const q = static_cast<const T*>(p.q) + first_query_head(p, kv_head) * p.head_dim;
  const auto load_stage = [&](int stage, int64_t tile_number) {
    const int64_t row0 = tile_number * kTileRows;
    const uint32_t to = shared_at + stage * Bytes::kRowBytes;
    constexpr int kStep = kThreads / (kWidth / 8);  // rows at a time
    const int chunk = thread % (kWidth / 8);
    const int first = thread / (kWidth / 8);
    ZC_UNROLL for (int i = 0; i < kTileRows / kStep; ++i) {
      const int row = first + i * kStep;
      simt::cp_async_16(to + slab_offset<kTileRows>(row, chunk),
                        q + int64_t{probes.q_rows[row0 + row]} * p.head_dim + chunk * 8,
                        chunk < n_chunks ? 16 : 0);
    }
    const uint32_t facts = shared_at + Bytes::kFacts + stage * Bytes::kFactBytes + 16 * thread;
    if (thread < Bytes::kSeenBytes / 16)
      simt::cp_async_16(facts, probes.seen + row0 + 2 * thread);
    else if (thread < Bytes::kFactBytes / 16)
      simt::cp_async_16(facts, offsets + row0 + 4 * (thread - Bytes::kSeenBytes / 16));
    simt::cp_async_commit();
  };

  float totals[2] = {};
  int n_seen[2] = {};  // of this lane's columns, in tiles that are not full
  int n_full = 0;      // rows in tiles that are
  const float scale_log2 = p.scale * kLog2E;
  float s_sums[kTileRows / 2];
  auto& s = reinterpret_cast<float(&)[kTileRows / 8][4]>(s_sums);
  if (tile.tile < probes.n_tiles) load_stage(0, tile.tile);
  ZC_NO_UNROLL for (int stage = 0; tile.tile < probes.n_tiles; stage ^= 1) {
    simt::cp_async_wait<0>();
    simt::fence_async();
    __syncthreads();  // the tile is here, and no warp reads the other stage any more
    simt::wgmma_keep(s_sums);
    simt::wgmma_keep(k);
    simt::wgmma_fence();
    ZC_UNROLL for (int i = 0; i < kWidth / 16; ++i) simt::wgmma_m64k16<false>(
        s_sums, k[i], rows_operand<kTileRows>(shared_at + stage * Bytes::kRowBytes, i), i != 0,
        T{});
    simt::wgmma_commit();
    const TileSearch::Found following = search.next();
    if (following.tile < probes.n_tiles) load_stage(stage ^ 1, following.tile);

    if (tile.full) n_full += rows_of_tile(probes, tile.tile);
    const uint8_t* const facts = shared + Bytes::kFacts + stage * Bytes::kFactBytes;
    const SeenKeys* const seen = reinterpret_cast<const SeenKeys*>(facts);
    const float2* const row_offsets = reinterpret_cast<const float2*>(facts + Bytes::kSeenBytes);
    simt::wgmma_wait<0>();
    simt::wgmma_keep(s_sums);
    simt::wgmma_keep(k);
    if (!tile.full) {
      ZC_UNROLL for (int n = 0; n < kTileRows / 8; ++n) ZC_UNROLL for (int e = 0; e < 2; ++e) {
        const SeenKeys range = seen[8 * n + lane % 4 * 2 + e];
        ZC_UNROLL for (int r = 0; r < 2; ++r) {
          const bool sees = range.sees(key0 + warp_key + 8 * r + lane / 4);
          n_seen[r] += sees;
          if (!sees) s[n][2 * r + e] = -INFINITY;
        }
      }
    }
    ZC_UNROLL for (int n = 0; n < kTileRows / 8; ++n) {
      const float2 offset = row_offsets[4 * n + lane % 4];
      ZC_UNROLL for (int e = 0; e < 4; ++e) totals[e / 2] +=
          simt::ex2(fmaf(s[n][e], scale_log2, e % 2 ? offset.y : offset.x));
    }
    tile = following;
  }

  ZC_UNROLL for (int r = 0; r < 2; ++r) {
    ZC_UNROLL for (int step = 1; step < 4; step *= 2) {
      totals[r] += __shfl_xor_sync(0xffffffffu, totals[r], step);
      n_seen[r] += __shfl_xor_sync(0xffffffffu, n_seen[r], step);
    }
    const int key = warp_key + 8 * r + lane / 4;
    if (lane % 4 == 0 && key < n_keys)
      p.scores[int64_t{kv_head} * p.kv_len + key0 + key] =
          probe_score(p, totals[r], n_full + n_seen[r]);
  }
#endif
}

template <typename T, int kWidth>
void launch_hopper(Context& context, const ProbeParams& p) {
  launch_early(context, &probe_attention_hopper_kernel<T, kWidth>,
               blocks_for((int64_t{p.kv_len} + kBlockKeys - 1) / kBlockKeys * p.n_kv_heads, 1),
               kThreads, HopperProbeBytes<kWidth>::kBytes, p);
}

}  // namespace

bool takes_probe_hopper(const Context& context, const ProbeParams& p) {
  return p.head_dim <= 256 && runs_sm_90a(context, &probe_attention_hopper_kernel<bf16, 128>);
}

template <typename T>
void probe_attention_hopper(Context& context, const ProbeParams& p) {
  if (p.head_dim <= 64) return launch_hopper<T, 64>(context, p);
  if (p.head_dim <= 128) return launch_hopper<T, 128>(context, p);
  launch_hopper<T, 256>(context, p);
}

template void probe_attention_hopper<f16>(Context&, const ProbeParams&);
template void probe_attention_hopper<bf16>(Context&, const ProbeParams&);

}  // namespace zc::cuda
