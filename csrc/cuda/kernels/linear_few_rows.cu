#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

constexpr int kPad = 1;

// A chunk of x as it lies in memory, on its way through registers.
template <typename X>
struct RawChunk {
  static constexpr int kWords = kChunk * sizeof(X) / 4;
  uint32_t words[kWords];

  // The first n elements behind `from`, zeros for the rest.
  ZC_DEVICE void load(const X* from, int64_t n, bool vectors) {
    if (vectors && n >= kChunk) {
      ZC_UNROLL for (int i = 0; i < kWords; i += 4) {
        const uint4 quad = reinterpret_cast<const uint4*>(from)[i / 4];
        words[i] = quad.x, words[i + 1] = quad.y, words[i + 2] = quad.z, words[i + 3] = quad.w;
      }
      return;
    }
    ZC_UNROLL for (int i = 0; i < kWords; ++i) {
      if constexpr (std::is_same_v<X, float>) {
        words[i] = i < n ? float_to_bits(from[i]) : 0;
      } else {
        const uint32_t low = 2 * i < n ? from[2 * i].bits : 0;
        const uint32_t high = 2 * i + 1 < n ? from[2 * i + 1].bits : 0;
        words[i] = low | high << 16;
      }
    }
  }
  ZC_DEVICE void widen(float (&x)[kChunk]) const {
    ZC_UNROLL for (int i = 0; i < kChunk; ++i) {
      if constexpr (std::is_same_v<X, float>)
        x[i] = bits_to_float(words[i]);
      else
        x[i] = i % 2 == 0 ? low_half(words[i / 2], X{}) : high_half(words[i / 2], X{});
    }
  }
};

// Panels a warp has on their way: with four warps two such blocks fit a multiprocessor.
template <int kWeightTiles, int kXTiles>
inline constexpr int kFewStages = kWeightTiles == 1 ? (kXTiles == 1 ? 6 : 5) : 4;

template <int kWeightTiles, int kXTiles>
inline constexpr int kFewPanelBytes = (16 * kWeightTiles + 8 * kXTiles) * kRowBytes;

template <int kWeightTiles, int kXTiles>
inline size_t few_rows_bytes(int warps) {
  return static_cast<size_t>(warps) *
         (kFewStages<kWeightTiles, kXTiles> * kFewPanelBytes<kWeightTiles, kXTiles> +
          8 * kXTiles * (16 * kWeightTiles + kPad) * sizeof(float));
}

// 16 kWeightTiles columns of one product's out = x weight^T for up to 8 kXTiles planes of x. A warp
// owns a part of k: its panels come by cp.async into a ring of its own, so that warps never wait
// for another but at the end, when the parts are added. x of another type than the weight comes
// through registers, a panel earlier than it is wanted, and is split into planes on its way.
// Dynamic shared memory: few_rows_bytes, 18 KB to 27 KB a warp. Bound by reading the weight: 10 KB
// to 12 KB a warp are on their way.
template <typename T, typename X, int kWeightTiles, int kXTiles>
__global__ void __launch_bounds__(kMaxParts * 32, 2)
    linear_few_rows_kernel(Operands<T, X> in, const __grid_constant__ Products<T> products) {
  int own = 0;
  while (blockIdx.x >= products.of[own].end_block) ++own;
  const typename Products<T>::Product& product = products.of[own];
  in.weight = product.weight;
  in.n = product.n;
  constexpr bool kSplits = !std::is_same_v<X, T>;
  constexpr int kStages = kFewStages<kWeightTiles, kXTiles>;
  constexpr int kPanelBytes = kFewPanelBytes<kWeightTiles, kXTiles>;
  constexpr int kWeightBytes = 16 * kWeightTiles * kRowBytes;
  constexpr int kColumns = 16 * kWeightTiles;
  ZC_DYNAMIC_SHARED(shared);
  const int part = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int n_parts = static_cast<int>(blockDim.x) / 32;
  const unsigned first_block = own == 0 ? 0 : products.of[own - 1].end_block;
  const int64_t column0 = int64_t{blockIdx.x - first_block} * kColumns;
  unsigned char* const ring = shared + part * kStages * kPanelBytes;
  const int x_rows = static_cast<int>(in.x_rows);

  const int64_t k_begin = int64_t{part} * in.part_length;
  const int64_t k_end = k_begin + in.part_length < in.k ? k_begin + in.part_length : in.k;
  const int n_panels = static_cast<int>((k_end - k_begin + kDepth - 1) / kDepth);

  // A lane copies chunk `chunk` of every fourth row. Columns beyond the last are the last one
  // again; nobody looks at their sums.
  const int chunk = lane % 8;
  const int row = lane / 8;
  const int last_column = static_cast<int>(min(int64_t{kColumns}, in.n - column0)) - 1;
  const T* weight = in.weight + column0 * in.k + k_begin + chunk * kChunk;
  const X* x = in.x + row * in.x_stride + k_begin + chunk * kChunk;
  const auto panel_at = [&](int panel) { return ring + panel % kStages * kPanelBytes; };
  const auto first_element = [&](int panel) { return k_begin + panel * kDepth + chunk * kChunk; };
  const auto copy_panel = [&](int panel) {
    unsigned char* const to = panel_at(panel);
    ZC_UNROLL for (int i = 0; i < 4 * kWeightTiles; ++i) copy_weight(
        in, to + panel_offset(row + 4 * i, chunk),
        weight + min(row + 4 * i, last_column) * in.k + panel * kDepth, first_element(panel));
    if constexpr (!kSplits) {  // braces: nvcc runs a loop behind a pragma that a bare `if` discards
      ZC_UNROLL for (int i = 0; i < 2 * kXTiles; ++i) if (row + 4 * i < x_rows)
          copy_x(in, to + kWeightBytes + panel_offset(row + 4 * i, chunk),
                 x + 4 * i * in.x_stride + panel * kDepth, first_element(panel));
    }
  };
  // x where it is split: the rows of a panel, four at a time.
  constexpr int kRounds = (8 * kXTiles / kPlanes<X, T> + 3) / 4;
  const int out_rows = x_rows / in.planes;
  PlaneScale scales[kRounds];  // of such rows, in each of the eight lanes that copy one
  RawChunk<X> raw[kRounds];
  const auto load_x = [&](int panel) {
    ZC_UNROLL for (int i = 0; i < kRounds; ++i) raw[i].load(
        x + 4 * i * in.x_stride + panel * kDepth,
        row + 4 * i < out_rows && panel < n_panels ? in.k - first_element(panel) : 0, in.x_vectors);
  };
  const auto split_x = [&](int panel) {
    ZC_UNROLL for (int i = 0; i < kRounds; ++i) if (row + 4 * i < out_rows) {
      float rest[kChunk];
      raw[i].widen(rest);
      if constexpr (kScaled<X, T>) {
        ZC_UNROLL for (int j = 0; j < kChunk; ++j) rest[j] *= scales[i].to;
      }
      ZC_UNROLL for (int plane = 0; plane < kPlanes<X, T>; ++plane) *
          reinterpret_cast<uint4*>(panel_at(panel) + kWeightBytes +
                                   panel_offset((row + 4 * i) * kPlanes<X, T> + plane, chunk)) =
          take_plane(rest, T{});
    }
  };

  begin_product(in.weight + column0 * in.k, in.k, last_column + 1, 8, k_begin, k_end, lane, 32);
  // Rows that x does not have are zeros once and for all.
  for (int stage = 0; stage < kStages; ++stage)
    ZC_UNROLL for (int i = 0; i < 2 * kXTiles; ++i) if (row + 4 * i >= x_rows) *
        reinterpret_cast<uint4*>(panel_at(stage) + kWeightBytes +
                                 panel_offset(row + 4 * i, chunk)) = make_uint4(0, 0, 0, 0);
  ZC_UNROLL for (int panel = 0; panel < kStages - 1; ++panel) {
    if (panel < n_panels) copy_panel(panel);
    simt::cp_async_commit();
  }
  if constexpr (kScaled<X, T>) {
    uint32_t most[kRounds] = {};
    for (int panel = 0; panel < n_panels; ++panel) {
      load_x(panel);
      ZC_UNROLL for (int i = 0; i < kRounds; ++i) {
        float values[kChunk];
        raw[i].widen(values);
        most[i] = largest_bits(values, most[i]);
      }
    }
    ZC_UNROLL for (int i = 0; i < kRounds; ++i) {
      ZC_UNROLL for (int distance = 4; distance > 0; distance /= 2) most[i] =
          max(most[i], __shfl_xor_sync(0xffffffffu, most[i], distance));
      scales[i] = plane_scale(most[i]);
    }
  }
  if constexpr (kSplits) {
    for (int panel = 0; panel < kStages - 1; ++panel) {
      load_x(panel);
      if (panel < n_panels) split_x(panel);
    }
    load_x(kStages - 1);
  }

  float sums[kWeightTiles][kXTiles][4] = {};
  for (int panel = 0; panel < n_panels; ++panel) {
    simt::cp_async_wait<kStages - 2>();
    __syncwarp();  // all lanes' copies of this panel are there, and all are done with the last one
    const int next = panel + kStages - 1;
    if (next < n_panels) copy_panel(next);
    simt::cp_async_commit();
    if constexpr (kSplits) {
      if (next < n_panels) split_x(next);
      load_x(next + 1);
    }
    const uint32_t at = simt::smem_u32(panel_at(panel));
    ZC_UNROLL for (int two = 0; two < kDepth / 32; ++two) {  // steps of 16, two at a time
      uint32_t b[2][kXTiles][2];
      ZC_UNROLL for (int t = 0; t < kXTiles; ++t) {
        uint32_t r[4];
        simt::ldmatrix_x4(r,
                          at + kWeightBytes + panel_offset(8 * t + lane % 8, 4 * two + lane / 8));
        b[0][t][0] = r[0], b[0][t][1] = r[1], b[1][t][0] = r[2], b[1][t][1] = r[3];
      }
      ZC_UNROLL for (int s = 0; s < 2; ++s) ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) {
        uint32_t a[4];
        simt::ldmatrix_x4(a, at + panel_offset(16 * w + lane % 16, 4 * two + 2 * s + lane / 16));
        ZC_UNROLL for (int t = 0; t < kXTiles; ++t)
            simt::mma_m16n8k16(sums[w][t], a, b[s][t][0], b[s][t][1], T{});
      }
    }
  }

  simt::let_next_begin();

  // (n_parts, rows of x, columns)
  using PartSums = float[8 * kXTiles][kColumns + kPad];
  auto* const parts = reinterpret_cast<PartSums*>(shared + n_parts * kStages * kPanelBytes);
  const int g = lane / 4;
  const int t2 = lane % 4 * 2;
  if constexpr (kScaled<X, T>) {
    ZC_UNROLL for (int t = 0; t < kXTiles; ++t) ZC_UNROLL for (int odd = 0; odd < 2; ++odd) {
      const int out_row = (8 * t + t2 + odd) / kPlanes<X, T>;
      float back = 1.0f;
      ZC_UNROLL for (int i = 0; i < kRounds; ++i) {
        const float own = __shfl_sync(0xffffffffu, scales[i].back, out_row % 4 * 8);
        if (out_row / 4 == i) back = own;
      }
      ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) {
        sums[w][t][odd] *= back;
        sums[w][t][odd + 2] *= back;
      }
    }
  }
  ZC_UNROLL for (int w = 0; w < kWeightTiles; ++w) ZC_UNROLL for (int t = 0; t < kXTiles; ++t)
      ZC_UNROLL for (int i = 0; i < 4; ++i)
          parts[part][8 * t + t2 + i % 2][16 * w + g + i / 2 * 8] = sums[w][t][i];
  __syncthreads();
  const int n_sums = out_rows * kColumns;
  for (int i = static_cast<int>(threadIdx.x); i < n_sums; i += static_cast<int>(blockDim.x)) {
    const int column = i % kColumns;
    if (column > last_column) continue;
    float y = 0.0f;
    for (int plane = 0; plane < in.planes; ++plane) {
      const int x_row = i / kColumns * in.planes + plane;
      float sum = parts[0][x_row][column];
      for (int p = 1; p < n_parts; ++p) sum += parts[p][x_row][column];
      y = plane == 0 ? sum : y + sum;
    }
    product.out.write(i / kColumns, column0 + column, y);
  }
}

template <int kWeightTiles, int kXTiles, typename T, typename X>
void launch_few_tiles(Context& context, const Operands<T, X>& in, Products<T> products) {
  const int warps = part_count(in.k);
  unsigned blocks = 0;
  for (int i = 0; i < products.count; ++i) {
    blocks += blocks_for(products.of[i].n, 16 * kWeightTiles);
    products.of[i].end_block = blocks;
  }
  launch_early(context, &linear_few_rows_kernel<T, X, kWeightTiles, kXTiles>, blocks,
               static_cast<unsigned>(warps * 32), few_rows_bytes<kWeightTiles, kXTiles>(warps), in,
               products);
}

}  // namespace

template <typename T, typename X>
void linear_few_rows(Context& context, const Operands<T, X>& in, const Products<T>& products) {
  int64_t n = 0;
  for (int i = 0; i < products.count; ++i) n += products.of[i].n;
  // With many columns of the result, the wider tile reads x half as often.
  const bool wide =
      in.x_rows > 4 && n * 4 >= int64_t{3 * 32} * context.n_multiprocessors &&
      few_rows_bytes<2, 2>(kMaxParts) <= static_cast<size_t>(context.shared_bytes_per_block);
  if (in.x_rows > 8)
    wide ? launch_few_tiles<2, 2>(context, in, products)
         : launch_few_tiles<1, 2>(context, in, products);
  else
    wide ? launch_few_tiles<2, 1>(context, in, products)
         : launch_few_tiles<1, 1>(context, in, products);
}

template void linear_few_rows(Context&, const Operands<f16, f16>&, const Products<f16>&);
template void linear_few_rows(Context&, const Operands<f16, bf16>&, const Products<f16>&);
template void linear_few_rows(Context&, const Operands<f16, float>&, const Products<f16>&);
template void linear_few_rows(Context&, const Operands<bf16, f16>&, const Products<bf16>&);
template void linear_few_rows(Context&, const Operands<bf16, bf16>&, const Products<bf16>&);
template void linear_few_rows(Context&, const Operands<bf16, float>&, const Products<bf16>&);

}  // namespace zc::cuda
