#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;
constexpr int kTileColumns = 128;  // of the result: rows of the weight
constexpr int kTilePad = 4;

// How the tile for kRows rows of x is shared out: kAcross warps along its columns. The wider a
// warp's own tile, the less it reads of shared memory for a product.
template <int kRows>
struct TileShape {
  static constexpr int kAcross = kRows == 128 ? 2 : 4;
  static constexpr int kWeightTiles = kTileColumns / kAcross / 16;
  static constexpr int kXTiles = kRows / (kTileWarps / kAcross) / 8;
  static constexpr int kStages = kRows == 128 ? 3 : 4;
  static constexpr int kPanelBytes = (kTileColumns + kRows) * kRowBytes;
  static constexpr int kBlocks = kRows == 128 ? 1 : 2;  // on a multiprocessor, by registers
  static constexpr size_t kSharedBytes = kStages * kPanelBytes;
  static_assert(kXTiles % 2 == 0);
  static_assert(kSharedBytes >= kRows * (kTileColumns + kTilePad) * sizeof(float));
};

// A tile of kRows rows of x by kTileColumns columns of out = x weight^T. Blocks: (tiles, rows
// fastest, so that those that run at once read the same weights; groups of parts). Panels of k come
// by cp.async, two or three ahead; the operands of the next 16 of k are read from shared memory
// while 16 are multiplied. A part's sums are added to the total when it ends. Dynamic shared
// memory: 96 KB (128 and 64 rows), 80 KB (32 rows). Bound by the tensor cores; up to 64 rows by
// reading the weight. Tiles of experts are known when the kernels before have ended.
template <typename T, int kRows, typename Rows>
__global__ void __launch_bounds__(kTileThreads, TileShape<kRows>::kBlocks)
    linear_tiles_kernel(Operands<T> in, int64_t m_tiles, Split split, LinearOut out, Rows of) {
  using Shape = TileShape<kRows>;
  constexpr int kWeightTiles = Shape::kWeightTiles;
  constexpr int kXTiles = Shape::kXTiles;
  constexpr int kStages = Shape::kStages;
  constexpr int kWeightBytes = kTileColumns * kRowBytes;
  constexpr int kSteps = kDepth / 16;
  ZC_DYNAMIC_SHARED(shared);
  ZC_SHARED(int, is_last, [1]);
  constexpr bool kScales = std::is_same_v<T, f16>;  // perhaps
  ZC_SHARED(float, backs, [kScales ? kMaxParts : 1][kRows]);
  const int own = static_cast<int>(threadIdx.x);
  const int lane = own % 32;
  const int warp = own / 32;
  const int64_t tile = blockIdx.x;
  const int rows = kRows / in.planes;  // of the result
  const int64_t row0 = Rows::kOfExperts ? 0 : tile % m_tiles * rows;
  const int64_t column0 = tile / m_tiles * kTileColumns;

  // A thread copies chunk `chunk` of every 32nd row. Rows beyond the last are the last one again.
  const int chunk = own % 8;
  const int row = own / 8;
  ExpertTile own_tile{};
  if constexpr (Rows::kOfExperts) {
    simt::wait_for_kernels_before();
    own_tile = find_tile<kRows, kRows>(of, static_cast<int>(tile % m_tiles), rows, in.planes);
    if (own_tile.rows == 0) return;
  }
  const int64_t x_row0 = row0 * in.planes;
  const int last_column = static_cast<int>(min(int64_t{kTileColumns}, in.n - column0)) - 1;
  const int last_row = Rows::kOfExperts
                           ? own_tile.rows * in.planes - 1
                           : static_cast<int>(min(int64_t{kRows}, in.x_rows - x_row0)) - 1;
  const T* const weight = in.weight + (own_tile.expert * in.n + column0) * in.k + chunk * kChunk;
  const T* const x = in.x + x_row0 * in.x_stride + chunk * kChunk;
  const auto copy_panel = [&](int panel, int stage) {
    unsigned char* const to = shared + stage * Shape::kPanelBytes;
    const int64_t c = int64_t{panel} * kDepth;
    ZC_UNROLL for (int i = 0; i < kTileColumns / 32; ++i)
        copy_weight(in, to + panel_offset(row + 32 * i, chunk),
                    weight + min(row + 32 * i, last_column) * in.k + c, c + chunk * kChunk);
    ZC_UNROLL for (int i = 0; i < kRows / 32; ++i) {
      const int own_row = min(row + 32 * i, last_row);
      const int64_t x_row = Rows::kOfExperts ? own_tile.x_rows[own_row] : own_row;
      copy_x(in, to + kWeightBytes + panel_offset(row + 32 * i, chunk), x + x_row * in.x_stride + c,
             c + chunk * kChunk);
    }
  };

  const int first_part = static_cast<int>(blockIdx.y) * split.parts_per_group;
  if constexpr (!Rows::kOfExperts)
    begin_product(in.weight + column0 * in.k, in.k, last_column + 1, 4,
                  int64_t{first_part} * in.part_length, in.k, own, kTileThreads);
  if constexpr (kScales)
    for (int i = own; i < kMaxParts * kRows; i += kTileThreads) {
      int64_t x_row = row0 + i % kRows / in.planes;
      bool is_row = x_row < out.m;
      if constexpr (Rows::kOfExperts) {
        is_row = i % kRows <= last_row;
        x_row = is_row ? own_tile.x_rows[i % kRows] / in.planes : 0;
      }
      const bool is_scaled = in.scales != nullptr && i / kRows < split.n_parts && is_row;
      backs[i / kRows][i % kRows] = is_scaled ? in.scales[x_row * split.n_parts + i / kRows] : 1.0f;
    }

  // This warp's part of the tile, and where its lanes read their operands.
  const int weight_row = warp % Shape::kAcross * 16 * kWeightTiles;
  const int x_row = warp / Shape::kAcross * 8 * kXTiles;
  const auto read_operands = [&](uint32_t at, int step, uint32_t(&a)[kWeightTiles][4],
                                 uint32_t(&b)[kXTiles / 2][4]) {
    ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) simt::ldmatrix_x4(
        a[w], at + panel_offset(weight_row + 16 * w + lane % 16, 2 * step + lane / 16));
    ZC_UNROLL for (int t = 0; t < kXTiles / 2; ++t) simt::ldmatrix_x4(
        b[t], at + kWeightBytes +
                  panel_offset(x_row + 16 * t + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  };

  float total[kWeightTiles * kXTiles][4] = {};
  float sums[kWeightTiles * kXTiles][4] = {};
  const int last_part = min(first_part + split.parts_per_group, split.n_parts);
  const int part_panels = in.part_length / kDepth;
  const int all_panels = static_cast<int>((in.k + kDepth - 1) / kDepth);
  const int first = first_part * part_panels;
  const int last = min(last_part * part_panels, all_panels);

  ZC_UNROLL for (int i = 0; i < kStages - 1; ++i) {
    if (first + i < last) copy_panel(first + i, i);
    simt::cp_async_commit();
  }
  int part = first_part;
  int left = part_panels;  // of the part
  int stage = 0;
  for (int panel = first; panel < last; ++panel) {
    simt::cp_async_wait<kStages - 2>();
    __syncthreads();
    if (panel + kStages - 1 < last)
      copy_panel(panel + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    simt::cp_async_commit();
    const uint32_t at = simt::smem_u32(shared) + stage * Shape::kPanelBytes;
    uint32_t a[2][kWeightTiles][4];
    uint32_t b[2][kXTiles / 2][4];
    read_operands(at, 0, a[0], b[0]);
    ZC_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (step + 1 < kSteps) read_operands(at, step + 1, a[(step + 1) % 2], b[(step + 1) % 2]);
      ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) ZC_UNROLL for (int t = 0; t < kXTiles; ++t) {
        const uint32_t(&pair)[4] = b[step % 2][t / 2];
        simt::mma_m16n8k16(sums[w * kXTiles + t], a[step % 2][w], pair[t % 2 * 2],
                           pair[t % 2 * 2 + 1], T{});
      }
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
    if (--left > 0 && panel + 1 < last) continue;
    // The part ends.
    if constexpr (kScales) {
      ZC_UNROLL for (int t = 0; t < kXTiles; ++t) {
        const float2 back =
            *reinterpret_cast<const float2*>(&backs[part][x_row + 8 * t + lane % 4 * 2]);
        ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) {
          float(&quad)[4] = sums[w * kXTiles + t];
          quad[0] *= back.x, quad[1] *= back.y, quad[2] *= back.x, quad[3] *= back.y;
        }
      }
    }
    if (split.groups > 1) {
      store_part(split, tile, part, sums);
      ZC_UNROLL for (int q = 0; q < kWeightTiles * kXTiles; ++q)
          ZC_UNROLL for (int i = 0; i < 4; ++i) sums[q][i] = 0.0f;
    } else {
      ZC_UNROLL for (int q = 0; q < kWeightTiles * kXTiles; ++q)
          ZC_UNROLL for (int i = 0; i < 4; ++i) {
        total[q][i] = part == 0 ? sums[q][i] : total[q][i] + sums[q][i];
        sums[q][i] = 0.0f;
      }
    }
    left = part_panels;
    ++part;
  }
  simt::cp_async_wait<0>();
  if (split.groups > 1) {
    if (!arrive_last(split, tile, is_last)) return;
    add_parts(split, tile, total);
  }

  // From fragments to rows by way of shared memory: (kRows, kTileColumns + kTilePad).
  auto* const rows_of_tile = reinterpret_cast<float(*)[kTileColumns + kTilePad]>(shared);
  __syncthreads();
  const int g = lane / 4;
  const int t2 = lane % 4 * 2;
  ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) ZC_UNROLL for (int t = 0; t < kXTiles; ++t)
      ZC_UNROLL for (int i = 0; i < 4; ++i)
          rows_of_tile[x_row + 8 * t + t2 + i % 2][weight_row + 16 * w + g + i / 2 * 8] =
              total[w * kXTiles + t][i];
  __syncthreads();
  const int column = lane * 4;
  if (column > last_column) return;
  if constexpr (Rows::kOfExperts) out = of_expert(out, own_tile.expert);
  for (int r = warp; r < rows && (Rows::kOfExperts ? r < own_tile.rows : row0 + r < out.m);
       r += kTileWarps) {
    float y[4] = {};
    for (int plane = 0; plane < in.planes; ++plane) {
      const float4 sum =
          *reinterpret_cast<const float4*>(&rows_of_tile[r * in.planes + plane][column]);
      y[0] = plane == 0 ? sum.x : y[0] + sum.x;
      y[1] = plane == 0 ? sum.y : y[1] + sum.y;
      y[2] = plane == 0 ? sum.z : y[2] + sum.z;
      y[3] = plane == 0 ? sum.w : y[3] + sum.w;
    }
    const int64_t out_row = Rows::kOfExperts ? own_tile.out_rows[r] : row0 + r;
    if (!Rows::kOfExperts || out_row >= 0) out.write4(out_row, column0 + column, y);
  }
}

template <int kRows>
Tiling tile_by(const Context& context, int64_t m, int64_t n, int64_t k, int planes) {
  using Shape = TileShape<kRows>;
  Tiling tiling{};
  tiling.form = Tiling::Form::kMma;
  tiling.tile_rows = kRows;
  tiling.tile_columns = kTileColumns;
  const int64_t rows = kRows / planes;
  tiling.m_tiles = (m + rows - 1) / rows;
  tiling.tiles = tiling.m_tiles * ((n + kTileColumns - 1) / kTileColumns);
  tiling.split = split_parts(k, tiling.tiles, int64_t{Shape::kBlocks} * context.n_multiprocessors);
  tiling.bytes =
      tiling.split.bytes(tiling.tiles, Shape::kWeightTiles * Shape::kXTiles, kTileThreads);
  return tiling;
}

template <typename T, int kRows, typename Rows>
void launch_tiles(Context& context, const Operands<T>& in, Tiling tiling, void* scratch,
                  const LinearOut& out, const Rows& rows) {
  tiling.split.sums = static_cast<float4*>(scratch);
  tiling.split.arrivals = tiling.split.groups > 1 ? context.counters(tiling.tiles) : nullptr;
  launch_early(context, &linear_tiles_kernel<T, kRows, Rows>,
               dim3(blocks_for(tiling.tiles, 1), static_cast<unsigned>(tiling.split.groups)),
               kTileThreads, TileShape<kRows>::kSharedBytes, in, tiling.m_tiles, tiling.split, out,
               rows);
}

}  // namespace

Tiling tile_result(const Context& context, int64_t m, int64_t n, int64_t k, int planes) {
  const int64_t x_rows = m * planes;
  if (x_rows <= 32) return tile_by<32>(context, m, n, k, planes);
  if (x_rows <= 64) return tile_by<64>(context, m, n, k, planes);
  return tile_by<128>(context, m, n, k, planes);
}

// By what an expert has on average; k is never shared out, since there are many tiles.
Tiling tile_experts(const ExpertRows& rows, int64_t n, int64_t k, int planes) {
  const int64_t average = int64_t{rows.n_pairs} * planes / rows.n_experts;
  Tiling tiling{};
  tiling.form = Tiling::Form::kMma;
  tiling.tile_rows = average <= 32 ? 32 : average <= 64 ? 64 : 128;
  tiling.tile_columns = kTileColumns;
  tiling.m_tiles = rows.most_tiles(tiling.tile_rows / planes);
  tiling.tiles = tiling.m_tiles * ((n + kTileColumns - 1) / kTileColumns);
  tiling.split = split_parts(k, tiling.tiles, 1);
  return tiling;
}

template <typename T, typename Rows>
void linear_tiles(Context& context, const Operands<T>& in, Tiling tiling, void* scratch,
                  const LinearOut& out, const Rows& rows) {
  switch (tiling.tile_rows) {
    case 32:
      return launch_tiles<T, 32>(context, in, tiling, scratch, out, rows);
    case 64:
      return launch_tiles<T, 64>(context, in, tiling, scratch, out, rows);
    case 128:
      return launch_tiles<T, 128>(context, in, tiling, scratch, out, rows);
    default:
      throw Error(ErrorCode::kInternal, format("device: tiles of %d rows", tiling.tile_rows));
  }
}

#define ZC_TILES(T, Rows)                                                                   \
  template void linear_tiles(Context&, const Operands<T>&, Tiling, void*, const LinearOut&, \
                             const Rows&);
ZC_TILES(f16, AllRows)
ZC_TILES(f16, ExpertRows)
ZC_TILES(bf16, AllRows)
ZC_TILES(bf16, ExpertRows)
#undef ZC_TILES

}  // namespace zc::cuda
