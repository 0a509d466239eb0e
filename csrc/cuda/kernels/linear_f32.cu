#include "csrc/cuda/linear.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 64;  // of the result: rows of the weight
constexpr int kDepth = 32;    // of k, in shared memory at a time
constexpr int kPad = 4;
constexpr int kFewRows = 8;
constexpr int kManyRows = 64;

// Elements of a (rows, kDepth) panel that a thread carries to shared memory.
template <int kRows>
inline constexpr int kCarried = kRows * kDepth / kThreads;

// Out of `rows` rows from `from` on, columns [k0, k0 + kDepth), zeros beyond `k_end` and beyond the
// last row. A thread's rows lie equally far apart, so that one address is enough for all.
template <int kRows, typename T>
ZC_DEVICE void load_panel(const T* from, int64_t rows, int64_t k, int64_t k0, int64_t k_end,
                          float (&x)[kCarried<kRows>]) {
  const int row = static_cast<int>(threadIdx.x) / kDepth;
  const int64_t c = k0 + static_cast<int>(threadIdx.x) % kDepth;
  const T* at = from + row * k + c;
  ZC_UNROLL for (int i = 0; i < kCarried<kRows>; ++i) {
    const bool inside = c < k_end && row + i * (kThreads / kDepth) < rows;
    x[i] = inside ? to_float(at[i * (kThreads / kDepth) * k]) : 0.0f;
  }
}
// The same of rows that lie anywhere: x_rows (rows) says where.
template <int kRows, typename T>
ZC_DEVICE void gather_panel(const T* from, const int32_t* x_rows, int rows, int64_t k, int64_t k0,
                            int64_t k_end, float (&x)[kCarried<kRows>]) {
  const int row = static_cast<int>(threadIdx.x) / kDepth;
  const int64_t c = k0 + static_cast<int>(threadIdx.x) % kDepth;
  ZC_UNROLL for (int i = 0; i < kCarried<kRows>; ++i) {
    const int own = row + i * (kThreads / kDepth);
    x[i] = c < k_end && own < rows ? to_float(from[x_rows[own] * k + c]) : 0.0f;
  }
}
template <int kRows>
ZC_DEVICE void store_panel(float (*to)[kRows + kPad], const float (&x)[kCarried<kRows>]) {
  ZC_UNROLL for (int i = 0; i < kCarried<kRows>; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads;
    to[at % kDepth][at / kDepth] = x[i];
  }
}

// A tile of kRows x kColumns of out = x weight^T, all in float. Blocks: (tiles of rows fastest,
// groups of parts). A thread owns kQuads rows of four neighbouring columns; the panels of k that
// come next are under way while one is multiplied. Shared memory: 9 KB for the weight and up to as
// much for x. Bound by FMAs, for few rows by reading the weight.
template <typename X, int kRows, typename Rows>
__global__ void __launch_bounds__(kThreads, 1)
    linear_f32_kernel(const X* x, const float* weight, int64_t k, int part_length, int64_t m_tiles,
                      Split split, LinearOut out, Rows of) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  constexpr int kOwners = kThreads / (kColumns / 4);  // threads along the rows
  constexpr int kQuads = kRows > kOwners ? kRows / kOwners : 1;
  ZC_SHARED(float, weight_panel, [kDepth][kColumns + kPad]);
  ZC_SHARED(float, x_panel, [kDepth][kRows + kPad]);
  ZC_SHARED(int, is_last, [1]);
  const int64_t tile = blockIdx.x;
  const int64_t row0 = Rows::kOfExperts ? 0 : tile % m_tiles * kRows;
  const int64_t column0 = tile / m_tiles * kColumns;
  ExpertTile own_tile{};
  if constexpr (Rows::kOfExperts) {
    own_tile = find_tile<kRows, kRows>(of, static_cast<int>(tile % m_tiles), kRows, 1);
    if (own_tile.rows == 0) return;
    weight += own_tile.expert * out.n * k;
    out = of_expert(out, own_tile.expert);
  }
  const int64_t rows = Rows::kOfExperts ? own_tile.rows : out.m - row0;
  const int64_t columns = out.n - column0;
  const int column = static_cast<int>(threadIdx.x) % (kColumns / 4) * 4;
  const int row = static_cast<int>(threadIdx.x) / (kColumns / 4) * kQuads;
  const bool owns = row < kRows;
  x += row0 * k;
  weight += column0 * k;

  const auto load_x = [&](int64_t k0, int64_t k_end, float(&to)[kCarried<kRows>]) {
    if constexpr (Rows::kOfExperts)
      gather_panel<kRows>(x, own_tile.x_rows, own_tile.rows, k, k0, k_end, to);
    else
      load_panel<kRows>(x, rows, k, k0, k_end, to);
  };

  float total[kQuads][4] = {};
  const int first = static_cast<int>(blockIdx.y) * split.parts_per_group;
  const int last = min(first + split.parts_per_group, split.n_parts);
  for (int part = first; part < last; ++part) {
    const int64_t k_begin = int64_t{part} * part_length;
    const int64_t k_end = k_begin + part_length < k ? k_begin + part_length : k;
    float sums[kQuads][4] = {};
    float next_weight[kCarried<kColumns>];
    float next_x[kCarried<kRows>];
    load_panel<kColumns>(weight, columns, k, k_begin, k_end, next_weight);
    load_x(k_begin, k_end, next_x);
    for (int64_t k0 = k_begin; k0 < k_end; k0 += kDepth) {
      __syncthreads();
      store_panel<kColumns>(weight_panel, next_weight);
      store_panel<kRows>(x_panel, next_x);
      __syncthreads();
      load_panel<kColumns>(weight, columns, k, k0 + kDepth, k_end, next_weight);
      load_x(k0 + kDepth, k_end, next_x);
      if (owns) {
        ZC_UNROLL for (int c = 0; c < kDepth; ++c) {
          const float4 w = *reinterpret_cast<const float4*>(&weight_panel[c][column]);
          ZC_UNROLL for (int q = 0; q < kQuads; ++q) {
            const float own = x_panel[c][row + q];
            sums[q][0] = fmaf(own, w.x, sums[q][0]);
            sums[q][1] = fmaf(own, w.y, sums[q][1]);
            sums[q][2] = fmaf(own, w.z, sums[q][2]);
            sums[q][3] = fmaf(own, w.w, sums[q][3]);
          }
        }
      }
    }
    if (split.groups > 1)
      store_part(split, tile, part, sums);
    else
      ZC_UNROLL for (int q = 0; q < kQuads; ++q) ZC_UNROLL for (int i = 0; i < 4; ++i) total[q][i] =
          part == 0 ? sums[q][i] : total[q][i] + sums[q][i];
  }
  if (split.groups > 1) {
    if (!arrive_last(split, tile, is_last)) return;
    add_parts(split, tile, total);
  }
  if (!owns) return;
  ZC_UNROLL for (int q = 0; q < kQuads; ++q) if (row + q < rows) {
    const int64_t out_row = Rows::kOfExperts ? own_tile.out_rows[row + q] : row0 + row + q;
    if (!Rows::kOfExperts || out_row >= 0) out.write4(out_row, column0 + column, total[q]);
  }
}

int64_t tiles_of(const AllRows&, int64_t m, int rows) { return (m + rows - 1) / rows; }
int64_t tiles_of(const ExpertRows& of, int64_t, int rows) { return of.most_tiles(rows); }

template <typename X, int kRows, typename Rows>
void launch_tiles(Context& context, const LinearArgs& a, const Rows& rows) {
  const int64_t k = a.x.size(1);
  const int64_t m_tiles = tiles_of(rows, a.out.size(0), kRows);
  const int64_t tiles = m_tiles * ((a.out.size(1) + kColumns - 1) / kColumns);
  const int64_t slots = Rows::kOfExperts ? 1 : 4 * int64_t{context.n_multiprocessors};
  Split split = split_parts(k, tiles, slots);
  constexpr int kQuads = kRows == kManyRows ? 4 : 1;
  split.sums = static_cast<float4*>(context.scratch(split.bytes(tiles, kQuads, kThreads)));
  split.arrivals = split.groups > 1 ? context.counters(tiles) : nullptr;
  launch_early(context, &linear_f32_kernel<X, kRows, Rows>,
               dim3(blocks_for(tiles, 1), static_cast<unsigned>(split.groups)), kThreads, 0,
               a.x.as<X>(), a.weight.as<float>(), k, part_length(k), m_tiles, split, linear_out(a),
               rows);
}

template <typename Rows>
void launch_by_rows(Context& context, const LinearArgs& a, int64_t n_rows, const Rows& rows) {
  dispatch_float(a.x.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (n_rows <= kFewRows)
      launch_tiles<X, kFewRows>(context, a, rows);
    else
      launch_tiles<X, kManyRows>(context, a, rows);
  });
}

}  // namespace

void linear_f32(Context& context, const LinearArgs& a, const AllRows& rows) {
  launch_by_rows(context, a, a.x.size(0), rows);
}
void linear_f32(Context& context, const LinearArgs& a, const ExpertRows& rows) {
  launch_by_rows(context, a, rows.n_pairs / rows.n_experts, rows);
}

}  // namespace zc::cuda
