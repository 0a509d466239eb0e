#include <algorithm>
#include <climits>

#include "csrc/cuda/device/operand.h"
#include "csrc/cuda/kernels/flash_attention.h"
#include "csrc/cuda/tensor_map.h"

namespace zc::cuda {

namespace {

// A block of threads is one warpgroup that copies and kConsumers that compute, 64 query rows each.
template <int kWidth_, int kConsumers_, int kBlockKeys_>
struct HopperShape {
  static constexpr int kWidth = kWidth_;  // head_dim, or more
  static constexpr int kConsumers = kConsumers_;
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = 128 + kConsumerThreads;
  static constexpr int kTileRows = 64 * kConsumers;
  static constexpr int kBlockKeys = kBlockKeys_;
  static constexpr int kStages = 2;
  static constexpr int kQueryBytes = kTileRows * kWidth * 2;
  static constexpr int kBlockBytes = kBlockKeys * kWidth * 2;  // of K, or of V
};

// A tile of query rows, as the producer hands it to the consumers.
struct Work {
  FlashTile tile;  // n_rows is 0 behind the last
  FlashBlocks blocks;
};

struct Control {
  Work works[2];      // of even and odd tiles: the next is there before the last is forgotten
  Work next;          // the producer's: drawn, but not begun
  int32_t broken[2];  // number of the last block of V with something that is not finite in it
};

template <typename Shape>
struct HopperShared {
  static constexpr int kKeys = Shape::kQueryBytes;
  static constexpr int kValues = kKeys + Shape::kStages * Shape::kBlockBytes;
  static constexpr int kBarriers = kValues + Shape::kStages * Shape::kBlockBytes;
  static constexpr int kControl = kBarriers + 8 * (2 + 4 * Shape::kStages);
  static constexpr int kBytes = kControl + static_cast<int>(sizeof(Control));

  uint32_t base;
  ZC_DEVICE uint32_t queries() const { return base; }
  ZC_DEVICE uint32_t keys(int stage) const { return base + kKeys + stage * Shape::kBlockBytes; }
  ZC_DEVICE uint32_t values(int stage) const { return base + kValues + stage * Shape::kBlockBytes; }
  // Full: the copies have arrived. Empty: all consumers are done.
  ZC_DEVICE uint32_t tile_full() const { return base + kBarriers; }
  ZC_DEVICE uint32_t tile_empty() const { return base + kBarriers + 8; }
  ZC_DEVICE uint32_t keys_full(int stage) const { return base + kBarriers + 8 * (2 + stage); }
  ZC_DEVICE uint32_t keys_empty(int stage) const {
    return base + kBarriers + 8 * (2 + Shape::kStages + stage);
  }
  ZC_DEVICE uint32_t values_full(int stage) const {
    return base + kBarriers + 8 * (2 + 2 * Shape::kStages + stage);
  }
  ZC_DEVICE uint32_t values_empty(int stage) const {
    return base + kBarriers + 8 * (2 + 3 * Shape::kStages + stage);
  }
};

// Where in the ring of stages block number n of a block of threads lies, and the parity of the
// round that its barriers are in.
template <int kStages>
struct Stage {
  static_assert((kStages & (kStages - 1)) == 0);
  uint32_t n;
  ZC_DEVICE int index() const { return static_cast<int>(n % kStages); }
  ZC_DEVICE uint32_t parity() const { return n / kStages % 2; }
};

// The warp that copies: draws tiles from the counter until there are no more, and copies their
// queries, keys and values as stages become empty. Once all stages are on their way it draws the
// next tile, which takes a few round trips to memory. What the tiles are lies in shared memory: the
// warp has few registers.
template <typename Shape>
ZC_DEVICE void produce(const FlashParams& p, const simt::TensorMap& q_map,
                       const simt::TensorMap& k_map, const simt::TensorMap& v_map,
                       int32_t* next_item, int32_t n_items, const HopperShared<Shape>& shared,
                       Control& control) {
  const bool leads = threadIdx.x == 0;
  const auto copy = [&](const simt::TensorMap& map, uint32_t to, int rows, uint32_t barrier,
                        int head, int row) {
    ZC_NO_UNROLL for (int slab = 0; slab < Shape::kWidth / kSlabColumns; ++slab) simt::tma_load_3d(
        to + slab * rows * kSlabRowBytes, &map, barrier, slab * kSlabColumns, head, row);
  };
  const auto draw = [&] {
    int32_t item = 0;
    FlashTile tile{};
    do {
      if (leads) {
        item = atomicAdd(next_item, 1);
        // Every block of threads draws one item too many: behind the last of these the counter is 0
        // again.
        if (item == n_items + static_cast<int32_t>(gridDim.x) - 1) atomicExch(next_item, 0);
      }
      item = __shfl_sync(0xffffffffu, item, 0);
      if (item < n_items) tile = flash_tile(p, Shape::kTileRows, item);
    } while (item < n_items && tile.n_rows == 0);
    if (!leads) return;
    control.next.tile = tile;
    control.next.blocks =
        tile.n_rows == 0 ? FlashBlocks{} : flash_blocks(p, tile, Shape::kBlockKeys);
  };
  Stage<Shape::kStages> stage = {0};
  const auto load_block = [&](const Work& work, int block) {
    const int row = work.tile.k_row + block * Shape::kBlockKeys;
    const int kv_head = work.tile.head / p.group;
    const int at = stage.index();
    simt::mbarrier_wait(shared.keys_empty(at), stage.parity() ^ 1);
    simt::mbarrier_arrive_expect_tx(shared.keys_full(at), Shape::kBlockBytes);
    copy(k_map, shared.keys(at), Shape::kBlockKeys, shared.keys_full(at), kv_head, row);
    simt::mbarrier_wait(shared.values_empty(at), stage.parity() ^ 1);
    simt::mbarrier_arrive_expect_tx(shared.values_full(at), Shape::kBlockBytes);
    copy(v_map, shared.values(at), Shape::kBlockKeys, shared.values_full(at), kv_head, row);
    ++stage.n;
  };

  int n_blocks = 0;  // of the tile that was begun in the turn before
  for (uint32_t n_tiles = 0;; ++n_tiles) {
    const Work& begun = control.works[(n_tiles & 1) ^ 1];
    for (int i = 0; i < max(n_blocks, Shape::kStages + 1); ++i) {
      if (i == Shape::kStages) draw();
      if (leads && i < n_blocks) load_block(begun, begun.blocks.last - 1 - i);
    }
    if (leads) {
      simt::mbarrier_wait(shared.tile_empty(), (n_tiles & 1) ^ 1);
      control.works[n_tiles & 1] = control.next;
      const FlashTile& tile = control.next.tile;
      const bool has_keys = control.next.blocks.first < control.next.blocks.last;
      simt::mbarrier_arrive_expect_tx(shared.tile_full(), has_keys ? Shape::kQueryBytes : 0);
      if (has_keys)
        copy(q_map, shared.queries(), Shape::kTileRows, shared.tile_full(), tile.head, tile.q_row);
    }
    __syncwarp();
    if (control.next.tile.n_rows == 0) return;
    n_blocks = control.next.blocks.last - control.next.blocks.first;
    __syncwarp();
  }
}

// A consumer warpgroup, FlashAttention-3 (arXiv 2407.08608): S of the next block of keys is on the
// tensor cores before O += P V of this one is, so that the softmax of one block runs while P V of
// the block before does. Consumers take turns at issuing, so that one has the tensor cores while
// another is at its softmax.
template <typename T, typename Shape>
ZC_DEVICE void consume(const FlashParams& p, const HopperShared<Shape>& shared, uint8_t* bytes,
                       Control& control) {
  constexpr int kWidth = Shape::kWidth;
  constexpr int kBlockKeys = Shape::kBlockKeys;
  // Named barriers; 0 is __syncthreads.
  constexpr int kTurn = 1;  // + consumer: that consumer may issue its products
  constexpr int kAllConsumers = 8;
  // The same for all lanes, and known to be.
  const int consumer = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int thread = static_cast<int>(threadIdx.x) - 128;  // of all consumers
  const int lane = threadIdx.x % 32;
  const int row = thread / 32 * 16 + lane / 4;  // and row + 8
  const uint32_t q_at = shared.queries() + consumer * 64 * kSlabRowBytes;
  const auto release = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) simt::mbarrier_arrive(barrier);
  };
  const auto wait_turn = [&] { simt::bar_sync(kTurn + consumer, 256); };
  const auto give_turn = [&] { simt::bar_arrive(kTurn + (consumer + 1) % Shape::kConsumers, 256); };
  if (consumer == Shape::kConsumers - 1) give_turn();

  const float scale_log2 = p.scale * kLog2E;
  float o_sums[kWidth / 2];
  float s_sums[kBlockKeys / 2];
  auto& o = reinterpret_cast<float(&)[kWidth / 8][4]>(o_sums);
  auto& s = reinterpret_cast<float(&)[kBlockKeys / 8][4]>(s_sums);
  uint32_t weights[kBlockKeys / 16][4];

  const auto multiply_keys = [&](int stage) {  // S = Q K^T
    simt::wgmma_keep(s_sums);
    simt::wgmma_fence();
    ZC_UNROLL for (int k = 0; k < kWidth / 16; ++k) simt::wgmma_m64k16<false, false>(
        s_sums, rows_operand<Shape::kTileRows>(q_at, k),
        rows_operand<kBlockKeys>(shared.keys(stage), k), k != 0, T{});
    simt::wgmma_commit();
  };
  const auto multiply_values = [&](int stage) {  // O += P V
    simt::wgmma_keep(o_sums);
    simt::wgmma_keep(weights);
    simt::wgmma_fence();
    ZC_UNROLL for (int k = 0; k < kBlockKeys / 16; ++k) simt::wgmma_m64k16<true>(
        o_sums, weights[k], columns_operand<kBlockKeys>(shared.values(stage), k), true, T{});
    simt::wgmma_commit();
  };
  const auto pack_weights = [&] {
    ZC_UNROLL for (int k = 0; k < kBlockKeys / 16; ++k) ZC_UNROLL for (int i = 0; i < 4; ++i) {
      const float(&pair)[4] = s[2 * k + i / 2];
      weights[k][i] = simt::pack2(pair[i % 2 * 2], pair[i % 2 * 2 + 1], T{});
    }
  };

  Stage<Shape::kStages> keys = {0};  // of the block whose K is next; of V it is the one before
  const auto values = [&] { return Stage<Shape::kStages>{keys.n - 1}; };
  int32_t n_checks = 0;
  for (uint32_t n_tiles = 0;; ++n_tiles) {
    simt::mbarrier_wait(shared.tile_full(), n_tiles & 1);
    // Read where they are used: registers are short.
    const FlashTile& tile = control.works[n_tiles & 1].tile;
    const FlashBlocks& blocks = control.works[n_tiles & 1].blocks;
    if (tile.n_rows == 0) break;

    SoftmaxRows softmax;
    softmax.reset();
    ZC_UNROLL for (int i = 0; i < kWidth / 2; ++i) o_sums[i] = 0.0f;

    const auto seen_by = [&](int block) {
      SeenKeyPair seen;
      ZC_UNROLL for (int r = 0; r < 2; ++r) seen.of[r] =
          seen_keys(p, tile, row + 8 * r, int64_t{block} * kBlockKeys, kBlockKeys);
      return seen;
    };
    // Before V of a block is multiplied of which some row does not see all keys: what is not finite
    // in it becomes 0, for flash_mend.
    bool broken = false;
    const auto check_values = [&] {
      simt::mbarrier_wait(shared.values_full(values().index()), values().parity());
      uint4* const v = reinterpret_cast<uint4*>(bytes + HopperShared<Shape>::kValues +
                                                values().index() * Shape::kBlockBytes);
      bool good = true;
      for (int i = thread; i < Shape::kBlockBytes / 16; i += Shape::kConsumerThreads)
        good = good && finite8<T>(v[i]);
      ++n_checks;
      int32_t& last_broken = control.broken[n_checks & 1];
      if (!good) last_broken = n_checks;
      simt::bar_sync(kAllConsumers, Shape::kConsumerThreads);
      if (last_broken != n_checks) return;
      broken = true;
      for (int i = thread; i < Shape::kBlockBytes / 16; i += Shape::kConsumerThreads)
        clear_not_finite<T>(v[i]);
      simt::fence_async();
      simt::bar_sync(kAllConsumers, Shape::kConsumerThreads);
    };

    if (blocks.first < blocks.last) {
      float factors[2];
      int block = blocks.last - 1;
      simt::mbarrier_wait(shared.keys_full(keys.index()), keys.parity());
      multiply_keys(keys.index());
      simt::wgmma_wait<0>();
      simt::wgmma_keep(s_sums);
      release(shared.keys_empty(keys.index()));
      if (block == blocks.first) release(shared.tile_empty());
      ++keys.n;
      if (blocks.masked(block)) mask_scores(s, seen_by(block));
      softmax.update(s, scale_log2, factors);
      if (blocks.masked(block)) check_values();
      pack_weights();

      ZC_NO_UNROLL while (block > blocks.first) {
        --block;
        wait_turn();
        simt::mbarrier_wait(shared.keys_full(keys.index()), keys.parity());
        multiply_keys(keys.index());
        simt::mbarrier_wait(shared.values_full(values().index()), values().parity());
        multiply_values(values().index());
        give_turn();
        simt::wgmma_wait<1>();
        simt::wgmma_keep(s_sums);
        release(shared.keys_empty(keys.index()));
        if (block == blocks.first) release(shared.tile_empty());  // the queries have been read
        if (blocks.masked(block)) mask_scores(s, seen_by(block));
        const bool grows = softmax.update(s, scale_log2, factors);
        simt::wgmma_wait<0>();
        simt::wgmma_keep(o_sums);
        simt::wgmma_keep(weights);
        release(shared.values_empty(values().index()));
        ++keys.n;
        if (grows) scale_rows(o, factors);
        if (blocks.masked(block)) check_values();
        pack_weights();
      }
      simt::mbarrier_wait(shared.values_full(values().index()), values().parity());
      multiply_values(values().index());
      softmax.finish();
      simt::wgmma_wait<0>();
      simt::wgmma_keep(o_sums);
      release(shared.values_empty(values().index()));
    } else {
      release(shared.tile_empty());
    }
    flash_store<T>(p, tile, row, o, softmax);
    if (broken) flash_mend<T>(p, tile, blocks, kBlockKeys, row - lane / 4);
  }
  if (consumer == 0) wait_turn();  // as the last consumer has given it
}

// O = softmax(scale Q K^T) V as flash_attention.cu does it, with the instructions of Hopper. As
// many blocks of threads as multiprocessors draw tiles of kTileRows query rows of one head, those
// with the most keys first, and work on them one after another: while the consumers finish a tile,
// the producer copies what the next one begins with. Copies are of boxes of a tensor and go on by
// themselves; barriers in shared memory say when they have arrived and when their stage is free.
// Shared memory: HopperShared::kBytes, up to 192 KB. Bound by the tensor cores.
template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    flash_attention_hopper_kernel(const __grid_constant__ FlashParams p,
                                  const __grid_constant__ simt::TensorMap q_map,
                                  const __grid_constant__ simt::TensorMap k_map,
                                  const __grid_constant__ simt::TensorMap v_map, int32_t* next_item,
                                  int32_t n_items) {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __trap();  // runs_sm_90a has said no
#else
  ZC_DYNAMIC_SHARED(bytes);
  const HopperShared<Shape> shared = {simt::smem_u32(bytes)};
  Control& control = *reinterpret_cast<Control*>(bytes + HopperShared<Shape>::kControl);
  if (blockIdx.x == 0) {
    check_cu_seqlens(p.faults, p.cu_seqlens_q, p.n_seqs, p.total_q, FaultReason::kSeqlensQ);
    check_cu_seqlens(p.faults, p.cu_seqlens_k, p.n_seqs, p.total_k, FaultReason::kSeqlensK);
  }
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Shape::kConsumers;
    simt::mbarrier_init(shared.tile_full(), 1);
    simt::mbarrier_init(shared.tile_empty(), kConsumerWarps);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      simt::mbarrier_init(shared.keys_full(stage), 1);
      simt::mbarrier_init(shared.values_full(stage), 1);
      simt::mbarrier_init(shared.keys_empty(stage), kConsumerWarps);
      simt::mbarrier_init(shared.values_empty(stage), kConsumerWarps);
    }
    simt::fence_mbarrier_init();
    control.broken[0] = control.broken[1] = 0;
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    // 65536 registers are handed out in eights, first the same to all threads.
    simt::setmaxnreg_dec<Shape::kConsumers == 3 ? 32 : 40>();
    if (threadIdx.x < 32) produce(p, q_map, k_map, v_map, next_item, n_items, shared, control);
  } else {
    simt::setmaxnreg_inc<Shape::kConsumers == 3 ? 160 : 232>();
    consume<T>(p, shared, bytes, control);
  }
#endif
}

template <typename T, typename Shape>
void launch_hopper(Context& context, const FlashParams& p, DType dtype) {
  const int64_t n_items = flash_items(p, Shape::kTileRows);
  const int64_t n_blocks = std::min<int64_t>(n_items, context.n_multiprocessors);
  ZC_CHECK(n_items + n_blocks <= 0x7fffffff, ErrorCode::kUnsupported,
           "q: %lld tiles of rows in one call", static_cast<long long>(n_items));
  const int64_t n_kv_heads = p.n_heads / p.group;
  launch(context, &flash_attention_hopper_kernel<T, Shape>, static_cast<unsigned>(n_blocks),
         Shape::kThreads, HopperShared<Shape>::kBytes, p,
         slab_map(p.q, dtype, p.total_q, p.n_heads, p.head_dim, Shape::kTileRows),
         slab_map(p.k, dtype, p.total_k, n_kv_heads, p.head_dim, Shape::kBlockKeys),
         slab_map(p.v, dtype, p.total_k, n_kv_heads, p.head_dim, Shape::kBlockKeys),
         context.counters(1), static_cast<int32_t>(n_items));
}

template <typename T>
void flash_attention_hopper_16(Context& context, const FlashParams& p, DType dtype) {
  if (p.head_dim <= 64) return launch_hopper<T, HopperShape<64, 3, 128>>(context, p, dtype);
  if (p.head_dim <= 128) return launch_hopper<T, HopperShape<128, 2, 128>>(context, p, dtype);
  launch_hopper<T, HopperShape<256, 2, 64>>(context, p, dtype);
}

}  // namespace

bool takes_flash_hopper(const Context& context, const FlashParams& p) {
  return p.head_dim <= 256 && p.total_q > 0 && p.total_k > 0 &&
         runs_sm_90a(context, &flash_attention_hopper_kernel<bf16, HopperShape<128, 2, 128>>);
}

void flash_attention_hopper(Context& context, const FlashParams& p, DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return flash_attention_hopper_16<f16>(context, p, dtype);
    case DType::kBF16:
      return flash_attention_hopper_16<bf16>(context, p, dtype);
    default:
      throw Error(ErrorCode::kDtype,
                  format("q: dtype is %s, expected f16 or bf16", dtype_name(dtype)));
  }
}

}  // namespace zc::cuda
