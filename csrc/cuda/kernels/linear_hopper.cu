#include <algorithm>

#include "csrc/cuda/device/operand.h"
#include "csrc/cuda/linear_16.h"
#include "csrc/cuda/tensor_map.h"

namespace zc::cuda {

namespace {

// A block of threads is one warpgroup that copies and two that compute, 64 planes of x each.
constexpr int kConsumers = 2;
constexpr int kConsumerRows = 64;
constexpr int kHopperRows = kConsumers * kConsumerRows;
constexpr int kHopperThreads = 128 * (1 + kConsumers);
constexpr int kStoreColumns = 64;  // of out that a consumer writes at a time
constexpr int kStorePad = 8;       // eight rows of a fragment lie in different banks

// A tile of kColumns columns of out.
template <int kColumns_>
struct HopperTile {
  static constexpr int kColumns = kColumns_;
  static constexpr int kSums = kColumns / 2;  // of a consumer's thread
  static constexpr int kHeld = 64;            // of their totals, in registers
  static constexpr int kXBytes = kConsumerRows * kRowBytes;
  static constexpr int kWeightBytes = kColumns * kRowBytes;
  static constexpr int kPanelBytes = kConsumers * kXBytes + kWeightBytes;
  static constexpr int kStages = kColumns == 256 ? 3 : 5;
  // Whether blocks may share the parts of a tile. Where wide tiles are that few, hopper_result
  // takes narrow ones.
  static constexpr bool kSplits = kColumns == 128;
};

// Dynamic shared memory: the ring of panels; of each consumer a stretch for the totals that have no
// registers, which is where its rows are put together in the end; the barriers.
template <typename Tile>
struct HopperBytes {
  static constexpr int kStretch =
      std::max(128 * (Tile::kSums - Tile::kHeld), (kStoreColumns + kStorePad) * kConsumerRows) *
      static_cast<int>(sizeof(float));
  static constexpr int kStretches = Tile::kStages * Tile::kPanelBytes;
  static constexpr int kBarriers = kStretches + kConsumers * kStretch;
  static constexpr int kBytes = kBarriers + 2 * 8 * Tile::kStages;
  // Beside 1 KB that a block loses, and static arrays with what aligns the ring behind them.
  static_assert(kBytes <= 226 * 1024);

  uint32_t base;
  ZC_DEVICE uint32_t x(int stage, int consumer) const {
    return base + stage * Tile::kPanelBytes + consumer * Tile::kXBytes;
  }
  ZC_DEVICE uint32_t weight(int stage) const { return x(stage, kConsumers); }
  // Full: the copies have arrived. Empty: all consumers are done.
  ZC_DEVICE uint32_t full(int stage) const { return base + kBarriers + 8 * stage; }
  ZC_DEVICE uint32_t empty(int stage) const { return full(Tile::kStages + stage); }
};

// The stage of the ring that is next, and the parity of the round that its barriers are in.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  ZC_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Tiles and groups of parts are items, which the blocks take in turn.
struct HopperGrid {
  int32_t m_tiles;
  int32_t n_tiles;
  int32_t n_items;        // m_tiles n_tiles groups
  int32_t consumer_rows;  // of the result: as many as have all their planes among a consumer's

  // 16 tiles of rows by all columns, then the next 16: rows first, so that what runs at once on 132
  // multiprocessors is 16 by 8 or 9 tiles, nearly a square of the result, whose operands L2 reads
  // from memory once: 34 MB at k = 4096. All rows first would read a long prompt again for each
  // column of tiles.
  static constexpr int kBandTiles = 16;
};

struct HopperItem {
  int32_t tile;
  int32_t row_tile;
  int32_t column_tile;
  int32_t first_part;
  int32_t last_part;
};

// Other architectures have an empty kernel.
[[maybe_unused]] ZC_DEVICE HopperItem hopper_item(const HopperGrid& grid, const Split& split,
                                                  int32_t item) {
  HopperItem work;
  const int32_t tiles = grid.m_tiles * grid.n_tiles;
  work.tile = item % tiles;
  const int32_t band0 =
      work.tile / (HopperGrid::kBandTiles * grid.n_tiles) * HopperGrid::kBandTiles;
  const int32_t band_rows = min(HopperGrid::kBandTiles, grid.m_tiles - band0);
  const int32_t in_band = work.tile - band0 * grid.n_tiles;
  work.row_tile = band0 + in_band % band_rows;
  work.column_tile = in_band / band_rows;
  work.first_part = item / tiles * split.parts_per_group;
  work.last_part = min(work.first_part + split.parts_per_group, split.n_parts);
  return work;
}

// The thread that copies. A consumer's 64 planes are a box of their own: where a row takes three,
// only 63 of them are of whole rows, and the next consumer begins with the last one.
template <typename Tile>
ZC_DEVICE void produce(const HopperGrid& grid, const Split& split, int planes, int part_panels,
                       int all_panels, const simt::TensorMap& x_map,
                       const simt::TensorMap& weight_map, const HopperBytes<Tile>& shared) {
  const int step = grid.consumer_rows * planes;
  RingPlace<Tile::kStages> at;
  for (int32_t item = blockIdx.x; item < grid.n_items; item += gridDim.x) {
    const HopperItem work = hopper_item(grid, split, item);
    const int x_row = work.row_tile * kConsumers * step;
    const int last = min(work.last_part * part_panels, all_panels);
    ZC_NO_UNROLL for (int panel = work.first_part * part_panels; panel < last; ++panel) {
      const uint32_t full = shared.full(at.stage);
      simt::mbarrier_wait(shared.empty(at.stage), at.parity ^ 1);
      simt::mbarrier_arrive_expect_tx(full, Tile::kPanelBytes);
      simt::tma_load_3d(shared.weight(at.stage), &weight_map, full, panel * kDepth, 0,
                        work.column_tile * Tile::kColumns);
      ZC_UNROLL for (int i = 0; i < kConsumers; ++i) simt::tma_load_3d(
          shared.x(at.stage, i), &x_map, full, panel * kDepth, 0, x_row + i * step);
      at.advance();
    }
  }
}

// Brings what a consumer's rows of a tile are added to to L2.
template <typename Tile>
ZC_DEVICE void prefetch_rows(const LinearOut& out, int rows, int64_t row0, int64_t column0) {
  const int element_bytes = out.out_dtype == DType::kF32 ? 4 : 2;
  const int line = 128 / element_bytes;
  const int lines = Tile::kColumns / line;
  for (int i = threadIdx.x % 128; i < rows * lines; i += 128) {
    const int64_t column = column0 + i % lines * line;
    if (column < out.n)
      simt::prefetch_l2(static_cast<const uint8_t*>(out.out) +
                        ((row0 + i / lines) * out.stride + column) * element_bytes);
  }
}

// Writes a consumer's rows of a tile from fragments, by way of its stretch of shared memory, which
// nobody reads any more: (64, kStoreColumns + kStorePad).
template <typename Tile>
ZC_DEVICE void store_rows(const LinearOut& out, int planes, int rows, int64_t row0, int64_t column0,
                          int consumer, float* stretch, const float (&sums)[Tile::kSums]) {
  constexpr int kStride = kStoreColumns + kStorePad;
  constexpr int kLanes = kStoreColumns / 4;  // of a row
  constexpr int kStep = 128 / kLanes;        // rows at a time
  const int thread = threadIdx.x % 128;
  const int lane = thread % 32;
  const int column = thread % kLanes * 4;
  float* const to = stretch + (thread / 32 * 16 + lane / 4) * kStride + lane % 4 * 2;
  ZC_NO_UNROLL for (int round = 0; round < Tile::kColumns / kStoreColumns; ++round) {
    ZC_UNROLL for (int own = 0; own < Tile::kColumns / kStoreColumns; ++own) if (own == round) {
      ZC_UNROLL for (int j = 0; j < kStoreColumns / 8; ++j) ZC_UNROLL for (int r = 0; r < 2; ++r) {
        const int at = own * kStoreColumns / 2 + 4 * j + 2 * r;
        *reinterpret_cast<float2*>(to + 8 * r * kStride + 8 * j) =
            make_float2(sums[at], sums[at + 1]);
      }
    }
    simt::bar_sync(1 + consumer, 128);
    const int64_t out_column = column0 + round * kStoreColumns + column;
    const bool vectors = out.vectors && out_column + 4 <= out.n;
    float scales[4] = {};
    float bias[4] = {};
    if (out.scales != nullptr && vectors) {
      ZC_UNROLL for (int c = 0; c < 4; ++c) scales[c] = out.scales[out_column + c];
    }
    if (out.bias != nullptr && vectors) {
      ZC_UNROLL for (int c = 0; c < 4; ++c) bias[c] =
          load_any(out.bias, out.bias_dtype, out_column + c);
    }
    // What is added to is read for some rows at once: one after another would wait for memory each
    // time.
    constexpr int kBatch = 4;
    if (out_column < out.n) {
      ZC_NO_UNROLL for (int first = thread / kLanes; first < rows; first += kStep * kBatch) {
        float before[kBatch][4];
        ZC_UNROLL for (int i = 0; i < kBatch; ++i) {
          const int row = first + kStep * i;
          if (out.accumulate && vectors && row < rows)
            out.read_vector((row0 + row) * out.stride + out_column, before[i]);
        }
        ZC_UNROLL for (int i = 0; i < kBatch; ++i) {
          const int row = first + kStep * i;
          if (row >= rows) break;
          float y[4] = {};
          for (int plane = 0; plane < planes; ++plane) {
            const float4 sum = *reinterpret_cast<const float4*>(
                stretch + (row * planes + plane) * kStride + column);
            y[0] = plane == 0 ? sum.x : y[0] + sum.x;
            y[1] = plane == 0 ? sum.y : y[1] + sum.y;
            y[2] = plane == 0 ? sum.z : y[2] + sum.z;
            y[3] = plane == 0 ? sum.w : y[3] + sum.w;
          }
          if (!vectors) {
            out.write4(row0 + row, out_column, y);
            continue;
          }
          ZC_UNROLL for (int c = 0; c < 4; ++c) {
            if (out.scales != nullptr) y[c] = __fmul_rn(y[c], scales[c]);
            if (out.bias != nullptr) y[c] = y[c] + bias[c];
            if (out.accumulate) y[c] = before[i][c] + y[c];
          }
          out.write_vector((row0 + row) * out.stride + out_column, y);
        }
      }
    }
    simt::bar_sync(1 + consumer, 128);  // before the stretch is written again
  }
}

// A consumer warpgroup. A part of k is one chain of wgmma, 16 of k each, in order: a panel's are on
// the tensor cores before the stage of the panel in front is given back.
template <typename T, typename Tile>
ZC_DEVICE void consume(const Operands<T>& in, const HopperGrid& grid, const Split& split,
                       int all_panels, const LinearOut& out, const HopperBytes<Tile>& shared,
                       uint8_t* bytes, int32_t* is_last) {
  constexpr int kSums = Tile::kSums;
  constexpr int kHeld = Tile::kHeld;
  constexpr bool kScales = std::is_same_v<T, f16>;  // perhaps
  // The same for all lanes, and known to be.
  const int consumer = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int thread = threadIdx.x % 128;
  const int lane = threadIdx.x % 32;
  const int part_panels = in.part_length / kDepth;
  auto* const stretch = reinterpret_cast<float*>(bytes + HopperBytes<Tile>::kStretches +
                                                 consumer * HopperBytes<Tile>::kStretch);
  auto* const others = reinterpret_cast<float4*>(stretch);  // of total; (quads, 128)
  const auto sync = [&] { simt::bar_sync(1 + consumer, 128); };
  const auto release = [&](int stage) {
    __syncwarp();
    if (lane == 0) simt::mbarrier_arrive(shared.empty(stage));
  };

  float sums[kSums];
  RingPlace<Tile::kStages> at;
  const auto multiply_panel = [&](bool begins) {
    simt::mbarrier_wait(shared.full(at.stage), at.parity);
    simt::wgmma_fence();
    ZC_UNROLL for (int k = 0; k < kDepth / 16; ++k) simt::wgmma_m64k16<false, false>(
        sums, rows_operand<kConsumerRows>(shared.x(at.stage, consumer), k),
        rows_operand<Tile::kColumns>(shared.weight(at.stage), k), !begins || k != 0, T{});
    simt::wgmma_commit();
    at.advance();
  };
  for (int32_t item = blockIdx.x; item < grid.n_items; item += gridDim.x) {
    const HopperItem work = hopper_item(grid, split, item);
    const int64_t row0 = (int64_t{work.row_tile} * kConsumers + consumer) * grid.consumer_rows;
    const int rows = static_cast<int>(min(int64_t{grid.consumer_rows}, out.m - row0));
    const int64_t column0 = int64_t{work.column_tile} * Tile::kColumns;
    const int64_t tile = int64_t{work.tile} * kConsumers + consumer;  // to Split

    // To a total of -0 the first part is added as it is, zeros with their signs: no choice, which
    // would take registers.
    float total[kHeld];
    ZC_UNROLL for (int i = 0; i < kHeld; ++i) total[i] = -0.0f;
    ZC_NO_UNROLL for (int part = work.first_part; part < work.last_part; ++part) {
      float back[2] = {1.0f, 1.0f};
      if constexpr (kScales) {
        if (in.scales != nullptr) {
          ZC_UNROLL for (int r = 0; r < 2; ++r) {
            const int row = (thread / 32 * 16 + lane / 4 + 8 * r) / in.planes;
            if (row < rows) back[r] = in.scales[(row0 + row) * split.n_parts + part];
          }
        }
      }
      if (out.accumulate && part + 1 == work.last_part)
        prefetch_rows<Tile>(out, rows, row0, column0);
      // The first panel by itself: ptxas lets products overlap only where nothing else may set the
      // sums.
      const int n_panels = min(part_panels, all_panels - part * part_panels);
      int before = at.stage;  // of the panel in front
      simt::wgmma_keep(sums);
      multiply_panel(true);
      ZC_NO_UNROLL for (int panel = 1; panel < n_panels; ++panel) {
        const int stage = at.stage;
        multiply_panel(false);
        simt::wgmma_wait<1>();
        release(before);
        before = stage;
      }
      simt::wgmma_wait<0>();
      simt::wgmma_keep(sums);
      release(before);

      // The part ends.
      if constexpr (kScales) {
        ZC_UNROLL for (int i = 0; i < kSums; ++i) sums[i] *= back[i / 2 % 2];
      }
      if constexpr (Tile::kSplits) {
        if (split.groups > 1) {
          store_part(split, tile, part, reinterpret_cast<float(&)[kSums / 4][4]>(sums), thread,
                     128);
          continue;
        }
      }
      ZC_UNROLL for (int i = kHeld; i < kSums; i += 4) {
        float4& other = others[(i - kHeld) / 4 * 128 + thread];
        float4 y = part == 0 ? make_float4(-0.0f, -0.0f, -0.0f, -0.0f) : other;
        y = make_float4(y.x + sums[i], y.y + sums[i + 1], y.z + sums[i + 2], y.w + sums[i + 3]);
        if (part + 1 < split.n_parts) other = y;
        sums[i] = y.x, sums[i + 1] = y.y, sums[i + 2] = y.z, sums[i + 3] = y.w;
      }
      ZC_UNROLL for (int i = 0; i < kHeld; ++i) total[i] = total[i] + sums[i];
    }
    if constexpr (Tile::kSplits) {
      if (split.groups > 1) {
        if (!arrive_last(split, tile, is_last + consumer, thread == 0, sync)) continue;
        add_parts(split, tile, reinterpret_cast<float(&)[kHeld / 4][4]>(total), thread, 128);
      }
    }
    ZC_UNROLL for (int i = 0; i < kHeld; ++i) sums[i] = total[i];
    if constexpr (kSums > kHeld) sync();  // all have read their other totals
    store_rows<Tile>(out, in.planes, rows, row0, column0, consumer, stretch, sums);
  }
}

// out = x weight^T of 16-bit types by the instructions of Hopper, tiles of 128 planes of x by
// kColumns columns. As many blocks of threads as multiprocessors take tiles in turn: while the
// consumers write one, the producer copies what the next begins with. x is wgmma's first operand,
// the weight its second, both read from shared memory, where tensor copies put panels of 64 of k,
// zeros outside. Shared memory: HopperBytes::kBytes, 208 KB (256 columns) and 196 KB. Bound by the
// tensor cores, and nearly as much by shared memory:
//
// A panel of 256 columns takes 1024 clocks of the tensor cores, and of shared memory, at 128 bytes
// a clock, 384 to be written and 640 to be read, by two products of 64 rows each. Of 128 columns it
// is 512, 256 and 384: more than half. So tiles are as wide as wgmma allows, unless narrow ones
// keep more multiprocessors at work. Two accumulators of 64 x 256 have no room in the registers:
// half of a wide tile's totals lie in shared memory, and are touched up to four times a tile.
template <typename T, typename Tile>
__global__ void __launch_bounds__(kHopperThreads, 1)
    linear_hopper_kernel(const __grid_constant__ Operands<T> in,
                         const __grid_constant__ HopperGrid grid,
                         const __grid_constant__ Split split, const __grid_constant__ LinearOut out,
                         const __grid_constant__ simt::TensorMap x_map,
                         const __grid_constant__ simt::TensorMap weight_map) {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __trap();  // runs_sm_90a has said no
#else
  ZC_DYNAMIC_SHARED(bytes);
  ZC_SHARED(int32_t, is_last, [kConsumers]);  // of kSplits
  const HopperBytes<Tile> shared = {simt::smem_u32(bytes)};
  const int own = static_cast<int>(threadIdx.x);
  const int all_panels = static_cast<int>((in.k + kDepth - 1) / kDepth);
  if (own == 0) {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      simt::mbarrier_init(shared.full(stage), 1);
      simt::mbarrier_init(shared.empty(stage), 4 * kConsumers);
    }
    simt::fence_mbarrier_init();
  }
  const HopperItem first = hopper_item(grid, split, static_cast<int32_t>(blockIdx.x));
  const int64_t column0 = int64_t{first.column_tile} * Tile::kColumns;
  begin_product(in.weight + column0 * in.k, in.k,
                static_cast<int>(min(int64_t{Tile::kColumns}, in.n - column0)), Tile::kStages,
                int64_t{first.first_part} * in.part_length, in.k, own, kHopperThreads);
  __syncthreads();
  if (own < 128) {
    // 65536 registers are handed out in eights, first the same to all threads.
    simt::setmaxnreg_dec<40>();
    if (own == 0)
      produce<Tile>(grid, split, in.planes, in.part_length / kDepth, all_panels, x_map, weight_map,
                    shared);
  } else {
    simt::setmaxnreg_inc<232>();
    consume<T, Tile>(in, grid, split, all_panels, out, shared, bytes, is_last);
  }
#endif
}

template <typename Tile>
Tiling hopper_tiling(const Context& context, int64_t m, int64_t n, int64_t k, int planes) {
  Tiling tiling{};
  tiling.form = Tiling::Form::kWgmma;
  tiling.tile_rows = kHopperRows;
  tiling.tile_columns = Tile::kColumns;
  const int64_t rows = kConsumerRows / planes * kConsumers;
  tiling.m_tiles = (m + rows - 1) / rows;
  tiling.tiles = tiling.m_tiles * ((n + Tile::kColumns - 1) / Tile::kColumns);
  tiling.split = split_parts(k, tiling.tiles, Tile::kSplits ? context.n_multiprocessors : 1);
  tiling.bytes = tiling.split.bytes(tiling.tiles * kConsumers, Tile::kSums / 4, 128);
  return tiling;
}

template <typename T, typename Tile>
void launch_hopper(Context& context, const Operands<T>& in, Tiling tiling, void* scratch,
                   const LinearOut& out) {
  constexpr DType dtype = std::is_same_v<T, f16> ? DType::kF16 : DType::kBF16;
  tiling.split.sums = static_cast<float4*>(scratch);
  tiling.split.arrivals =
      tiling.split.groups > 1 ? context.counters(tiling.tiles * kConsumers) : nullptr;
  HopperGrid grid{};
  grid.m_tiles = static_cast<int32_t>(tiling.m_tiles);
  grid.n_tiles = static_cast<int32_t>(tiling.tiles / tiling.m_tiles);
  const int64_t n_items = tiling.tiles * tiling.split.groups;
  ZC_CHECK(n_items + context.n_multiprocessors <= 0x7fffffff, ErrorCode::kUnsupported,
           "x: %lld tiles of the result in one call", static_cast<long long>(n_items));
  grid.n_items = static_cast<int32_t>(n_items);
  grid.consumer_rows = kConsumerRows / in.planes;
  launch_early(context, &linear_hopper_kernel<T, Tile>,
               static_cast<unsigned>(std::min(grid.n_items, context.n_multiprocessors)),
               kHopperThreads, HopperBytes<Tile>::kBytes, in, grid, tiling.split, out,
               slab_map(in.x, dtype, in.x_rows, 1, in.x_stride, kConsumerRows),
               slab_map(in.weight, dtype, in.n, 1, in.k, Tile::kColumns));
}

}  // namespace

bool takes_wgmma(const Context& context, int64_t x_rows, int64_t n, int64_t k, bool vectors) {
  constexpr int64_t kMost = 0x7fffffff - 1024;
  return kWgmmaProducts && vectors && k > 0 && x_rows > kMmaPlanes && x_rows <= kMost &&
         n <= kMost && runs_sm_90a(context, &linear_hopper_kernel<bf16, HopperTile<256>>);
}

Tiling hopper_result(const Context& context, int64_t m, int64_t n, int64_t k, int planes) {
  const Tiling wide = hopper_tiling<HopperTile<256>>(context, m, n, k, planes);
  const Tiling narrow = hopper_tiling<HopperTile<128>>(context, m, n, k, planes);
  const auto rounds = [&](const Tiling& tiling) {
    return (tiling.tiles + context.n_multiprocessors - 1) / context.n_multiprocessors;
  };
  // By what a round takes of shared memory. Few tiles are narrow, since those fill one round then.
  return 8 * rounds(wide) <= 5 * rounds(narrow) ? wide : narrow;
}

template <typename T>
void linear_hopper(Context& context, const Operands<T>& in, Tiling tiling, void* scratch,
                   const LinearOut& out) {
  if (tiling.tile_columns == 256)
    launch_hopper<T, HopperTile<256>>(context, in, tiling, scratch, out);
  else
    launch_hopper<T, HopperTile<128>>(context, in, tiling, scratch, out);
}

template void linear_hopper(Context&, const Operands<f16>&, Tiling, void*, const LinearOut&);
template void linear_hopper(Context&, const Operands<bf16>&, Tiling, void*, const LinearOut&);

}  // namespace zc::cuda
