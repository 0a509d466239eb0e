// y = x W^T + b with weights of floats. How a product of two rows is summed is one rule for any
// number of rows: k is cut into blocks of kPanelDepth; in a block lane i of a vector takes the
// elements i, i + kWideLanes, ... in order (of bfloat16 2 i, 2 i + 1, 2 i + 2 kWideLanes, ...); the
// blocks are added in order, then the lanes pairwise (`fold`, `sum`), then what k leaves of a step
// one by one. Decoding and prefill so give a row the same bits, on any number of threads, and the
// weight is read as it lies in memory.
namespace zc::cpu {
namespace ZC_ISA {

// A tile of accumulators that fills the registers: R rows of x times J rows of the weight, R * J
// FMA for R + J loads.
#if defined(ZC_ISA_AVX512)
inline constexpr int kDotRows = 6;
inline constexpr int kDotColumns = 4;
#else
inline constexpr int kDotRows = 4;
inline constexpr int kDotColumns = 3;
#endif

// A panel is what of the weight is widened at once: 24 KB, which stay in L1 beside kDotRows rows of
// x while all rows of a block pass by.
inline constexpr int kPanelColumns = 24;
inline constexpr int kPanelDepth = 256;
static_assert(kPanelColumns % kDotColumns == 0 && kPanelColumns % kLanes == 0);
static_assert(kPanelDepth % (2 * kWideLanes) == 0);

inline constexpr int kLinearRows = 96;              // rows of x a task takes
inline constexpr int kFewRows = 16;                 // up to here the weight is widened in registers
inline constexpr int64_t kStreamedRowBytes = 6144;  // of the weight: L1 keeps x beside them
inline constexpr int64_t kStreamedRowBytesByBf16 = 10240;  // the same where x is left in bfloat16
inline constexpr int64_t kLinearTaskProducts =
    1 << 17;  // about 10 us: less is not worth waking a thread for

// Elements of k that are taken in one step. Those of bfloat16 are taken apart into even and odd
// places, and x beside them is brought into that order beforehand.
template <typename W>
inline constexpr bool kTakenApart = std::is_same_v<W, bf16>;
template <typename W>
inline constexpr int kParts = kTakenApart<W> ? 2 : 1;
template <typename W>
inline constexpr int kStep = kParts<W> * kWideLanes;

// Rows of x in a tile beside others, whose weight is widened in registers. A mask for odd places
// takes one of sixteen: with it, tiles of four rows read x from memory for each product.
#if defined(ZC_ISA_AVX512) || defined(ZC_ISA_NEON)
template <typename W>
inline constexpr int kWidenedRows = kDotRows;
#else
template <typename W>
inline constexpr int kWidenedRows = kTakenApart<W> ? 3 : kDotRows;
#endif

// Brings n elements of x into the order in which those of a weight in W are taken. n is a multiple
// of kStep<W>.
template <typename W>
inline void order_like(float* x, int64_t n) {
  if constexpr (kTakenApart<W>)
    for (int64_t i = 0; i < n; i += kStep<W>) {
      float step[kStep<W>];
      std::memcpy(step, x + i, sizeof(step));
      for (int lane = 0; lane < kWideLanes; ++lane) {
        x[i + lane] = step[2 * lane];
        x[i + kWideLanes + lane] = step[2 * lane + 1];
      }
    }
}
// n elements of a weight to float, in that order.
template <typename W>
inline void widen_weight(const W* from, float* to, int64_t n) {
  if constexpr (kTakenApart<W>)
    for (int64_t i = 0; i < n; i += kStep<W>) {
      store(to + i, load_part(from + i, 0));
      store(to + i + kWideLanes, load_part(from + i, 1));
    }
  else
    widen(from, to, n);
}

// acc (R, J) of (rows, kPanelColumns) += x (R, n) w (J, n)^T, block by block, lanes along n; row
// strides given. A stride of the weight that is known beforehand is given as kLdw, too. With
// kAhead, what of the weight lies `ahead` elements further is asked for meanwhile.
template <int R, int J, bool kAhead = false, int kLdw = 0, typename W>
ZC_NOINLINE void dot_tile(const float* x, int64_t ldx, const W* w, int64_t ldw, int64_t n,
                          WideF* acc, int64_t ahead = 0) {
  constexpr int kLine = 64 / int{sizeof(W)};
  if constexpr (kLdw > 0) ldw = kLdw;
  for (int64_t block = 0; block < n; block += kPanelDepth) {
    WideF sums[R][J] = {};
    const int64_t end = std::min<int64_t>(n, block + kPanelDepth);
    for (int64_t i = block; i < end; i += kStep<W>) {
      if (kAhead && i % kLine == 0)
        ZC_UNROLL for (int j = 0; j < J; ++j) __builtin_prefetch(w + j * ldw + i + ahead);
      // A part at a time: with both, tiles do not fit the registers.
      ZC_UNROLL for (int part = 0; part < kParts<W>; ++part) {
        WideF wv[J];
        ZC_UNROLL for (int j = 0; j < J; ++j) wv[j] = load_part(w + j * ldw + i, part);
        ZC_UNROLL for (int r = 0; r < R; ++r) {
          const WideF xv = load_wide(x + r * ldx + i + part * kWideLanes);
          ZC_UNROLL for (int j = 0; j < J; ++j) sums[r][j] = fma(xv, wv[j], sums[r][j]);
        }
      }
    }
    ZC_UNROLL for (int r = 0; r < R; ++r) ZC_UNROLL for (int j = 0; j < J; ++j)
        acc[r * kPanelColumns + j] += sums[r][j];
  }
}

// Part `part` of a step of x that was brought into the order of the weight, and of one as it lies
// in memory, whose weight is bfloat16 too.
inline WideF load_x(const float* x, int part) { return load_wide(x + part * kWideLanes); }
inline WideF load_x(const bf16* x, int part) {
  WideU words;
  std::memcpy(&words, x, sizeof(words));
  return part_of(words, part);
}

// acc (columns) = x (n) w (columns, n)^T, row after row of the weight. Blocks do not wait for each
// other's sums, so that the processor multiplies some of them at a time by itself.
template <typename X, typename W>
ZC_NOINLINE void dot_stream(const X* x, const W* w, int64_t ldw, int64_t n, int columns,
                            WideF* acc) {
  for (int j = 0; j < columns; ++j, w += ldw) {
    WideF total{};
    for (int64_t block = 0; block < n; block += kPanelDepth) {
      WideF sum{};
      const int64_t end = std::min<int64_t>(n, block + kPanelDepth);
      for (int64_t i = block; i < end; i += kStep<W>)
        ZC_UNROLL for (int part = 0; part < kParts<W>; ++part) sum =
            fma(load_x(x + i, part), load_part(w + i, part), sum);
      total += sum;
    }
    acc[j] = total;
  }
}

// acc (R, kPanelColumns) += x (R, kPanelDepth) w (columns, k)^T of n elements. What of the weight
// lies `ahead` elements further is asked for meanwhile, of 16 bits 24 to 32 lines at a time: about
// as many as the processor waits for at once.
template <int R, typename W>
ZC_NOINLINE void dot_columns(const float* x, const W* w, int64_t k, int64_t n, int columns,
                             int64_t ahead, WideF* acc) {
  constexpr int J = R == 3 || R == 4 ? 3 : 4;
  int j = 0;
  for (; j + J <= columns; j += J, w += J * k) {
    for (int i = 0; i < kPanelDepth; i += 64 / int{sizeof(W)})
      for (int row = 0; row < J; ++row) __builtin_prefetch(w + ahead + row * k + i);
    dot_tile<R, J>(x, kPanelDepth, w, k, n, acc + j);
  }
  for (; j < columns; ++j, w += k) dot_tile<R, 1>(x, kPanelDepth, w, k, n, acc + j);
}

// The same for rows of more than one tile, of which the first asks for what comes next a line or
// two a step.
template <typename W>
ZC_NOINLINE void dot_tiles(const float* x, int rows, const W* w, int64_t k, int64_t n, int columns,
                           int64_t ahead, WideF* acc) {
  const auto multiply = [&](int j, auto n_columns) {
    constexpr int J = decltype(n_columns)::value;
    by_even_rows<kWidenedRows<W>>(rows, [&](int r, auto n_rows) {
      constexpr int R = decltype(n_rows)::value;
      const float* x_rows = x + r * kPanelDepth;
      WideF* to = acc + r * kPanelColumns + j;
      if (r == 0)
        dot_tile<R, J, true>(x_rows, kPanelDepth, w + j * k, k, n, to, ahead);
      else
        dot_tile<R, J>(x_rows, kPanelDepth, w + j * k, k, n, to);
    });
  };
  int j = 0;
  for (; j + kDotColumns <= columns; j += kDotColumns)
    multiply(j, std::integral_constant<int, kDotColumns>{});
  for (; j < columns; ++j) multiply(j, std::integral_constant<int, 1>{});
}

// acc (rows, kPanelColumns) += x w (columns, k)^T of k_vectors elements, x as (blocks of k, rows,
// kPanelDepth): L1 keeps a block of x while all columns pass by.
template <typename W>
void dot_panel(const float* x, int rows, const W* w, int64_t k, int64_t k_vectors, int columns,
               WideF* acc) {
  for (int64_t at = 0; at < k_vectors; at += kPanelDepth) {
    const int64_t n = std::min<int64_t>(kPanelDepth, k_vectors - at);
    const int64_t ahead = at + kPanelDepth < k_vectors ? kPanelDepth : kPanelColumns * k - at;
    if (rows > kDotRows)
      dot_tiles(x + at * rows, rows, w + at, k, n, columns, ahead, acc);
    else
      by_rows<kDotRows>(rows, [&](int, auto n_rows) {
        dot_columns<decltype(n_rows)::value>(x + at * rows, w + at, k, n, columns, ahead, acc);
      });
  }
}

// What a task computes: y of rows [r0, r1) and columns [c0, c1). Rows are those of x and of y, or,
// where there are pairs of a row and an expert, places among these (ExpertLinearArgs).
struct LinearTile {
  int64_t r0, r1, c0, c1;
  const int32_t* pairs = nullptr;
  int64_t pairs_per_row = 1;

  int64_t out_row(int64_t r) const { return pairs ? pairs[r] : r; }
  int64_t x_row(int64_t r) const { return pairs ? pairs[r] / pairs_per_row : r; }
};

// y (columns): the lanes of each accumulator added up. Of a panel, up to the next vector.
template <typename Vec>
inline void add_lanes(const Vec* acc, int columns, float* y) {
  for (int j = 0; j < columns; j += kLanes) {
    VecF lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = fold(acc[j + i]);
    sum_each(lanes, y + j);
  }
}

// The products of out's row r with `columns` columns from c on become elements of out.
inline void write_row(const LinearArgs& a, float* y, const float* bias, int64_t r, int64_t c,
                      int columns) {
  const int64_t at = r * a.weight.size(0) + c;
  if (a.bias.defined())
    for (int j = 0; j < columns; ++j) y[j] += bias[j];
  if (a.accumulate) {
    float before[kPanelColumns];
    widen_from(a.out, at, before, columns);
    for (int j = 0; j < columns; ++j) y[j] = before[j] + y[j];
  }
  narrow_to(a.out, at, y, columns);
}

// Accumulators of `columns` columns from c on to finished elements of out's row r, of which `tail`
// is what k leaves of a step, in float.
template <typename W>
inline void finish_row(const LinearArgs& a, const WideF* acc, const float* bias, const float* tail,
                       int64_t r, int64_t c, int columns) {
  const int64_t k = a.x.size(1);
  float y[kPanelColumns];
  add_lanes(acc, columns, y);
  if (const int64_t left = k % kStep<W>; left > 0)
    for (int j = 0; j < columns; ++j) {
      const W* w = a.weight.as<W>() + (c + j + 1) * k - left;
      for (int64_t i = 0; i < left; ++i) y[j] += tail[i] * to_float(w[i]);
    }
  write_row(a, y, bias, r, c, columns);
}

// The rows of x that a tile multiplies.
struct WidenedRows {
  const float* blocks;  // (blocks of k, rows, kPanelDepth), in the order of the weight
  const float* tails;   // (rows, kStep<W>), what k leaves of a step
};
template <typename W>
inline WidenedRows widen_rows(const LinearArgs& a, const LinearTile& tile) {
  const int64_t k = a.x.size(1);
  const int64_t k_vectors = k / kStep<W> * kStep<W>;
  const int64_t k_blocks = (k_vectors + kPanelDepth - 1) / kPanelDepth * kPanelDepth;
  const int64_t rows = tile.r1 - tile.r0;
  float* blocks = thread_scratch(0, static_cast<size_t>((k_blocks + kStep<W>)*rows));
  float* tails = blocks + k_blocks * rows;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = tile.x_row(tile.r0 + r) * k;
    for (int64_t at = 0; at < k_vectors; at += kPanelDepth) {
      float* to = blocks + at * rows + r * kPanelDepth;
      const int64_t n = std::min<int64_t>(kPanelDepth, k_vectors - at);
      widen_from(a.x, row + at, to, n);
      order_like<W>(to, n);
    }
    widen_from(a.x, row + k_vectors, tails + r * kStep<W>, k - k_vectors);
  }
  return {blocks, tails};
}

// Few rows: the weight goes from memory through registers.
//
// One row of x is bound by reading the weight. Rows of the weight one after the other are one
// stream, which the machine follows by itself: they are read nearly as fast as without multiplying.
// Long rows ask for an x in bfloat16, so that L1 keeps it. Where it does not, rows of the weight
// side by side share what is read of x. What comes next is not asked for there: rows so long lose
// by it (bfloat16, k = 4096: 15 GB/s instead of 21).
//
// Several rows of x share what is read of the weight, and blocks of k keep them in L1.
template <typename W>
void linear_few_rows(const LinearArgs& a, const LinearTile& tile) {
  const int64_t k = a.x.size(1);
  const int64_t k_vectors = k / kStep<W> * kStep<W>;
  const int64_t row_bytes = k * int64_t{sizeof(W)};
  const int rows = static_cast<int>(tile.r1 - tile.r0);
  const auto [x, tails] = widen_rows<W>(a, tile);
  const bool streamed = rows == 1 && row_bytes <= kStreamedRowBytes;
  const bool streamed_by_bf16 = rows == 1 && kTakenApart<W> && a.x.dtype == DType::kBF16 &&
                                row_bytes <= kStreamedRowBytesByBf16;
  WideF acc[kFewRows * kPanelColumns];
  for (int64_t c = tile.c0; c < tile.c1; c += kPanelColumns) {
    const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, tile.c1 - c));
    const W* w = a.weight.as<W>() + c * k;
    std::memset(acc, 0, static_cast<size_t>(rows) * kPanelColumns * sizeof(WideF));
    if (streamed)
      dot_stream(x, w, k, k_vectors, columns, acc);
    else if (streamed_by_bf16)
      dot_stream(a.x.as<bf16>() + tile.x_row(tile.r0) * k, w, k, k_vectors, columns, acc);
    else if (rows > 1)
      dot_panel(x, rows, w, k, k_vectors, columns, acc);
    else {
      int j = 0;
      for (; j + 8 <= columns; j += 8) dot_tile<1, 8>(x, k, w + j * k, k, k_vectors, acc + j);
      for (; j < columns; ++j) dot_tile<1, 1>(x, k, w + j * k, k, k_vectors, acc + j);
    }
    float bias[kPanelColumns];
    if (a.bias.defined()) widen_from(a.bias, c, bias, columns);
    for (int r = 0; r < rows; ++r)
      finish_row<W>(a, acc + r * kPanelColumns, bias, tails + r * kStep<W>,
                    tile.out_row(tile.r0 + r), c, columns);
  }
}

// Many rows: bound by arithmetic. A panel of the weight is widened once for all rows of the tile.
template <typename W>
void linear_many_rows(const LinearArgs& a, const LinearTile& tile) {
  const int64_t k = a.x.size(1);
  const int64_t k_vectors = k / kStep<W> * kStep<W>;
  const int64_t n_depths = (k_vectors + kPanelDepth - 1) / kPanelDepth;
  const int rows = static_cast<int>(tile.r1 - tile.r0);
  const auto [x, tails] = widen_rows<W>(a, tile);
  float* panel = thread_scratch(1, kPanelColumns * kPanelDepth);
  auto* acc = reinterpret_cast<WideF*>(  // (rows, kPanelColumns)
      thread_scratch(2, static_cast<size_t>(rows) * kPanelColumns * kWideLanes));
  const auto depth_at = [&](int64_t depth) {
    return std::min<int64_t>(kPanelDepth, k_vectors - depth * kPanelDepth);
  };
  for (int64_t c = tile.c0; c < tile.c1; c += kPanelColumns) {
    const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, tile.c1 - c));
    std::memset(acc, 0, static_cast<size_t>(rows) * kPanelColumns * sizeof(WideF));
    for (int64_t depth = 0; depth < n_depths; ++depth) {
      const int64_t n = depth_at(depth);
      for (int j = 0; j < columns; ++j)
        widen_weight(a.weight.as<W>() + (c + j) * k + depth * kPanelDepth, panel + j * kPanelDepth,
                     n);
      // The panel that comes next is brought to L2 meanwhile, a few of its rows a tile.
      const bool last_depth = depth + 1 == n_depths;
      const W* next = a.weight.as<W>() + (last_depth ? c + kPanelColumns : c) * k +
                      (last_depth ? 0 : (depth + 1) * kPanelDepth);
      const int n_tiles = (rows + kDotRows - 1) / kDotRows * (kPanelColumns / kDotColumns);
      int tile_index = 0;
      int fetched = 0;
      by_rows<kDotRows>(rows, [&](int r, auto n_rows) {
        constexpr int R = decltype(n_rows)::value;
        const float* x_rows = x + (depth * rows + r) * kPanelDepth;
        // Beyond the last column a tile multiplies what an earlier panel left, and nobody looks.
        for (int j = 0; j < columns; j += kDotColumns) {
          for (++tile_index; fetched < kPanelColumns * tile_index / n_tiles; ++fetched)
            for (int64_t i = 0; i < n; i += 64 / int64_t{sizeof(W)})
              __builtin_prefetch(next + fetched * k + i, 0, 2);
          dot_tile<R, kDotColumns, false, kPanelDepth>(x_rows, kPanelDepth, panel + j * kPanelDepth,
                                                       kPanelDepth, n, acc + r * kPanelColumns + j);
        }
      });
    }
    float bias[kPanelColumns];
    if (a.bias.defined()) widen_from(a.bias, c, bias, columns);
    for (int r = 0; r < rows; ++r)
      finish_row<W>(a, acc + r * kPanelColumns, bias, tails + r * kStep<W>,
                    tile.out_row(tile.r0 + r), c, columns);
  }
}

// How many columns a task takes where y is cut into so many blocks of at most so many rows.
inline int64_t columns_of_task(const OpContext& ctx, int64_t n, int64_t k, int64_t row_blocks,
                               int64_t block_rows) {
  // Four tasks a thread even out threads that were interrupted; on one thread there is nothing to
  // even out.
  const int64_t n_threads = ctx.threads->n_threads();
  const int64_t splits =
      n_threads == 1 ? 1 : std::max<int64_t>(1, (4 * n_threads + row_blocks - 1) / row_blocks);
  const int64_t least = kLinearTaskProducts / std::max<int64_t>(1, block_rows * k);
  return (std::max((n + splits - 1) / splits, least) + kPanelColumns - 1) / kPanelColumns *
         kPanelColumns;
}

// A tile of y with a weight of floats.
inline void linear_float_tile(const LinearArgs& a, const LinearTile& tile) {
  dispatch_float(a.weight.dtype, [&](auto type) {
    using W = typename decltype(type)::type;
    if (tile.r1 - tile.r0 <= kFewRows)
      linear_few_rows<W>(a, tile);
    else
      linear_many_rows<W>(a, tile);
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
