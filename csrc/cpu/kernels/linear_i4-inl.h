// y = x W^T + b with weights of 4 bits, (code - zero) * scale, a scale and a zero for a group of
// 32, 64 or 128 elements (LinearArgs). x is rounded to 16 bits. What a group gives is summed in
// integers, without an error, becomes a float, and the groups are added in order: the same bits for
// any number of rows, on any number of threads.
namespace zc::cpu {
namespace ZC_ISA {

// ---- many rows: a panel of the weight is unpacked once for all of them ----

inline constexpr int kInt4Vecs = 2;  // of a panel's columns
inline constexpr int kInt4Columns = kInt4Vecs * kWideLanes;
inline constexpr int kInt4Pairs = kPanelDepth / 2;
inline constexpr int kInt4Groups = kPanelDepth / 32;  // of a block, at most
inline constexpr int kInt4Rows = 6;  // of a tile: with kInt4Vecs sums each they fill 16 registers

// A block of kInt4Columns rows of a weight, with the rows on the lanes.
struct Int4Panel {
  int32_t pairs[kInt4Pairs * kInt4Columns];  // (pairs of elements, columns): code - zero, 16 bits
  float scales[kInt4Groups * kInt4Columns];  // (groups, columns)
};

typedef uint16_t Int4Words __attribute__((vector_size(4 * kLanes)));

// The n elements behind `first` of the weight's rows [c, c + columns). Beyond the last row a panel
// holds zeros.
inline void unpack_panel(const LinearArgs& a, int64_t c, int columns, int64_t first, int64_t n,
                         Int4Panel& panel) {
  const int64_t k = a.x.size(1);
  const int64_t group = a.group();
  const int64_t groups = k / group;
  std::memset(panel.scales, 0, sizeof(panel.scales));
  for (int j = 0; j < columns; ++j)
    for (int64_t g = 0; g * group < n; ++g)
      panel.scales[g * kInt4Columns + j] =
          to_float(a.scales.as<f16>()[(c + j) * groups + first / group + g]);
  for (int j = 0; j < kInt4Columns; j += kLanes) {
    const int own = std::min(kLanes, columns - j);
    const int64_t row = c + j;
    for (int64_t unit = 0; unit < n; unit += kInt4Unit)
      for (int word = 0; word < kInt4Words; word += 2 * kLanes) {
        Int4Words words[kLanes] = {};
        for (int i = 0; i < own; ++i)
          std::memcpy(&words[i],
                      a.weight.as<uint8_t>() + ((row + i) * k + first + unit) / 2 + word * 2,
                      sizeof(words[i]));
        for (int field = 0; field < 4; ++field) {
          const int64_t at = unit + field * kInt4Words + word;
          VecF lanes[kLanes] = {};
          for (int i = 0; i < own; ++i) {
            const uint16_t zero = a.zeros.as<uint8_t>()[(row + i) * groups + (first + at) / group];
            const Int4Words codes = (words[i] & 15) - zero;
            words[i] >>= 4;
            std::memcpy(&lanes[i], &codes, sizeof(codes));
          }
          transpose(lanes);
          for (int i = 0; i < kLanes; ++i)
            std::memcpy(panel.pairs + (at / 2 + i) * kInt4Columns + j, &lanes[i], sizeof(lanes[i]));
        }
      }
  }
}

// acc (R, kInt4Vecs) += what the n elements of block `depth` give of rows [r, r + R) of x and a
// panel. kAll counts the sums, as in dot_block.
template <int R, int... kAll>
inline void dot_panel(std::integer_sequence<int, kAll...>, const RoundedRows& x, int64_t depth,
                      int r, const Int4Panel& panel, int64_t n, int64_t group, WideF* acc) {
  const int16_t* const factors = x.at(depth, r);
  const float* const steps = x.steps + depth * x.rows + r;
  for (int64_t g = 0; g * group < n; ++g) {
    WideI sums[R * kInt4Vecs];
    ((sums[kAll] = WideI{}), ...);
    for (int64_t at = g * group; at < (g + 1) * group; at += 2) {
      const auto* pair = reinterpret_cast<const int16_t*>(panel.pairs + at / 2 * kInt4Columns);
      WideHalves codes[kInt4Vecs];
      ZC_UNROLL for (int v = 0; v < kInt4Vecs; ++v) codes[v] =
          load_halves(pair + 2 * v * kWideLanes);
      (add_pairs(sums[kAll], codes[kAll % kInt4Vecs],
                 broadcast_pair(factors + kAll / kInt4Vecs * kPanelDepth + at)),
       ...);
    }
    const auto finish = [&](int t, WideI sum) {
      const WideF scale = load_wide(panel.scales + g * kInt4Columns + t % kInt4Vecs * kWideLanes);
      acc[t] +=
          __builtin_convertvector(sum, WideF) * (scale * broadcast_wide(steps[t / kInt4Vecs]));
    };
    (finish(kAll, sums[kAll]), ...);
  }
}
template <int R>
ZC_NOINLINE void dot_int4_tile(const RoundedRows& x, int64_t depth, int r, const Int4Panel& panel,
                               int64_t n, int64_t group, WideF* acc) {
  dot_panel<R>(std::make_integer_sequence<int, R * kInt4Vecs>{}, x, depth, r, panel, n, group, acc);
}

inline void linear_int4_tile(const LinearArgs& a, const LinearTile& tile) {
  const int64_t k = a.x.size(1);
  const int64_t n_depths = (k + kPanelDepth - 1) / kPanelDepth;
  const int rows = static_cast<int>(tile.r1 - tile.r0);
  const RoundedRows x = round_rows(a, tile);
  auto* acc = reinterpret_cast<WideF*>(  // (rows, kInt4Columns)
      thread_scratch(2, static_cast<size_t>(rows) * kInt4Columns));
  Int4Panel panel;
  for (int64_t c = tile.c0; c < tile.c1; c += kInt4Columns) {
    const int columns = static_cast<int>(std::min<int64_t>(kInt4Columns, tile.c1 - c));
    std::memset(acc, 0, static_cast<size_t>(rows) * kInt4Columns * sizeof(float));
    for (int64_t depth = 0; depth < n_depths; ++depth) {
      const int64_t first = depth * kPanelDepth;
      const int64_t n = std::min<int64_t>(kPanelDepth, k - first);
      unpack_panel(a, c, columns, first, n, panel);
      by_rows<kInt4Rows>(rows, [&](int r, auto n_rows) {
        dot_int4_tile<decltype(n_rows)::value>(x, depth, r, panel, n, a.group(),
                                               acc + r * kInt4Vecs);
      });
    }
    for (int j = 0; j < columns; j += kWideLanes) {
      const int own = std::min(kWideLanes, columns - j);
      float bias[kWideLanes];
      if (a.bias.defined()) widen_from(a.bias, c + j, bias, own);
      for (int r = 0; r < rows; ++r)
        write_row(a, reinterpret_cast<float*>(acc) + r * kInt4Columns + j, bias,
                  tile.out_row(tile.r0 + r), c + j, own);
    }
  }
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
