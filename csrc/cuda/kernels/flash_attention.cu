#include "csrc/cuda/kernels/flash_attention.h"

#include <algorithm>
#include <climits>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

// ---- f16 and bf16: tensor cores (mma.sync), sm_80 and later ----

// A block of threads owns kTileRows query rows of one head. A warp owns 16 kRowTiles of them, from
// Q K^T to O: what it reads of K and V serves all of its rows, and reading shared memory would
// bound 16 rows a warp. Where O of 16 rows would not fit the registers, kParts warps have the same
// rows, the same scores, and a part of O's channels each.
template <int kWidth_, int kWarps_, int kRowTiles_, int kBlockKeys_, int kParts_ = 1>
struct FlashShape {
  static constexpr int kWidth = kWidth_;  // head_dim, or more
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kRowTiles_;  // of 16 rows, a warp's
  static constexpr int kParts = kParts_;
  static constexpr int kPartWidth = kWidth / kParts;
  static constexpr int kTileRows = 16 * kRowTiles * (kWarps / kParts);
  static constexpr int kBlockKeys = kBlockKeys_;
  static constexpr int kQueryBytes = kTileRows * kWidth * 2;
  static constexpr int kBlockBytes = kBlockKeys * kWidth * 2;  // of K, or of V
  static constexpr int kSharedBytes = kQueryBytes + 2 * kBlockBytes;
};

// O = softmax(scale Q K^T) V, FlashAttention-2 (arXiv 2307.08691): for each block of keys, from the
// last that the tile sees to the first, S = Q K^T, P = running softmax of S, O += P V, with S, P
// and O in the registers of the warp that owns the rows.
//
// K and V of a block have one buffer each in shared memory: K of the next block comes while P V is
// computed, V while Q K^T and the softmax are. With several blocks of threads on a multiprocessor
// one computes its softmax while another has the tensor cores. Only blocks of keys that some row
// does not see whole are masked. Shared memory: Shape::kSharedBytes. Bound by the tensor cores.
template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    flash_attention_kernel(const __grid_constant__ FlashParams p) {
  constexpr int kWidth = Shape::kWidth;
  constexpr int kPartWidth = Shape::kPartWidth;
  constexpr int kRowTiles = Shape::kRowTiles;
  constexpr int kBlockKeys = Shape::kBlockKeys;
  // Fragments of Q fit the registers of narrow heads alone; else they are read again and again.
  constexpr bool kQueriesInRegisters = kWidth <= 64;
  ZC_DYNAMIC_SHARED(shared);
  const uint32_t q_tile = simt::smem_u32(shared);
  const uint32_t k_tile = q_tile + Shape::kQueryBytes;
  const uint32_t v_tile = k_tile + Shape::kBlockBytes;

  if (blockIdx.x == 0) {
    check_cu_seqlens(p.faults, p.cu_seqlens_q, p.n_seqs, p.total_q, FaultReason::kSeqlensQ);
    check_cu_seqlens(p.faults, p.cu_seqlens_k, p.n_seqs, p.total_k, FaultReason::kSeqlensK);
  }
  // Read where they are used: registers are short.
  ZC_SHARED(FlashTile, tile, );
  ZC_SHARED(FlashBlocks, blocks, );
  ZC_SHARED(int64_t, kv_first, );  // element of k and v: the head's first
  if (threadIdx.x < 32) {
    const FlashTile found = flash_tile(p, Shape::kTileRows, blockIdx.x);
    if (threadIdx.x == 0) {
      tile = found;
      blocks = flash_blocks(p, found, kBlockKeys);
      kv_first = int64_t{found.k_row} * p.kv_stride + int64_t{found.head / p.group} * p.head_dim;
    }
  }
  __syncthreads();
  if (tile.n_rows == 0) return;

  const int n_chunks = p.head_dim / 8;
  const auto q_first = [&] {
    return int64_t{tile.q_row} * p.q_stride + int64_t{tile.head} * p.head_dim;
  };
  const auto load_block = [&](uint32_t to, const void* from, int block) {
    const int64_t kv_at = kv_first + int64_t{block} * kBlockKeys * p.kv_stride;
    load_tile<kBlockKeys, kWidth, Shape::kThreads>(to, static_cast<const T*>(from) + kv_at,
                                                   p.kv_stride, tile.kv_len - block * kBlockKeys,
                                                   n_chunks);
    simt::cp_async_commit();
  };

  const int lane = threadIdx.x % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row0 = warp / Shape::kParts * 16 * kRowTiles;  // the warp's first
  const int channel0 = warp % Shape::kParts * kPartWidth;  // the first of O that is the warp's

  const auto seen_by = [&](int row, int block) {
    SeenKeyPair seen;
    ZC_UNROLL for (int r = 0; r < 2; ++r) seen.of[r] =
        seen_keys(p, tile, row + lane / 4 + 8 * r, int64_t{block} * kBlockKeys, kBlockKeys);
    return seen;
  };

  float o[kRowTiles][kPartWidth / 8][4];
  SoftmaxRows softmax[kRowTiles];
  ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
    softmax[m].reset();
    ZC_UNROLL for (int n = 0; n < kPartWidth / 8; ++n) ZC_UNROLL for (int e = 0; e < 4; ++e)
        o[m][n][e] = 0.0f;
  }
  const float scale_log2 = p.scale * kLog2E;
  bool broken = false;  // V held something that is not finite

  if (blocks.first < blocks.last) {
    load_tile<Shape::kTileRows, kWidth, Shape::kThreads>(
        q_tile, static_cast<const T*>(p.q) + q_first(), p.q_stride, tile.n_rows, n_chunks);
    load_block(k_tile, p.k, blocks.last - 1);
  }
  const uint32_t k_at = b_lane<kWidth>(k_tile);
  const uint32_t v_at = a_lane<kWidth>(v_tile, 0);
  // a_lane of q_tile and row0, of what is in registers anyway: else sm_100 spills at 128 channels.
  const uint32_t q_at = v_at + (q_tile - v_tile) + row0 * (kWidth * 2);
  uint32_t q_fragments[kQueriesInRegisters ? kWidth / 16 : 1][kRowTiles][4];
  const auto load_queries = [&](uint32_t(&a)[kRowTiles][4], int k) {
    ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) load_a<kWidth>(a[m], q_at, 16 * m, k);
  };

  ZC_NO_UNROLL for (int block = blocks.last - 1; block >= blocks.first; --block) {
    simt::cp_async_wait<0>();
    __syncthreads();  // K is here, and no warp reads the last V any more
    load_block(v_tile, p.v, block);

    if constexpr (kQueriesInRegisters) {
      if (block == blocks.last - 1) {
        ZC_UNROLL for (int k = 0; k < kWidth / 16; ++k) load_queries(q_fragments[k], k);
      }
    }
    float s[kRowTiles][kBlockKeys / 8][4];
    ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) ZC_UNROLL for (int n = 0; n < kBlockKeys / 8; ++n)
        ZC_UNROLL for (int e = 0; e < 4; ++e) s[m][n][e] = 0.0f;
    ZC_UNROLL for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t(&a)[kRowTiles][4] = q_fragments[kQueriesInRegisters ? k : 0];
      if constexpr (!kQueriesInRegisters) load_queries(a, k);
      ZC_UNROLL for (int n = 0; n < kBlockKeys / 16; ++n) {
        uint32_t b[4];
        load_b<kWidth>(b, k_at, 16 * n, k);
        ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
          simt::mma_m16n8k16(s[m][2 * n], a[m], b[0], b[1], T{});
          simt::mma_m16n8k16(s[m][2 * n + 1], a[m], b[2], b[3], T{});
        }
      }
    }

    const bool masked = blocks.masked(block);
    if (masked) {
      ZC_UNROLL for (int m = 0; m < kRowTiles; ++m)
          mask_scores(s[m], seen_by(row0 + 16 * m, block));
    }
    ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
      float factors[2];
      if (softmax[m].update(s[m], scale_log2, factors)) scale_rows(o[m], factors);
    }

    simt::cp_async_wait<0>();
    __syncthreads();  // V is here, and no warp reads this K any more
    if (block > blocks.first) load_block(k_tile, p.k, block - 1);
    if (masked) {
      // What is not finite in V becomes 0, for flash_mend.
      uint4* const v = reinterpret_cast<uint4*>(shared + Shape::kQueryBytes + Shape::kBlockBytes);
      bool good = true;
      for (int i = threadIdx.x; i < Shape::kBlockBytes / 16; i += Shape::kThreads)
        good = good && finite8<T>(v[i]);
      if (__syncthreads_or(!good)) {
        broken = true;
        for (int i = threadIdx.x; i < Shape::kBlockBytes / 16; i += Shape::kThreads)
          clear_not_finite<T>(v[i]);
        __syncthreads();
      }
    }

    ZC_UNROLL for (int k = 0; k < kBlockKeys / 16; ++k) {
      uint32_t a[kRowTiles][4];
      ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) ZC_UNROLL for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = s[m][2 * k + i / 2];
        a[m][i] = simt::pack2(pair[i % 2 * 2], pair[i % 2 * 2 + 1], T{});
      }
      ZC_UNROLL for (int n = 0; n < kPartWidth / 16; ++n) {
        uint32_t b[4];
        load_b_trans<kWidth>(b, v_at + channel0 * 2, 16 * k, n);
        ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
          simt::mma_m16n8k16(o[m][2 * n], a[m], b[0], b[1], T{});
          simt::mma_m16n8k16(o[m][2 * n + 1], a[m], b[2], b[3], T{});
        }
      }
    }
  }

  ZC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
    softmax[m].finish();
    flash_store<T>(p, tile, row0 + 16 * m + lane / 4, o[m], softmax[m], channel0);
    if (broken)
      flash_mend<T>(p, tile, blocks, kBlockKeys, row0 + 16 * m, channel0, channel0 + kPartWidth);
  }
}

template <typename T, typename Shape>
void launch_flash_attention(Context& context, const FlashParams& p) {
  launch(context, &flash_attention_kernel<T, Shape>,
         blocks_for(flash_items(p, Shape::kTileRows), 1), Shape::kThreads, Shape::kSharedBytes, p);
}

template <typename T>
void flash_attention_16(Context& context, const FlashParams& p) {
  // Shared memory of 2 blocks of threads fits a multiprocessor of sm_80; of one, any.
  if (p.head_dim <= 64) return launch_flash_attention<T, FlashShape<64, 4, 2, 64>>(context, p);
  if (p.head_dim <= 96) return launch_flash_attention<T, FlashShape<96, 4, 2, 64>>(context, p);
  if (p.head_dim <= 128) return launch_flash_attention<T, FlashShape<128, 4, 2, 64>>(context, p);
  // O alone is 128 registers a thread with 16 rows a warp, or with half the channels of as many.
  if (p.head_dim <= 256) return launch_flash_attention<T, FlashShape<256, 8, 1, 32>>(context, p);
  launch_flash_attention<T, FlashShape<kMaxHeadDim, 8, 1, 16, 2>>(context, p);
}

}  // namespace

void flash_attention(Context& context, const FlashAttentionArgs& args) {
  FlashAttentionArgs a = args;
  // The lists of sequences are of 32 bits, and so are rows, strides and blocks here.
  const int64_t most = std::max({a.q.size(0), a.q.size(1) * a.q.size(2), a.k.size(0),
                                 most_tiles(a.cu_seqlens_q.size(0), a.q.size(0), 1)});
  ZC_CHECK(most <= INT_MAX, ErrorCode::kUnsupported, "q: %lld rows, sequences or channels",
           static_cast<long long>(most));
  with_aligned(context, {&a.q, &a.k, &a.v}, {&a.out}, 0, [&](void*) {
    const FlashParams p = {a.q.data,
                           a.k.data,
                           a.v.data,
                           a.out.data,
                           a.lse.as<float>(),
                           a.cu_seqlens_q.as<int32_t>(),
                           a.cu_seqlens_k.as<int32_t>(),
                           static_cast<int32_t>(a.cu_seqlens_q.size(0) - 1),
                           static_cast<int32_t>(a.q.size(0)),
                           static_cast<int32_t>(a.k.size(0)),
                           static_cast<int>(a.q.size(1)),
                           static_cast<int>(a.q.size(1) / a.k.size(1)),
                           static_cast<int>(a.q.size(2)),
                           static_cast<int>(a.q.size(1) * a.q.size(2)),
                           static_cast<int>(a.k.size(1) * a.k.size(2)),
                           a.scale,
                           a.sliding_window,
                           a.causal,
                           context.faults()};
    if (a.q.dtype == DType::kF32) return flash_attention_f32(context, p);
    if (takes_flash_hopper(context, p)) return flash_attention_hopper(context, p, a.q.dtype);
    switch (a.q.dtype) {
      case DType::kF16:
        return flash_attention_16<f16>(context, p);
      case DType::kBF16:
        return flash_attention_16<bf16>(context, p);
      default:
        throw Error(ErrorCode::kDtype,
                    format("q: dtype is %s, expected f32, f16 or bf16", dtype_name(a.q.dtype)));
    }
  });
}

}  // namespace zc::cuda
