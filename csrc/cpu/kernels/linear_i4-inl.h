// y = x W^T + b with weights of 4 bits, (level - zero) * scale, of which a code is the level or
// says it, with a scale for a group of 32, 64 or 128 elements (LinearArgs). x is rounded to 16
// bits. What a group gives is summed in integers, without an error, becomes a float, and the groups
// are added in order: the same bits for any number of rows, on any number of threads.
namespace zc::cpu {
namespace ZC_ISA {

// ---- what a code says ----

inline VecI widen_bytes(const uint8_t* p) {
#if defined(ZC_ISA_AVX2)
  int64_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return reinterpret_cast<VecI>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, VecI);
#endif
}

// Integers with zero points.
struct Int4Codes {
  using Scale = f16;
  static constexpr bool kHasZeros = true;

  static float scale(f16 scale) { return to_float(scale); }
  static VecF scales(const f16* p) { return load(p); }
  static VecI zeros(const uint8_t* p) { return widen_bytes(p); }
  template <typename Halves>
  static Halves levels(Halves codes) {
    return codes;
  }
};

// Float4: levels are twice what they say, from 12 on, so that all zero points are 12.
struct Float4Codes {
  using Scale = uint8_t;
  static constexpr bool kHasZeros = false;
  static constexpr int kZero = 12;

  static float scale(uint8_t exponent) { return 0.5f * float8_power(exponent); }
  // As float8_power says of each lane.
  static VecF scales(const uint8_t* p) {
    const VecI exponents = widen_bytes(p);
    const VecI is_special = (exponents == 0) | (exponents == 255);
    const VecI bits = exponents << 23 | (is_special & 0x00400000);
    return broadcast(0.5f) * reinterpret_cast<VecF>(bits);
  }
  static VecI zeros(const uint8_t*) { return VecI{} + kZero; }
  template <typename Halves>
  static Halves levels(Halves codes) {
#if defined(ZC_ISA_AVX2) || defined(ZC_ISA_NEON)
    alignas(16) static constexpr uint8_t kLevels[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                        12, 11, 10, 9,  8,  6,  4,  0};
    const Halves places = codes | 0x8000;  // of upper bytes, where 128 and more look up a 0
#endif
#if defined(ZC_ISA_AVX2)
    const __m128i levels = _mm_load_si128(reinterpret_cast<const __m128i*>(kLevels));
#if defined(ZC_ISA_AVX512)
    if constexpr (sizeof(Halves) == 64)
      return reinterpret_cast<Halves>(
          _mm512_maskz_shuffle_epi8(~uint64_t{0}, _mm512_maskz_broadcast_i32x4(0xffff, levels),
                                    reinterpret_cast<__m512i>(places)));
    else
#endif
      return reinterpret_cast<Halves>(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels),
                                                          reinterpret_cast<__m256i>(places)));
#elif defined(ZC_ISA_NEON)
    return reinterpret_cast<Halves>(
        vqtbl1q_u8(vld1q_u8(kLevels), reinterpret_cast<uint8x16_t>(places)));
#else
    // Below 4 magnitudes are their own double; from there on, and again from 6 on, steps double.
    const Halves magnitude = codes & 7;
    const Halves from_4 = reinterpret_cast<Halves>(magnitude > 4) & (magnitude - 4);
    const Halves from_6 = reinterpret_cast<Halves>(magnitude > 6) & (magnitude - 6);
    const Halves twice = magnitude + from_4 + 2 * from_6;
    const Halves sign = codes >> 3;
    return (twice ^ (0 - sign)) + sign + kZero;
#endif
  }
};

// ---- a few rows: the weight goes from memory through registers, a row after the other ----

// Of each group of x's rows, padded to kLanes groups with zeros.
struct Int4GroupSums {
  int32_t* sums;  // (rows, stride): of its factors, which a zero point is multiplied by
  float* steps;   // (rows, stride): of its block
  int64_t stride;
};

inline Int4GroupSums sum_groups(const RoundedRows& x, int64_t k, int64_t group) {
  const int64_t groups = k / group;
  Int4GroupSums out{};
  out.stride = (groups + kLanes - 1) / kLanes * kLanes;
  out.sums = reinterpret_cast<int32_t*>(
      thread_scratch(3, static_cast<size_t>(x.rows) * static_cast<size_t>(out.stride)));
  out.steps = thread_scratch(4, static_cast<size_t>(x.rows) * static_cast<size_t>(out.stride));
  for (int r = 0; r < x.rows; ++r)
    for (int64_t g = 0; g < out.stride; ++g) {
      const int64_t depth = g * group / kPanelDepth;
      const int16_t* from = x.at(depth, r) + g * group % kPanelDepth;
      int32_t sum = 0;
      for (int64_t i = 0; g < groups && i < group; ++i) sum += from[i];
      out.sums[r * out.stride + g] = sum;
      out.steps[r * out.stride + g] = g < groups ? x.steps[depth * x.rows + r] : 0.0f;
    }
  return out;
}

// Rows up to which the weight is streamed. Each of them adds up the lanes of every group, where a
// panel that is unpacked once has the weight's rows on the lanes.
#if defined(ZC_ISA_AVX512)
inline constexpr int kInt4FewRows = 2;
#else
inline constexpr int kInt4FewRows = kFewRows;
#endif

inline constexpr int kInt4Step = 2 * kWideLanes;  // elements of k that are taken in one step

// Codes of the elements [kInt4Step step, kInt4Step (step + 1)) of a unit.
inline WideHalves load_int4(const uint8_t* unit, int step) {
#if defined(ZC_ISA_AVX512)
  // The 16 words twice, for two of their fields.
  const __m512i words = _mm512_maskz_broadcast_i64x4(
      0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit)));
  const int64_t low = step == 0 ? 0 : 0x0008000800080008;
  const int64_t high = low + 0x0004000400040004;
  const __m512i shifts = _mm512_set_epi64(high, high, high, high, low, low, low, low);
  return reinterpret_cast<WideHalves>(_mm512_maskz_srlv_epi16(0xffffffffu, words, shifts)) & 15;
#else
  constexpr int kSteps = kInt4Words / kInt4Step;  // that share their shift
  WideHalves words;
  std::memcpy(&words, unit + step % kSteps * 2 * kInt4Step, sizeof(words));
  return words >> static_cast<uint16_t>(step / kSteps * 4) & 15;
#endif
}

#if defined(ZC_ISA_AVX2)
inline __m256i sum_lane_pairs(VecI a, VecI b) {
  return _mm256_hadd_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
}
#endif

// The sums of kLanes vectors, one a lane.
inline VecI sum_lanes(const VecI* v) {
#if defined(ZC_ISA_AVX2)
  const __m256i a = _mm256_hadd_epi32(sum_lane_pairs(v[0], v[1]), sum_lane_pairs(v[2], v[3]));
  const __m256i b = _mm256_hadd_epi32(sum_lane_pairs(v[4], v[5]), sum_lane_pairs(v[6], v[7]));
  return reinterpret_cast<VecI>(_mm256_permute2x128_si256(a, b, 0x20)) +
         reinterpret_cast<VecI>(_mm256_permute2x128_si256(a, b, 0x31));
#elif defined(ZC_ISA_NEON)
  return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
#else
  VecI out{};
  for (int i = 0; i < kLanes; ++i)
    for (int lane = 0; lane < kLanes; ++lane) out[i] += v[i][lane];
  return out;
#endif
}

inline VecI fold(WideI v) {
#if defined(ZC_ISA_AVX512)
  const auto wide = reinterpret_cast<__m512i>(v);
  return reinterpret_cast<VecI>(_mm512_maskz_extracti64x4_epi64(0xff, wide, 0)) +
         reinterpret_cast<VecI>(_mm512_maskz_extracti64x4_epi64(0xff, wide, 1));
#else
  return v;
#endif
}

// A row of a weight.
template <typename Codes>
struct Int4Row {
  const uint8_t* codes;
  const typename Codes::Scale* scales;
  const uint8_t* zeros;  // or null

  Int4Row(const LinearArgs& a, int64_t row, int64_t k, int64_t n_groups)
      : codes(a.weight.as<uint8_t>() + row * (k / 2)),
        scales(a.scales.as<typename Codes::Scale>() + row * n_groups),
        zeros(Codes::kHasZeros ? a.zeros.as<uint8_t>() + row * n_groups : nullptr) {}
};

// What n groups from g on, kLanes of them or fewer, of one row of the weight give with R rows of x:
// to products[r * stride + g], which has room for kLanes. kRows counts the rows.
template <typename Codes, int kGroup, int... kRows>
__attribute__((always_inline)) inline void multiply_groups(std::integer_sequence<int, kRows...>,
                                                           const RoundedRows& x,
                                                           const Int4GroupSums& groups,
                                                           const Int4Row<Codes>& w, int64_t g,
                                                           int n, float* products, int64_t stride) {
  constexpr int kUnitGroups = kGroup < kInt4Unit ? kInt4Unit / kGroup : 1;
  constexpr int kUnits = kGroup > kInt4Unit ? kGroup / kInt4Unit : 1;  // of a group
  constexpr int kSteps = kInt4Unit / kInt4Step / kUnitGroups;
  VecI sums[sizeof...(kRows)][kLanes];
  if (n < kLanes) std::memset(sums, 0, sizeof(sums));
  const auto add_groups = [&](int i) {  // those of a unit, or one of several
    // Unsigned, and by a number of rows that is known: what finds an address is no division.
    const uint64_t first = static_cast<uint64_t>(g + i) * kGroup;
    const int16_t* const factors =
        x.factors + first / kPanelDepth * (sizeof...(kRows) * kPanelDepth) + first % kPanelDepth;
    ZC_UNROLL for (int own = 0; own < kUnitGroups; ++own) {
      WideI total[sizeof...(kRows)];
      ((total[kRows] = WideI{}), ...);
      ZC_UNROLL for (int unit = 0; unit < kUnits; ++unit) {
        ZC_UNROLL for (int step = 0; step < kSteps; ++step) {
          const WideHalves levels = Codes::levels(
              load_int4(w.codes + first / 2 + unit * (kInt4Unit / 2), own * kSteps + step));
          const int16_t* const at = factors + unit * kInt4Unit + (own * kSteps + step) * kInt4Step;
          (add_pairs(total[kRows], levels, load_halves(at + kRows * kPanelDepth)), ...);
        }
      }
      ((sums[kRows][i + own] = fold(total[kRows])), ...);
    }
  };
  if (n == kLanes) {
    ZC_UNROLL for (int i = 0; i < kLanes; i += kUnitGroups) add_groups(i);
  } else {
    for (int i = 0; i < n; i += kUnitGroups) add_groups(i);
  }
  typename Codes::Scale last_scales[kLanes] = {};
  uint8_t last_zeros[kLanes] = {};
  const auto* scales = w.scales + g;
  const uint8_t* zeros = Codes::kHasZeros ? w.zeros + g : nullptr;
  if (n < kLanes) {
    for (int i = 0; i < n; ++i) {
      last_scales[i] = scales[i];
      if constexpr (Codes::kHasZeros) last_zeros[i] = zeros[i];
    }
    scales = last_scales;
    zeros = last_zeros;
  }
  const VecF scale = Codes::scales(scales);
  const VecI zero = Codes::zeros(zeros);
  const auto finish = [&](int r) {
    const int64_t at = r * groups.stride + g;
    VecI factor_sums;
    std::memcpy(&factor_sums, groups.sums + at, sizeof(factor_sums));
    const VecI sum = sum_lanes(sums[r]) - zero * factor_sums;
    store(products + r * stride + g,
          __builtin_convertvector(sum, VecF) * (scale * load(groups.steps + at)));
  };
  (finish(kRows), ...);
}

template <typename Codes, int kGroup, int R>
ZC_NOINLINE void multiply_int4_row(const RoundedRows& x, const Int4GroupSums& groups,
                                   const Int4Row<Codes>& w, int64_t n_groups, float* products,
                                   int64_t stride) {
  constexpr std::make_integer_sequence<int, R> kRows{};
  int64_t g = 0;
  for (; g + kLanes <= n_groups; g += kLanes)
    multiply_groups<Codes, kGroup>(kRows, x, groups, w, g, kLanes, products, stride);
  if (g < n_groups)
    multiply_groups<Codes, kGroup>(kRows, x, groups, w, g, static_cast<int>(n_groups - g), products,
                                   stride);
}

// y (kLanes): what the groups of kLanes rows gave, `stride` apart, added up in order.
inline VecF add_in_order(const float* products, int64_t stride, int64_t n_groups) {
  VecF total{};
  for (int64_t g = 0; g < n_groups; g += kLanes) {
    VecF v[kLanes];
    for (int i = 0; i < kLanes; ++i) v[i] = load(products + i * stride + g);
    transpose(v);
    const int n = static_cast<int>(std::min<int64_t>(kLanes, n_groups - g));
    for (int i = 0; i < n; ++i) total += v[i];
  }
  return total;
}

// Columns [c, c + columns) of a few rows of y, columns at most kLanes.
template <typename Codes, int kGroup, int R>
void stream_int4(const LinearArgs& a, const LinearTile& tile, const RoundedRows& x,
                 const Int4GroupSums& groups, int64_t c, int columns) {
  const int64_t k = a.x.size(1);
  const int64_t n_groups = k / kGroup;
  // (columns, rows, groups), zeros in columns beyond the last.
  const int64_t stride = groups.stride;
  float* const products =
      thread_scratch(2, static_cast<size_t>(kLanes * R) * static_cast<size_t>(stride));
  if (columns < kLanes) std::memset(products, 0, sizeof(float) * kLanes * R * stride);
  for (int j = 0; j < columns; ++j) {
    const Int4Row<Codes> w(a, c + j, k, n_groups);
    multiply_int4_row<Codes, kGroup, R>(x, groups, w, n_groups, products + j * R * stride, stride);
  }
  float bias[kLanes];
  if (a.bias.defined()) widen_from(a.bias, c, bias, columns);
  for (int r = 0; r < R; ++r) {
    float y[kLanes];
    store(y, add_in_order(products + r * stride, R * stride, n_groups));
    write_row(a, y, bias, tile.out_row(tile.r0 + r), c, columns);
  }
}

template <typename Codes, int kGroup>
void linear_int4_few_rows(const LinearArgs& a, const LinearTile& tile, const RoundedRows& x) {
  const Int4GroupSums groups = sum_groups(x, a.x.size(1), kGroup);
  by_rows<kInt4FewRows>(x.rows, [&](int, auto n_rows) {
    for (int64_t c = tile.c0; c < tile.c1; c += kLanes)
      stream_int4<Codes, kGroup, decltype(n_rows)::value>(
          a, tile, x, groups, c, static_cast<int>(std::min<int64_t>(kLanes, tile.c1 - c)));
  });
}

// ---- many rows: a panel of the weight is unpacked once for all of them ----

inline constexpr int kInt4Vecs = 2;  // of a panel's columns
inline constexpr int kInt4Columns = kInt4Vecs * kWideLanes;
inline constexpr int kInt4Pairs = kPanelDepth / 2;
inline constexpr int kInt4Groups = kPanelDepth / 32;  // of a block, at most
inline constexpr int kInt4Rows = 6;  // of a tile: with kInt4Vecs sums each they fill 16 registers

// A block of kInt4Columns rows of a weight, with the rows on the lanes.
struct Int4Panel {
  int32_t pairs[kInt4Pairs * kInt4Columns];  // (pairs of elements, columns): level - zero, 16 bits
  float scales[kInt4Groups * kInt4Columns];  // (groups, columns)
};

typedef uint16_t Int4Words __attribute__((vector_size(4 * kLanes)));

// The n elements behind `first` of the weight's rows [c, c + columns). Beyond the last row it
// stands again, with scales of zero.
template <typename Codes>
void unpack_panel(const LinearArgs& a, int64_t c, int columns, int64_t first, int64_t n,
                  Int4Panel& panel) {
  const int64_t k = a.x.size(1);
  const int group_bits = std::countr_zero(static_cast<uint64_t>(a.group()));
  const int64_t groups = k >> group_bits;
  std::memset(panel.scales, 0, sizeof(panel.scales));
  for (int j = 0; j < columns; ++j)
    for (int64_t g = 0; g < n >> group_bits; ++g)
      panel.scales[g * kInt4Columns + j] = Codes::scale(
          a.scales.as<typename Codes::Scale>()[(c + j) * groups + (first >> group_bits) + g]);
  for (int j = 0; j < kInt4Columns; j += kLanes) {
    const uint8_t* codes[kLanes];
    [[maybe_unused]] const uint8_t* zeros[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const Int4Row<Codes> row(a, c + std::min(j + i, columns - 1), k, groups);
      codes[i] = row.codes + first / 2;
      if constexpr (Codes::kHasZeros) zeros[i] = row.zeros + (first >> group_bits);
    }
    for (int unit = 0; unit < n; unit += kInt4Unit)
      ZC_UNROLL for (int word = 0; word < kInt4Words; word += 2 * kLanes) {
        Int4Words words[kLanes];
        ZC_UNROLL for (int i = 0; i < kLanes; ++i) {
          const uint8_t* from = codes[i] + unit / 2 + word * 2;
          std::memcpy(&words[i], from, sizeof(words[i]));
          __builtin_prefetch(from + kPanelDepth / 2);  // of the panel that comes next
        }
        for (int field = 0; field < 4; ++field) {
          const int at = unit + field * kInt4Words + word;
          VecF lanes[kLanes];
          ZC_UNROLL for (int i = 0; i < kLanes; ++i) {
            uint16_t zero = Float4Codes::kZero;
            if constexpr (Codes::kHasZeros) zero = zeros[i][at >> group_bits];
            const Int4Words own = Codes::levels(Int4Words(words[i] & 15)) - zero;
            words[i] >>= 4;
            std::memcpy(&lanes[i], &own, sizeof(own));
          }
          transpose(lanes);
          ZC_UNROLL for (int i = 0; i < kLanes; ++i) std::memcpy(
              panel.pairs + (at / 2 + i) * kInt4Columns + j, &lanes[i], sizeof(lanes[i]));
        }
      }
  }
}

// acc (R, kInt4Vecs) += what the n elements of block `depth` give of rows [r, r + R) of x and a
// panel. kAll counts the sums, as in dot_block.
template <int R, int... kAll>
inline void dot_int4_panel(std::integer_sequence<int, kAll...>, const RoundedRows& x, int64_t depth,
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
  dot_int4_panel<R>(std::make_integer_sequence<int, R * kInt4Vecs>{}, x, depth, r, panel, n, group,
                    acc);
}

template <typename Codes>
void linear_int4_many_rows(const LinearArgs& a, const LinearTile& tile, const RoundedRows& x) {
  const int64_t k = a.x.size(1);
  const int64_t n_depths = (k + kPanelDepth - 1) / kPanelDepth;
  const int rows = x.rows;
  auto* acc = reinterpret_cast<WideF*>(  // (rows, kInt4Columns)
      thread_scratch(2, static_cast<size_t>(rows) * kInt4Columns));
  Int4Panel panel;
  for (int64_t c = tile.c0; c < tile.c1; c += kInt4Columns) {
    const int columns = static_cast<int>(std::min<int64_t>(kInt4Columns, tile.c1 - c));
    std::memset(acc, 0, static_cast<size_t>(rows) * kInt4Columns * sizeof(float));
    for (int64_t depth = 0; depth < n_depths; ++depth) {
      const int64_t first = depth * kPanelDepth;
      const int64_t n = std::min<int64_t>(kPanelDepth, k - first);
      unpack_panel<Codes>(a, c, columns, first, n, panel);
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

inline void linear_int4_tile(const LinearArgs& a, const LinearTile& tile) {
  const RoundedRows x = round_rows(a, tile);
  const bool few = x.rows <= kInt4FewRows;
  if (a.is_float4())
    few ? linear_int4_few_rows<Float4Codes, kFloat4Group>(a, tile, x)
        : linear_int4_many_rows<Float4Codes>(a, tile, x);
  else if (!few)
    linear_int4_many_rows<Int4Codes>(a, tile, x);
  else if (a.group() == 32)
    linear_int4_few_rows<Int4Codes, 32>(a, tile, x);
  else if (a.group() == 64)
    linear_int4_few_rows<Int4Codes, 64>(a, tile, x);
  else
    linear_int4_few_rows<Int4Codes, 128>(a, tile, x);
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
