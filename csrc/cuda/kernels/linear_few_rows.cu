#include "csrc/cuda/device/byte_codes.h"
#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

// A warp's ring of panels, rows of the weight before those of x. With so many bytes two blocks of
// four warps fit a multiprocessor of Hopper; one of the narrowest tile fits any.
template <int kWeightTiles>
inline constexpr int kMostRingBytes = (kWeightTiles == 1 ? 24 : 28) * 1024;

// Grids of a warp's 16 kWeightTiles rows of a weight, if it has them: of four neighbouring groups
// at a time in shared memory, (rows, 4) pairs. A lane reads one of those groups for two rows of
// each tile, long before they are stored, so that it need not wait.
template <typename W, int kWeightTiles, bool = kHasGrids<W>>
struct FewGrids {
  static constexpr int kBytes = 0;
};
template <typename W, int kWeightTiles>
struct FewGrids<W, kWeightTiles, true> {
  using Pair = typename Grids<W>::Pair;
  static constexpr int kBytes = 16 * kWeightTiles * 4 * sizeof(Pair);
  static constexpr int kRows = 2 * kWeightTiles;  // of a lane: 8 i + lane / 4
  static constexpr int kNextRow = 8 * 4;          // pairs from one to the next

  Pair* stored;     // of row lane / 4
  Grids<W> grids;   // from the first row and group on
  int n_groups;     // of a row
  int first_group;  // of the part
  int ahead;        // the group, counted from that one, whose neighbours are read next
  typename Grids<W>::Grid next[kRows];

  ZC_DEVICE void read_next(int lane, int last_row) {
    const int group = min(first_group + ahead + lane % 4, n_groups - 1);
    ZC_UNROLL for (int i = 0; i < kRows; ++i) next[i] =
        grids.at(min(8 * i + lane / 4, last_row) * n_groups + group);
    ahead += 4;
  }
  template <typename T>
  ZC_DEVICE void store_next(int lane) {
    ZC_UNROLL for (int i = 0; i < kRows; ++i) stored[lane % 4 + i * kNextRow] =
        grid_pair(next[i], T{});
  }
  // Those of this lane's rows in `group`, counted from the part's first.
  ZC_DEVICE void load(int group, Pair (&pairs)[kRows]) const {
    ZC_UNROLL for (int i = 0; i < kRows; ++i) pairs[i] = stored[(group & 3) + i * kNextRow];
  }
};

template <typename W, typename X, int kWeightTiles, int kXTiles>
struct FewRing {
  static constexpr int kXRowBytes = kDepth * sizeof(X);
  static constexpr int kWeightRowBytes = kDepth * sizeof(W) / kElementsOf<W>;
  static constexpr int kWeightBytes = 16 * kWeightTiles * kWeightRowBytes;
  static constexpr int kPanelBytes = kWeightBytes + 8 * kXTiles * kXRowBytes;
  static constexpr int kGridBytes = FewGrids<W, kWeightTiles>::kBytes;  // behind the panels
  static constexpr int kTogether = kElementsOf<W>;  // panels that are copied together
  static constexpr int kCopies =
      (kMostRingBytes<kWeightTiles> - kGridBytes) / (kTogether * kPanelBytes);
  static constexpr int kStages = kCopies * kTogether;
  static constexpr int kPanelsBytes = kStages * kPanelBytes;
  static constexpr int kBytes = kPanelsBytes + kGridBytes;

  // Where 16 bytes of a row of x lie among those of a panel. Rows of float are read by pairs, 32
  // bytes of four rows at a time, which lie in different banks.
  static ZC_DEVICE uint32_t x_offset(int row, int chunk) {
    if constexpr (sizeof(X) == 4)
      return static_cast<uint32_t>(row * kXRowBytes + ((chunk ^ (row & 3) * 2) << 4));
    else
      return panel_offset(row, chunk);
  }

  // Where a chunk of 16 bytes of a row of the weight lies. Codes of 8 bits are read by pairs, eight
  // rows at a time, which lie in different banks; so do chunks of eight rows of those of 4 bits.
  static ZC_DEVICE uint32_t weight_offset(int row, int chunk) {
    if constexpr (kHasGrids<W>)
      return static_cast<uint32_t>(row * kWeightRowBytes + ((chunk ^ (row >> 2 & 1)) << 4));
    else if constexpr (sizeof(W) == 1)
      return static_cast<uint32_t>(row * kWeightRowBytes + ((chunk ^ (row >> 1 & 3)) << 4));
    else
      return panel_offset(row, chunk);
  }

  // The first operand of mma of 16 rows of the weight, from `row` on, and step `step` of 16 of a
  // panel, as T.
  template <typename T>
  static ZC_DEVICE void read_weight(const unsigned char* weight, int row, int step, int lane,
                                    uint32_t (&a)[4]) {
    static_assert(!kHasGrids<W>);
    if constexpr (sizeof(W) == 1) {
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const unsigned char* const own =
            weight + weight_offset(row + lane / 4 + 8 * hi, step) + lane % 4 * 2;
        a[hi] = pair_of_codes(*reinterpret_cast<const uint16_t*>(own), T{});
        a[2 + hi] = pair_of_codes(*reinterpret_cast<const uint16_t*>(own + 8), T{});
      }
    } else {
      simt::ldmatrix_x4(
          a, simt::smem_u32(weight) + weight_offset(row + lane % 16, 2 * step + lane / 16));
    }
  }

  // What a lane holds of eight rows of x, from `row` on, in two steps of 16 of a panel, from
  // element 32 two on: of row lane / 4 elements 2 (lane % 4) and the next, in each of four times
  // eight.
  static ZC_DEVICE void read_x(const unsigned char* x, int row, int two, int lane,
                               uint32_t (&pairs)[4]) {
    simt::ldmatrix_x4(pairs, simt::smem_u32(x) + x_offset(row + lane % 8, 4 * two + lane / 8));
  }
  static ZC_DEVICE void read_x(const unsigned char* x, int row, int two, int lane,
                               float (&values)[kVector]) {
    if constexpr (sizeof(X) == 4) {
      ZC_UNROLL for (int i = 0; i < 4; ++i) {
        const uint32_t chunk = x_offset(row + lane / 4, 8 * two + 2 * i + lane % 4 / 2);
        const float2 pair = *reinterpret_cast<const float2*>(x + chunk + lane % 2 * 8);
        values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
      }
    } else {
      uint32_t pairs[4];
      read_x(x, row, two, lane, pairs);
      ZC_UNROLL for (int i = 0; i < 4; ++i) {
        values[2 * i] = low_half(pairs[i], X{});
        values[2 * i + 1] = high_half(pairs[i], X{});
      }
    }
  }
};

// 16 kWeightTiles columns of one product's out = x weight^T for up to 8 kXTiles rows of x. A warp
// owns a part of k: its panels come by cp.async into a ring of its own, so that warps never wait
// for another but at the end, when the parts are added. x comes the same way, as it is: where it is
// not of the weight's type a lane splits what it holds into planes, each of which has sums of its
// own. Codes become T in registers. Rows that x does not have are whatever lies in the
// ring; nobody looks at their sums.
// Dynamic shared memory: FewRing::kBytes a warp, 24 KB to 28 KB. Bound by reading the weight: 40 KB
// to 72 KB a block are on their way. Of experts a block multiplies tile blockIdx.y, which is known
// when the kernels before have ended, so that nothing is read earlier.
template <typename W, typename T, typename X, int kWeightTiles, int kXTiles, typename Rows>
__global__ void __launch_bounds__(kMaxParts * 32, 2)
    linear_few_rows_kernel(const Operands<T, X, W> in, const __grid_constant__ Products<W> products,
                           const Rows of) {
  using Ring = FewRing<W, X, kWeightTiles, kXTiles>;
  constexpr bool kGrids = kHasGrids<W>;
  constexpr bool kSplits = !std::is_same_v<X, T>;
  constexpr int kOwnPlanes = kPlanes<X, T>;
  constexpr int kColumns = 16 * kWeightTiles;
  constexpr int kCopied = 16 / static_cast<int>(sizeof(X));  // elements of x in 16 bytes
  ZC_DYNAMIC_SHARED(shared);
  int own = 0;
  while (blockIdx.x >= products.of[own].end_block) ++own;
  const typename Products<W>::Product& product = products.of[own];
  const unsigned first_block = own == 0 ? 0 : products.of[own - 1].end_block;
  const int64_t column0 = int64_t{blockIdx.x - first_block} * kColumns;
  const int last_column = static_cast<int>(min(int64_t{kColumns}, product.n - column0)) - 1;
  ExpertTile tile{};
  if constexpr (Rows::kOfExperts) {
    simt::wait_for_kernels_before();
    constexpr int kMost = 8 * kXTiles;
    tile = find_tile<kMost, kMost>(of, static_cast<int>(blockIdx.y), kMost, 1);
    if (tile.rows == 0) return;
  }
  const int rows = Rows::kOfExperts ? tile.rows : static_cast<int>(in.x_rows) / kOwnPlanes;
  const int part = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int k = static_cast<int>(in.k);  // below 2^23
  const int k_begin = part * in.part_length;
  const int length = min(in.part_length, k - k_begin);
  const int n_panels = (length + kDepth - 1) / kDepth;
  const int row_length = k / kElementsOf<W>;
  const W* const weight =
      product.weight + (tile.expert * product.n + column0) * row_length + k_begin / kElementsOf<W>;
  const X* const x = in.x + k_begin;
  unsigned char* const ring = shared + part * Ring::kBytes;

  // A lane copies one chunk of every fourth row of the weight (eighth or sixteenth of codes), and
  // the like of x. Columns beyond the last are the last one again; nobody looks at their sums. 32
  // bits count the elements of a block's rows, at most 48 of less than 2^23: with 64, registers run
  // short.
  constexpr int kWeightChunk = 16 / static_cast<int>(sizeof(W)) * kElementsOf<W>;
  constexpr int kWeightLanes = kDepth / kWeightChunk;  // that copy a row of the weight
  constexpr int kRowStep = 32 / kWeightLanes;
  const int row = lane / kWeightLanes;
  const int chunk = lane % kWeightLanes;
  constexpr int kLanes = Ring::kXRowBytes / 16;  // that copy a row of x
  constexpr int kXStep = 32 / kLanes;
  const int x_row = lane / kLanes;
  const int x_chunk = lane % kLanes;
  const int x_stride = static_cast<int>(in.x_stride);
  const bool vectors = in.vectors && (!kSplits || in.x_vectors);
  const W* weight_at =
      weight + chunk * kWeightChunk / kElementsOf<W>;  // of the panel that is copied next
  const X* x_at = x + x_chunk * kCopied;
  int left = length - chunk * kWeightChunk;
  int x_left = length - x_chunk * kCopied;
  const auto row_of_x = [&](int r) {  // where row r of the tile begins
    if constexpr (Rows::kOfExperts)
      return int64_t{tile.x_rows[r]} * x_stride;
    else
      return r * x_stride;
  };
  const auto copy_panels = [&](unsigned char* to) {
    unsigned char* const x_to = to + Ring::kWeightBytes;
    constexpr int kPanels = Ring::kTogether;
    if (vectors) {
      ZC_UNROLL for (int i = 0; i < kColumns / kRowStep; ++i) {
        const int r = row + kRowStep * i;
        const W* const from = weight_at + min(r, last_column) * row_length;
        ZC_UNROLL for (int p = 0; p < kPanels; ++p) simt::cp_async_16_once(
            simt::smem_u32(to) + Ring::weight_offset(r, chunk) + p * Ring::kPanelBytes,
            from + p * kDepth / kElementsOf<W>, left > p * kDepth ? 16 : 0);
      }
      ZC_UNROLL for (int i = 0; i < 8 * kXTiles / kXStep; ++i) {
        const int r = x_row + kXStep * i;
        if (r >= rows) continue;
        const X* const from = x_at + row_of_x(r);
        ZC_UNROLL for (int p = 0; p < kPanels; ++p) simt::cp_async_16(
            simt::smem_u32(x_to) + Ring::x_offset(r, x_chunk) + p * Ring::kPanelBytes,
            from + p * kDepth, x_left > p * kDepth ? 16 : 0);
      }
    } else {
      ZC_NO_UNROLL for (int p = 0; p < kPanels; ++p) {
        ZC_NO_UNROLL for (int r = row; r < kColumns; r += kRowStep) copy_elements(
            to + p * Ring::kPanelBytes + Ring::weight_offset(r, chunk),
            weight_at + min(r, last_column) * row_length + p * kDepth / kElementsOf<W>,
            left - p * kDepth);
        ZC_NO_UNROLL for (int r = x_row; r < rows; r += kXStep)
            copy_elements(x_to + p * Ring::kPanelBytes + Ring::x_offset(r, x_chunk),
                          x_at + row_of_x(r) + p * kDepth, x_left - p * kDepth);
      }
    }
    weight_at += kPanels * kDepth / kElementsOf<W>;
    x_at += kPanels * kDepth;
    left -= kPanels * kDepth;
    x_left -= kPanels * kDepth;
  };

  if constexpr (!Rows::kOfExperts)
    begin_product(weight, row_length, last_column + 1, 8, 0, length / kElementsOf<W>, lane, 32);
  FewGrids<W, kWeightTiles> grids{};
  if constexpr (kGrids) {
    using Pair = typename Grids<W>::Pair;
    grids.stored = reinterpret_cast<Pair*>(ring + Ring::kPanelsBytes) + lane / 4 * 4;
    grids.grids = product.grids.behind(tile.expert * product.n + column0, k);
    grids.n_groups = k >> product.grids.shift;
    grids.first_group = k_begin >> product.grids.shift;
    if (n_panels > 0) grids.read_next(lane, last_column);
  }
  constexpr int kLast = Ring::kStages - Ring::kTogether;
  ZC_NO_UNROLL for (int panel = 0; panel < kLast; panel += Ring::kTogether) {
    if (panel < n_panels) copy_panels(ring + panel * Ring::kPanelBytes);
    simt::cp_async_commit();
  }
  PlaneScale scales[kXTiles] = {};  // of rows 8 t + lane / 4
  if constexpr (kScaled<X, T>) {
    ZC_UNROLL for (int t = 0; t < kXTiles; ++t) {
      const int r = 8 * t + lane / 4;
      uint32_t most = 0;
      if (r < rows)
        for (int c = lane % 4 * kVector; c < length; c += 4 * kVector) {
          float values[kVector];
          load_floats(x + row_of_x(r) + c, length - c, in.x_vectors, values);
          most = largest_bits(values, most);
        }
      most = max(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = max(most, __shfl_xor_sync(0xffffffffu, most, 2));
      scales[t] = plane_scale(most);
    }
  }

  float sums[kWeightTiles][kXTiles * kOwnPlanes][4] = {};
  unsigned char* here = ring;
  unsigned char* before = ring + kLast * Ring::kPanelBytes;
  ZC_NO_UNROLL for (int panel = 0; panel < n_panels; ++panel) {
    if (panel % Ring::kTogether == 0) {
      simt::cp_async_wait<Ring::kCopies - 2>();
      __syncwarp();  // all lanes' copies of this panel are there; all are done with those before it
      if (panel + kLast < n_panels) copy_panels(before);
      simt::cp_async_commit();
      before = here;
    }
    [[maybe_unused]] uint32_t codes[kWeightTiles][4];
    [[maybe_unused]] typename Grids<W>::Pair pairs[2 * kWeightTiles];
    [[maybe_unused]] int group = 0;
    if constexpr (kGrids) {
      group = ((k_begin + panel * kDepth) >> product.grids.shift) - grids.first_group;
      if (group + 4 == grids.ahead) {
        __syncwarp();  // nobody reads those before any more
        grids.template store_next<T>(lane);
        grids.read_next(lane, last_column);
        __syncwarp();
      }
      ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) simt::ldmatrix_x4(
          codes[w], simt::smem_u32(here) + Ring::weight_offset(16 * w + lane % 16, lane / 16));
      grids.load(group, pairs);
    }
    ZC_UNROLL for (int two = 0; two < kDepth / 32; ++two) {  // steps of 16, two at a time
      if constexpr (kGrids)
        if (two == 1 && product.grids.shift == 5) grids.load(group + 1, pairs);
      uint32_t b[kXTiles * kOwnPlanes][4];
      ZC_UNROLL for (int t = 0; t < kXTiles; ++t) {
        if constexpr (kSplits) {
          float rest[kVector];
          Ring::read_x(here + Ring::kWeightBytes, 8 * t, two, lane, rest);
          ZC_UNROLL for (int j = 0; j < kVector; ++j) rest[j] =
              whole_of_planes<X, T>(rest[j], scales[t]);
          ZC_UNROLL for (int plane = 0; plane < kOwnPlanes; ++plane) {
            const uint4 pairs = take_plane(rest, T{});
            uint32_t(&to)[4] = b[t * kOwnPlanes + plane];
            to[0] = pairs.x, to[1] = pairs.y, to[2] = pairs.z, to[3] = pairs.w;
          }
        } else {
          Ring::read_x(here + Ring::kWeightBytes, 8 * t, two, lane, b[t]);
        }
      }
      ZC_UNROLL for (int s = 0; s < 2; ++s) ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) {
        uint32_t a[4];
        if constexpr (kGrids)
          ZC_UNROLL for (int i = 0; i < 4; ++i) a[i] =
              value_pair(codes[w][i], 2 * two + s, pairs[2 * w + i % 2], T{});
        else
          Ring::template read_weight<T>(here, 16 * w, 2 * two + s, lane, a);
        ZC_UNROLL for (int t = 0; t < kXTiles * kOwnPlanes; ++t)
            simt::mma_m16n8k16(sums[w][t], a, b[t][2 * s], b[t][2 * s + 1], T{});
      }
    }
    here += Ring::kPanelBytes;
    if (here == ring + Ring::kPanelsBytes) here = ring;
  }

  simt::let_next_begin();

  // Sums of a part, where its ring was: eight rows of x of a tile's plane after those of another.
  // Rows begin at every fourth bank: what lanes write at a time lies in all banks.
  constexpr int kPad = 4;
  using PartSums = float[8 * kXTiles * kOwnPlanes][kColumns + kPad];
  static_assert(sizeof(PartSums) <= Ring::kBytes);
  const auto sums_of = [&](int p) -> PartSums& {
    return *reinterpret_cast<PartSums*>(shared + p * Ring::kBytes);
  };
  const int t2 = lane % 4 * 2;
  if constexpr (kScaled<X, T>) {
    ZC_UNROLL for (int t = 0; t < kXTiles; ++t) ZC_UNROLL for (int odd = 0; odd < 2; ++odd) {
      const float back = __shfl_sync(0xffffffffu, scales[t].back, (t2 + odd) * 4);
      ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w)
          ZC_UNROLL for (int plane = 0; plane < kOwnPlanes; ++plane) {
        sums[w][t * kOwnPlanes + plane][odd] *= back;
        sums[w][t * kOwnPlanes + plane][odd + 2] *= back;
      }
    }
  }
  __syncwarp();  // all lanes are done with the last panel
  ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w)
      ZC_UNROLL for (int t = 0; t < kXTiles * kOwnPlanes; ++t) ZC_UNROLL for (int i = 0; i < 4; ++i)
          sums_of(part)[8 * t + t2 + i % 2][16 * w + lane / 4 + i / 2 * 8] = sums[w][t][i];
  __syncthreads();
  const int n_parts = static_cast<int>(blockDim.x / 32);
  constexpr int kQuads = kColumns / 4;  // of a row
  for (int i = static_cast<int>(threadIdx.x); i < rows * kQuads;
       i += static_cast<int>(blockDim.x)) {
    const int out_row = i / kQuads;
    const int column = i % kQuads * 4;
    if (column > last_column) continue;
    float y[4] = {};
    ZC_UNROLL for (int plane = 0; plane < kOwnPlanes; ++plane) {
      const int sum_row = (out_row / 8 * kOwnPlanes + plane) * 8 + out_row % 8;
      float sum[4] = {};
      ZC_UNROLL for (int p = 0; p < kMaxParts; ++p) {
        if (p >= n_parts) break;
        const float4 quad = *reinterpret_cast<const float4*>(&sums_of(p)[sum_row][column]);
        const float own_sums[4] = {quad.x, quad.y, quad.z, quad.w};
        ZC_UNROLL for (int j = 0; j < 4; ++j) sum[j] = p == 0 ? own_sums[j] : sum[j] + own_sums[j];
      }
      ZC_UNROLL for (int j = 0; j < 4; ++j) y[j] = plane == 0 ? sum[j] : y[j] + sum[j];
    }
    if constexpr (Rows::kOfExperts) {
      const LinearOut out = of_expert(product.out, tile.expert);
      if (tile.out_rows[out_row] >= 0) out.write4(tile.out_rows[out_row], column0 + column, y);
    } else {
      product.out.write4(out_row, column0 + column, y);
    }
  }
}

// Tiles of up to 8 kXTiles rows.
int64_t tiles_of(const AllRows&, int) { return 1; }
int64_t tiles_of(const ExpertRows& rows, int x_tiles) {
  const int64_t tiles = rows.most_tiles(8 * x_tiles);
  ZC_CHECK(tiles <= 65535, ErrorCode::kUnsupported,
           "pairs: %d of them, more than a grid has room for", rows.n_pairs);
  return tiles;
}

template <int kWeightTiles, int kXTiles, typename T, typename X, typename W, typename Rows>
void launch_few_tiles(Context& context, const Operands<T, X, W>& in, Products<W> products,
                      const Rows& rows) {
  const int warps = part_count(in.k);
  unsigned blocks = 0;
  for (int i = 0; i < products.count; ++i) {
    blocks += blocks_for(products.of[i].n, 16 * kWeightTiles);
    products.of[i].end_block = blocks;
  }
  launch_early(context, &linear_few_rows_kernel<W, T, X, kWeightTiles, kXTiles, Rows>,
               dim3(blocks, static_cast<unsigned>(tiles_of(rows, kXTiles))),
               static_cast<unsigned>(warps * 32),
               static_cast<size_t>(warps) * FewRing<W, X, kWeightTiles, kXTiles>::kBytes, in,
               products, rows);
}

// What the busiest multiprocessor reads with such tiles, in bytes for a panel of k: a block
// reads its columns of the weight, and all of x from L2.
template <typename T, typename X, typename W>
int64_t busiest_reads(const Context& context, const Operands<T, X, W>& in,
                      const Products<W>& products, int64_t tiles, int weight_tiles) {
  const int64_t columns = 16 * weight_tiles;
  int64_t blocks = 0;
  for (int i = 0; i < products.count; ++i) blocks += tiles * blocks_for(products.of[i].n, columns);
  const int64_t rows = tiles == 1 ? in.x_rows / kPlanes<X, T> : 8;
  const int64_t of_one =
      columns * int64_t{sizeof(W)} * kDepth / kElementsOf<W> + rows * int64_t{sizeof(X)} * kDepth;
  return (blocks + context.n_multiprocessors - 1) / context.n_multiprocessors * of_one;
}

template <int kXTiles, typename T, typename X, typename W, typename Rows>
void launch_few_rows(Context& context, const Operands<T, X, W>& in, const Products<W>& products,
                     const Rows& rows) {
  const int64_t tiles = tiles_of(rows, kXTiles);
  int weight_tiles = 1;
  if (kMaxParts * kMostRingBytes<3> <= context.shared_bytes_per_block)
    for (const int wider : {2, 3})
      if (busiest_reads(context, in, products, tiles, wider) <
          busiest_reads(context, in, products, tiles, weight_tiles))
        weight_tiles = wider;
  if (weight_tiles == 1)
    launch_few_tiles<1, kXTiles>(context, in, products, rows);
  else if (weight_tiles == 2)
    launch_few_tiles<2, kXTiles>(context, in, products, rows);
  else
    launch_few_tiles<3, kXTiles>(context, in, products, rows);
}

}  // namespace

template <typename T, typename X, typename W, typename Rows>
void linear_few_rows(Context& context, const Operands<T, X, W>& in, const Products<W>& products,
                     const Rows& rows) {
  if constexpr (kPlanes<X, T> == 1 && !Rows::kOfExperts) {
    if (in.x_rows > 8) {
      launch_few_rows<2>(context, in, products, rows);
      return;
    }
  }
  launch_few_rows<1>(context, in, products, rows);
}

#define ZC_FEW_ROWS(T, X, W)                                                            \
  template void linear_few_rows(Context&, const Operands<T, X, W>&, const Products<W>&, \
                                const AllRows&);                                        \
  template void linear_few_rows(Context&, const Operands<T, X, W>&, const Products<W>&, \
                                const ExpertRows&);
ZC_FEW_ROWS(f16, f16, f16)
ZC_FEW_ROWS(f16, bf16, f16)
ZC_FEW_ROWS(f16, float, f16)
ZC_FEW_ROWS(bf16, f16, bf16)
ZC_FEW_ROWS(bf16, bf16, bf16)
ZC_FEW_ROWS(bf16, float, bf16)
ZC_FEW_ROWS(f16, f16, int8_t)
ZC_FEW_ROWS(bf16, bf16, int8_t)
ZC_FEW_ROWS(bf16, float, int8_t)
ZC_FEW_ROWS(f16, f16, Nibbles)
ZC_FEW_ROWS(f16, float, Nibbles)
ZC_FEW_ROWS(bf16, bf16, Nibbles)
ZC_FEW_ROWS(f16, f16, Float4s)
ZC_FEW_ROWS(bf16, bf16, Float4s)
ZC_FEW_ROWS(bf16, float, Float4s)
#undef ZC_FEW_ROWS

}  // namespace zc::cuda
