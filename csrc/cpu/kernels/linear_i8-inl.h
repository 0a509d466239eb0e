// y = x W^T + b with weights of 8 bits and one scale a row. x is rounded to 16 bits; integers are
// multiplied two a lane and instruction and summed without an error, which is half the bytes of a
// 16-bit weight and half the instructions of floats. The sums of a block become floats, times its
// step, and the blocks are added in order, then the lanes: the same bits for any number of rows, on
// any number of threads.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kCodeStep = 2 * kWideLanes;  // elements of k that are taken in one step
inline constexpr int kStreamedCodeRows = 4;  // of x that pass by a stream, and how much of them
inline constexpr int64_t kStreamedCodeElements = 1 << 13;

inline WideHalves load_codes(const int8_t* p) {
#if defined(ZC_ISA_AVX512)
  return reinterpret_cast<WideHalves>(_mm512_maskz_cvtepi8_epi16(
      0xffffffffu, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(ZC_ISA_AVX2)
  __m128i codes;
  std::memcpy(&codes, p, sizeof(codes));
  return reinterpret_cast<WideHalves>(_mm256_cvtepi8_epi16(codes));
#else
  typedef int8_t Codes __attribute__((vector_size(2 * kLanes)));
  typedef int16_t Wide __attribute__((vector_size(4 * kLanes)));
  Codes codes;
  std::memcpy(&codes, p, sizeof(codes));
  return reinterpret_cast<WideHalves>(__builtin_convertvector(codes, Wide));
#endif
}

// acc (R, J) of (rows, kPanelColumns) += what k leaves of a step behind element `at` of a block.
template <int R, int J>
ZC_NOINLINE void add_rest(const RoundedRows& x, int64_t depth, int r, const int8_t* w, int64_t k,
                          int64_t at, int64_t n, WideF* acc) {
  for (int i = 0; i < R; ++i) {
    const int16_t* const factors = x.at(depth, r + i);
    const float step = x.steps[depth * x.rows + r + i];
    for (int j = 0; j < J; ++j) {
      int32_t sum = 0;
      for (int64_t e = at; e < n; ++e) sum += int32_t{factors[e]} * w[j * k + e];
      acc[i * kPanelColumns + j][0] += static_cast<float>(sum) * step;
    }
  }
}

// acc (R, J) of (rows, kPanelColumns) += what the n elements of block `depth` give of rows [r, r +
// R) of x and J rows of the weight, of which w is the first's block. kAll counts the R * J sums: of
// loops over three or four of them GCC leaves the sums in memory.
template <int R, int J, int... kAll>
inline void dot_block(std::integer_sequence<int, kAll...>, const RoundedRows& x, int64_t depth,
                      int r, const int8_t* w, int64_t k, int64_t n, WideF* acc) {
  const int16_t* const factors = x.at(depth, r);
  const int64_t whole = n / kCodeStep * kCodeStep;
  WideI sums[R * J];
  ((sums[kAll] = WideI{}), ...);
  for (int64_t at = 0; at < whole; at += kCodeStep) {
    WideHalves codes[J];
    ZC_UNROLL for (int j = 0; j < J; ++j) codes[j] = load_codes(w + j * k + at);
    (add_pairs(sums[kAll], codes[kAll % J], load_halves(factors + kAll / J * kPanelDepth + at)),
     ...);
  }
  const float* const steps = x.steps + depth * x.rows + r;
  const auto finish = [&](int t, WideI sum) {
    WideF& to = acc[t / J * kPanelColumns + t % J];
    to = fma(__builtin_convertvector(sum, WideF), broadcast_wide(steps[t / J]), to);
  };
  (finish(kAll, sums[kAll]), ...);
  if (whole < n) add_rest<R, J>(x, depth, r, w, k, whole, n, acc);
}

// The same for one block, and for one row of the weight, block after block.
template <int R, int J>
ZC_NOINLINE void dot_code_tile(const RoundedRows& x, int64_t depth, int r, const int8_t* w,
                               int64_t k, WideF* acc) {
  const int64_t first = depth * kPanelDepth;
  dot_block<R, J>(std::make_integer_sequence<int, R * J>{}, x, depth, r, w + first, k,
                  std::min<int64_t>(kPanelDepth, k - first), acc);
}
template <int R>
ZC_NOINLINE void dot_code_stream(const RoundedRows& x, const int8_t* w, int64_t k, WideF* acc) {
  for (int64_t first = 0; first < k; first += kPanelDepth)
    dot_block<R, 1>(std::make_integer_sequence<int, R>{}, x, first / kPanelDepth, 0, w + first, k,
                    std::min<int64_t>(kPanelDepth, k - first), acc);
}

// A few rows are bound by reading the weight: its rows are taken one after another, a stream that
// the machine follows by itself. More are bound by arithmetic: a panel of it stays in L1 while all
// rows pass by.
inline void linear_codes_tile(const LinearArgs& a, const LinearTile& tile) {
  const int64_t k = a.x.size(1);
  const int64_t n_depths = (k + kPanelDepth - 1) / kPanelDepth;
  const int rows = static_cast<int>(tile.r1 - tile.r0);
  const RoundedRows x = round_rows(a, tile);
  const bool streamed =
      rows == 1 || (rows <= kStreamedCodeRows && rows * k <= kStreamedCodeElements);
  auto* acc = reinterpret_cast<WideF*>(  // (rows, kPanelColumns)
      thread_scratch(2, static_cast<size_t>(rows) * kPanelColumns * kWideLanes));
  for (int64_t c = tile.c0; c < tile.c1; c += kPanelColumns) {
    const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, tile.c1 - c));
    const int8_t* w = a.weight.as<int8_t>() + c * k;
    std::memset(acc, 0, static_cast<size_t>(rows) * kPanelColumns * sizeof(WideF));
    if (streamed) {
      by_rows<kStreamedCodeRows>(rows, [&](int, auto n_rows) {
        for (int j = 0; j < columns; ++j)
          dot_code_stream<decltype(n_rows)::value>(x, w + j * k, k, acc + j);
      });
    } else {
      for (int64_t depth = 0; depth < n_depths; ++depth) {
        // The panel that comes next is asked for meanwhile.
        const int8_t* next =
            depth + 1 < n_depths ? w + (depth + 1) * kPanelDepth : w + kPanelColumns * k;
        by_rows<kDotRows>(rows, [&](int r, auto n_rows) {
          constexpr int R = decltype(n_rows)::value;
          WideF* const to = acc + r * kPanelColumns;
          int j = 0;
          for (; j + kDotColumns <= columns; j += kDotColumns) {
            if (r == 0)
              for (int line = 0; line < kDotColumns * kPanelDepth / 64; ++line)
                __builtin_prefetch(next + (j + line % kDotColumns) * k + line / kDotColumns * 64);
            dot_code_tile<R, kDotColumns>(x, depth, r, w + j * k, k, to + j);
          }
          for (; j < columns; ++j) dot_code_tile<R, 1>(x, depth, r, w + j * k, k, to + j);
        });
      }
    }
    float bias[kPanelColumns];
    if (a.bias.defined()) widen_from(a.bias, c, bias, columns);
    const float* scales = a.scales.as<float>() + c;
    for (int r = 0; r < rows; ++r) {
      float y[kPanelColumns];
      add_lanes(acc + r * kPanelColumns, columns, y);
      for (int j = 0; j < columns; ++j) y[j] *= scales[j];
      write_row(a, y, bias, tile.out_row(tile.r0 + r), c, columns);
    }
  }
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
