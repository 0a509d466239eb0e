// Weights of 16 bits meet x in the tensor cores, as the first operand of mma.m16n8k16: 16 rows of
// the weight, 8 rows of x, so that one row of x wastes little. Every kernel here gives mma the same
// 16 elements of k at a time, in order, which makes a row's bits the same in all of them.
//
// x must be of the weight's type. Where it is not, a row of x becomes up to three rows, the planes,
// whose sum is the row, and the rows of the result are added up again in the end: no product loses
// more than float would.
#include "csrc/cuda/linear.h"

#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kDepth = 64;             // of k, in shared memory at a time
constexpr int kRowBytes = kDepth * 2;  // of a row of such a panel: 8 chunks of 16 bytes
constexpr int kChunk = 8;              // elements of a chunk
constexpr unsigned kAllLanes = 0xffffffffu;

// Where a chunk of a panel's row lies. The chunks of eight rows lie in different banks, whether a
// row is written or a column of chunks is read (ldmatrix).
ZC_DEVICE uint32_t panel_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
}

// Planes that a row of x takes.
template <typename X, typename T>
inline constexpr int kPlanes = 1;
template <>
inline constexpr int kPlanes<float, bf16> = 3;  // 24 bits are 8 + 8 + 8
template <>
inline constexpr int kPlanes<f16, bf16> = 2;  // 11 are 8 + 3
template <>
inline constexpr int kPlanes<float, f16> = 2;  // 22 of 24
// f16 holds no large numbers: rows are scaled by a power of two that brings their largest element
// just below 2^15.
template <typename X, typename T>
inline constexpr bool kScaled = std::is_same_v<T, f16> && !std::is_same_v<X, f16>;

constexpr int kPlaneThreads = 256;

ZC_DEVICE bool is_finite(float x) { return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u; }

ZC_DEVICE uint4 join_bits(const uint32_t (&bits)[kVector]) {
  return make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                    bits[6] | bits[7] << 16);
}

// A plane's share of `rest`, which keeps what is left for the planes after it. bf16: the bits are
// cut off, not rounded, so that what is left has eight less; f16: rounded. What is no number is in
// the first plane alone.
ZC_DEVICE uint4 take_plane(float (&rest)[kVector], bf16) {
  uint32_t bits[kVector];
  ZC_UNROLL for (int j = 0; j < kVector; ++j) {
    const bool is_nan = rest[j] != rest[j];
    const float taken = bits_to_float(float_to_bits(rest[j]) & 0xffff0000u);
    bits[j] = is_nan ? 0x7fc0u : float_to_bits(taken) >> 16;
    rest[j] = is_finite(rest[j]) ? rest[j] - taken : 0.0f;
  }
  return join_bits(bits);
}
ZC_DEVICE uint4 take_plane(float (&rest)[kVector], f16) {
  uint32_t bits[kVector];
  ZC_UNROLL for (int j = 0; j < kVector; ++j) {
    const f16 taken = to_f16(rest[j]);
    bits[j] = taken.bits;
    rest[j] = is_finite(rest[j]) ? rest[j] - to_float(taken) : 0.0f;
  }
  return join_bits(bits);
}

// Planes (m kPlanes, stride) of x (m, k), zeros from k on; scales (m): what the products of a row
// must be multiplied by. A block owns a row of x; bound by memory.
template <typename X, typename T>
__global__ void __launch_bounds__(kPlaneThreads)
    linear_planes_kernel(const X* x, T* planes, float* scales, int64_t k, int64_t stride,
                         bool vectors) {
  ZC_SHARED(uint32_t, largest, [kPlaneThreads / 32]);
  const int64_t row = blockIdx.x;
  const int own = static_cast<int>(threadIdx.x);
  x += row * k;
  planes += row * kPlanes<X, T> * stride;
  float scale = 1.0f;
  if constexpr (kScaled<X, T>) {
    uint32_t most = 0;  // bits of the largest |x|
    for (int64_t c = int64_t{own} * kVector; c < k; c += kPlaneThreads * kVector) {
      float values[kVector];
      load_floats(x + c, k - c, vectors, values);
      ZC_UNROLL for (int j = 0; j < kVector; ++j) if (is_finite(values[j])) most =
          max(most, float_to_bits(values[j]) & 0x7fffffffu);
    }
    most = __reduce_max_sync(kAllLanes, most);
    if (own % 32 == 0) largest[own / 32] = most;
    __syncthreads();
    for (int w = 0; w < kPlaneThreads / 32; ++w) most = max(most, largest[w]);
    // 2^-126 to 2^126, so that its inverse is a number too.
    const int exponent = static_cast<int>(most >> 23) - 127;
    const int shift = most == 0 ? 0 : min(14 - exponent, 126);
    scale = bits_to_float(static_cast<uint32_t>(127 + shift) << 23);
    if (own == 0) scales[row] = bits_to_float(static_cast<uint32_t>(127 - shift) << 23);
  }
  for (int64_t c = int64_t{own} * kVector; c < stride; c += kPlaneThreads * kVector) {
    float rest[kVector];
    load_floats(x + c, k - c, vectors, rest);
    if constexpr (kScaled<X, T>) ZC_UNROLL for (int j = 0; j < kVector; ++j) rest[j] *= scale;
    ZC_UNROLL for (int plane = 0; plane < kPlanes<X, T>; ++plane) *
        reinterpret_cast<uint4*>(planes + plane * stride + c) = take_plane(rest, T{});
  }
}

// What is multiplied: weight (n, k) and x (rows, x_stride), X being T if x holds planes of a row
// one after another, else its own type.
template <typename T, typename X = T>
struct Operands {
  const T* weight;
  const X* x;
  int64_t n;
  int64_t k;
  int64_t x_rows;  // planes
  int64_t x_stride;
  int planes;
  int part_length;
  bool vectors;    // rows of the weight are aligned to 16 bytes
  bool x_vectors;  // rows of x are; always where X is T
};

// Brings a chunk to shared memory, zeros from k on: `from` is element c of a row.
template <typename T, typename X>
ZC_DEVICE void copy_weight(const Operands<T, X>& in, unsigned char* to, const T* from, int64_t c) {
  if (in.vectors) {
    simt::cp_async_16(simt::smem_u32(to), from, c < in.k ? 16 : 0);
    return;
  }
  uint32_t pairs[4];
  ZC_UNROLL for (int i = 0; i < 4; ++i) {
    const uint32_t low = c + 2 * i < in.k ? from[2 * i].bits : 0;
    const uint32_t high = c + 2 * i + 1 < in.k ? from[2 * i + 1].bits : 0;
    pairs[i] = low | high << 16;
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
template <typename T>
ZC_DEVICE void copy_x(const Operands<T>& in, unsigned char* to, const T* from, int64_t c) {
  simt::cp_async_16(simt::smem_u32(to), from, c < in.x_stride ? 16 : 0);
}

// ---- few rows ----

constexpr int kWarpThreads = 32;
constexpr int kFewRows = 16;  // planes
constexpr int kFewPad = 1;

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
          8 * kXTiles * (16 * kWeightTiles + kFewPad) * sizeof(float));
}

// 16 kWeightTiles columns of out = x weight^T for up to 8 kXTiles planes of x. A warp owns a part
// of k: its panels come by cp.async into a ring of its own, so that warps never wait for another
// but at the end, when the parts are added. x of another type than the weight comes through
// registers, a panel earlier than it is wanted, and is split into planes on its way. Dynamic shared
// memory: few_rows_bytes, 18 KB to 27 KB a warp. Bound by reading the weight: 10 KB to 12 KB a warp
// are on their way.
template <typename T, typename X, int kWeightTiles, int kXTiles>
__global__ void __launch_bounds__(kMaxParts* kWarpThreads)
    linear_few_rows_kernel(Operands<T, X> in, LinearOut out) {
  constexpr bool kSplits = !std::is_same_v<X, T>;
  constexpr int kStages = kFewStages<kWeightTiles, kXTiles>;
  constexpr int kPanelBytes = kFewPanelBytes<kWeightTiles, kXTiles>;
  constexpr int kWeightBytes = 16 * kWeightTiles * kRowBytes;
  constexpr int kColumns = 16 * kWeightTiles;
  ZC_DYNAMIC_SHARED(shared);
  const int part = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int n_parts = static_cast<int>(blockDim.x) / kWarpThreads;
  const int64_t column0 = int64_t{blockIdx.x} * kColumns;
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
    if constexpr (!kSplits)
      ZC_UNROLL for (int i = 0; i < 2 * kXTiles; ++i) if (row + 4 * i < x_rows)
          copy_x(in, to + kWeightBytes + panel_offset(row + 4 * i, chunk),
                 x + 4 * i * in.x_stride + panel * kDepth, first_element(panel));
  };
  // x where it is split: the rows of a panel, four at a time.
  constexpr int kRounds = (8 * kXTiles / kPlanes<X, T> + 3) / 4;
  const int out_rows = x_rows / in.planes;
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
      ZC_UNROLL for (int plane = 0; plane < kPlanes<X, T>; ++plane) *
          reinterpret_cast<uint4*>(panel_at(panel) + kWeightBytes +
                                   panel_offset((row + 4 * i) * kPlanes<X, T> + plane, chunk)) =
          take_plane(rest, T{});
    }
  };

  // Rows that x does not have are zeros once and for all.
  for (int stage = 0; stage < kStages; ++stage)
    ZC_UNROLL for (int i = 0; i < 2 * kXTiles; ++i) if (row + 4 * i >= x_rows) *
        reinterpret_cast<uint4*>(panel_at(stage) + kWeightBytes +
                                 panel_offset(row + 4 * i, chunk)) = make_uint4(0, 0, 0, 0);
  ZC_UNROLL for (int panel = 0; panel < kStages - 1; ++panel) {
    if (panel < n_panels) copy_panel(panel);
    simt::cp_async_commit();
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

  // (n_parts, rows of x, columns)
  using PartSums = float[8 * kXTiles][kColumns + kFewPad];
  auto* const parts = reinterpret_cast<PartSums*>(shared + n_parts * kStages * kPanelBytes);
  const int g = lane / 4;
  const int t2 = lane % 4 * 2;
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
    out.write(i / kColumns, column0 + column, y);
  }
}

template <int kWeightTiles, int kXTiles, typename T, typename X>
void launch_few_tiles(Context& context, const Operands<T, X>& in, const LinearOut& out) {
  const int warps = part_count(in.k);
  launch(context, &linear_few_rows_kernel<T, X, kWeightTiles, kXTiles>,
         blocks_for(in.n, 16 * kWeightTiles), static_cast<unsigned>(warps * kWarpThreads),
         few_rows_bytes<kWeightTiles, kXTiles>(warps), in, out);
}

template <typename T, typename X>
void launch_few_rows(Context& context, const Operands<T, X>& in, const LinearOut& out) {
  // With many columns of the result, the wider tile reads x half as often.
  const bool wide =
      in.x_rows > 4 && in.n * 4 >= int64_t{3 * 32} * context.n_multiprocessors &&
      few_rows_bytes<2, 2>(kMaxParts) <= static_cast<size_t>(context.shared_bytes_per_block);
  if (in.x_rows > 8)
    wide ? launch_few_tiles<2, 2>(context, in, out) : launch_few_tiles<1, 2>(context, in, out);
  else
    wide ? launch_few_tiles<2, 1>(context, in, out) : launch_few_tiles<1, 1>(context, in, out);
}

// ---- tiles ----

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
// reading the weight.
template <typename T, int kRows>
__global__ void __launch_bounds__(kTileThreads, TileShape<kRows>::kBlocks)
    linear_tiles_kernel(Operands<T> in, int64_t m_tiles, Split split, LinearOut out) {
  using Shape = TileShape<kRows>;
  constexpr int kWeightTiles = Shape::kWeightTiles;
  constexpr int kXTiles = Shape::kXTiles;
  constexpr int kStages = Shape::kStages;
  constexpr int kWeightBytes = kTileColumns * kRowBytes;
  constexpr int kSteps = kDepth / 16;
  ZC_DYNAMIC_SHARED(shared);
  ZC_SHARED(int, is_last, [1]);
  const int own = static_cast<int>(threadIdx.x);
  const int lane = own % 32;
  const int warp = own / 32;
  const int64_t tile = blockIdx.x;
  const int rows = kRows / in.planes;  // of the result
  const int64_t row0 = tile % m_tiles * rows;
  const int64_t column0 = tile / m_tiles * kTileColumns;

  // A thread copies chunk `chunk` of every 32nd row. Rows beyond the last are the last one again.
  const int chunk = own % 8;
  const int row = own / 8;
  const int64_t x_row0 = row0 * in.planes;
  const int last_column = static_cast<int>(min(int64_t{kTileColumns}, in.n - column0)) - 1;
  const int last_row = static_cast<int>(min(int64_t{kRows}, in.x_rows - x_row0)) - 1;
  const T* const weight = in.weight + column0 * in.k + chunk * kChunk;
  const T* const x = in.x + x_row0 * in.x_stride + chunk * kChunk;
  const auto copy_panel = [&](int panel, int stage) {
    unsigned char* const to = shared + stage * Shape::kPanelBytes;
    const int64_t c = int64_t{panel} * kDepth;
    ZC_UNROLL for (int i = 0; i < kTileColumns / 32; ++i)
        copy_weight(in, to + panel_offset(row + 32 * i, chunk),
                    weight + min(row + 32 * i, last_column) * in.k + c, c + chunk * kChunk);
    ZC_UNROLL for (int i = 0; i < kRows / 32; ++i)
        copy_x(in, to + kWeightBytes + panel_offset(row + 32 * i, chunk),
               x + min(row + 32 * i, last_row) * in.x_stride + c, c + chunk * kChunk);
  };

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

  const int first_part = static_cast<int>(blockIdx.y) * split.parts_per_group;
  const int last_part = min(first_part + split.parts_per_group, split.n_parts);
  const int part_panels = in.part_length / kDepth;
  const int all_panels = static_cast<int>((in.k + kDepth - 1) / kDepth);
  const int first = first_part * part_panels;
  const int last = min(last_part * part_panels, all_panels);

  float total[kWeightTiles * kXTiles][4] = {};
  float sums[kWeightTiles * kXTiles][4] = {};
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
  for (int r = warp; r < rows && row0 + r < out.m; r += kTileWarps) {
    float y[4] = {};
    for (int plane = 0; plane < in.planes; ++plane) {
      const float4 sum =
          *reinterpret_cast<const float4*>(&rows_of_tile[r * in.planes + plane][column]);
      y[0] = plane == 0 ? sum.x : y[0] + sum.x;
      y[1] = plane == 0 ? sum.y : y[1] + sum.y;
      y[2] = plane == 0 ? sum.z : y[2] + sum.z;
      y[3] = plane == 0 ? sum.w : y[3] + sum.w;
    }
    out.write4(row0 + r, column0 + column, y);
  }
}

// How the tiles of kRows rows cover the result.
struct Tiling {
  int64_t m_tiles;
  int64_t tiles;
  Split split;
  int64_t bytes;  // of scratch
};

template <int kRows>
Tiling tile_result(const Context& context, int64_t m, int64_t n, int64_t k, int planes) {
  using Shape = TileShape<kRows>;
  Tiling tiling{};
  const int64_t rows = kRows / planes;
  tiling.m_tiles = (m + rows - 1) / rows;
  tiling.tiles = tiling.m_tiles * ((n + kTileColumns - 1) / kTileColumns);
  tiling.split = split_parts(k, tiling.tiles, int64_t{Shape::kBlocks} * context.n_multiprocessors);
  tiling.bytes =
      tiling.split.bytes(tiling.tiles, Shape::kWeightTiles * Shape::kXTiles, kTileThreads);
  return tiling;
}

template <typename T, int kRows>
void launch_tiles(Context& context, const Operands<T>& in, Tiling tiling, uint8_t* scratch,
                  const LinearOut& out) {
  tiling.split.sums = reinterpret_cast<float4*>(scratch);
  tiling.split.arrivals = tiling.split.groups > 1 ? context.counters(tiling.tiles) : nullptr;
  launch(context, &linear_tiles_kernel<T, kRows>,
         dim3(blocks_for(tiling.tiles, 1), static_cast<unsigned>(tiling.split.groups)),
         kTileThreads, TileShape<kRows>::kSharedBytes, in, tiling.m_tiles, tiling.split, out);
}

// ---- the op ----

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

template <typename X, typename T>
void linear_16(Context& context, const LinearArgs& a) {
  constexpr int planes = kPlanes<X, T>;
  const int64_t m = a.x.size(0);
  const int64_t k = a.x.size(1);
  const int64_t x_rows = m * planes;
  const auto operands = [&](auto* x, int64_t stride) {
    using Source = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    Operands<T, Source> in{};
    in.weight = a.weight.as<T>();
    in.x = x;
    in.n = a.weight.size(0);
    in.k = k;
    in.x_rows = x_rows;
    in.x_stride = stride;
    in.planes = planes;
    in.part_length = part_length(k);
    in.vectors = in_vectors(address_bits(a.weight.data), k);
    in.x_vectors = in_vectors(address_bits(a.x.data), k);
    return in;
  };
  const bool has_vectors = in_vectors(address_bits(a.x.data), k);
  if constexpr (!kScaled<X, T> && !std::is_same_v<X, T>) {
    if (x_rows <= kFewRows) {
      launch_few_rows(context, operands(a.x.as<X>(), k), linear_out(a, nullptr));
      return;
    }
  }

  const bool plain = std::is_same_v<X, T> && has_vectors;
  const int64_t stride = plain ? k : (k + kVector - 1) / kVector * kVector;
  const int64_t scale_bytes = kScaled<X, T> ? padded(m * int64_t{sizeof(float)}) : 0;
  const int64_t plane_bytes = plain ? 0 : padded(x_rows * stride * int64_t{sizeof(T)});
  const int64_t n = a.weight.size(0);
  Tiling tiling{};
  if (x_rows > 64)
    tiling = tile_result<128>(context, m, n, k, planes);
  else if (x_rows > 32)
    tiling = tile_result<64>(context, m, n, k, planes);
  else if (x_rows > kFewRows)
    tiling = tile_result<32>(context, m, n, k, planes);
  auto* const scratch =
      static_cast<uint8_t*>(context.scratch(scale_bytes + plane_bytes + tiling.bytes));
  auto* const scales = kScaled<X, T> ? reinterpret_cast<float*>(scratch) : nullptr;
  T* x = a.x.as<T>();
  if (!plain) {
    x = reinterpret_cast<T*>(scratch + scale_bytes);
    launch(context, &linear_planes_kernel<X, T>, blocks_for(m, 1), kPlaneThreads, 0, a.x.as<X>(), x,
           scales, k, stride, has_vectors);
  }

  const Operands<T> in = operands(x, stride);
  const LinearOut out = linear_out(a, scales);
  uint8_t* const sums = scratch + scale_bytes + plane_bytes;
  if (x_rows > 64)
    launch_tiles<T, 128>(context, in, tiling, sums, out);
  else if (x_rows > 32)
    launch_tiles<T, 64>(context, in, tiling, sums, out);
  else if (x_rows > kFewRows)
    launch_tiles<T, 32>(context, in, tiling, sums, out);
  else
    launch_few_rows(context, in, out);
}

}  // namespace

void linear(Context& context, const LinearArgs& a) {
  if (a.out.length() == 0) return;
  ZC_CHECK(a.x.size(1) < 1 << 23, ErrorCode::kUnsupported, "x: rows of %lld, expected below 2^23",
           static_cast<long long>(a.x.size(1)));
  if (a.weight.dtype == DType::kF32) {
    linear_f32(context, a);
    return;
  }
  dispatch_float(a.x.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (a.weight.dtype == DType::kF16)
      linear_16<X, f16>(context, a);
    else
      linear_16<X, bf16>(context, a);
  });
}

}  // namespace zc::cuda
