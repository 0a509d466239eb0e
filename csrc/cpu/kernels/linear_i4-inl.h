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

// Twice each, in 16 bits.
inline VecI widen_twice(const uint8_t* p) { return widen_bytes(p) * 0x10001; }

// Integers with zero points.
struct Int4Codes {
  using Scale = f16;
  static constexpr bool kHasZeros = true;

  static VecF scales(const f16* p) { return load(p); }
  // Of words whose last 4 bits are a code; zeros has their zero points.
  static WideHalves levels(WideHalves words, WideHalves zeros) { return (words & 15) - zeros; }
};

// Float4: twice what they say.
struct Float4Codes {
  using Scale = uint8_t;
  static constexpr bool kHasZeros = false;

  // As float8_power says of each lane.
  static VecF scales(const uint8_t* p) {
    const VecI exponents = widen_bytes(p);
    const VecI is_special = (exponents == 0) | (exponents == 255);
    const VecI bits = exponents << 23 | (is_special & 0x00400000);
    return broadcast(0.5f) * reinterpret_cast<VecF>(bits);
  }
  static WideHalves levels(WideHalves words, WideHalves) {
#if defined(ZC_ISA_AVX512)
    // Five bits of a word find their level: the fifth changes nothing.
    const __m512i levels = _mm512_maskz_broadcast_i64x4(
        0xff, _mm256_setr_epi16(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    return reinterpret_cast<WideHalves>(
        _mm512_maskz_permutexvar_epi16(0xffffffffu, reinterpret_cast<__m512i>(words), levels));
#elif defined(ZC_ISA_AVX2) || defined(ZC_ISA_NEON)
    // 12 more, so that bytes have no sign. Of upper bytes 128 and more look up a 0.
    alignas(16) static constexpr uint8_t kLevels[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                        12, 11, 10, 9,  8,  6,  4,  0};
    const WideHalves places = (words & 15) | 0x8000;
#if defined(ZC_ISA_AVX2)
    const __m128i levels = _mm_load_si128(reinterpret_cast<const __m128i*>(kLevels));
    return reinterpret_cast<WideHalves>(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels),
                                                            reinterpret_cast<__m256i>(places))) -
           12;
#else
    return reinterpret_cast<WideHalves>(
               vqtbl1q_u8(vld1q_u8(kLevels), reinterpret_cast<uint8x16_t>(places))) -
           12;
#endif
#else
    // Below 4 magnitudes are their own double; from there on, and again from 6 on, steps double.
    const WideHalves magnitude = words & 7;
    const WideHalves from_4 = reinterpret_cast<WideHalves>(magnitude > 4) & (magnitude - 4);
    const WideHalves from_6 = reinterpret_cast<WideHalves>(magnitude > 6) & (magnitude - 6);
    const WideHalves twice = magnitude + from_4 + 2 * from_6;
    const WideHalves sign = words >> 3 & 1;
    return (twice ^ (0 - sign)) + sign;
#endif
  }
};

// ---- one row: the weight goes from memory through registers, a row after the other ----

// Of each group of a row of x, padded to kLanes groups with zeros.
struct Int4GroupSums {
  int32_t* sums;  // of its factors, which a zero point is multiplied by
  float* steps;   // of its block
  int64_t padded;
};

inline Int4GroupSums sum_groups(const RoundedRows& x, int64_t k, int64_t group) {
  const int64_t groups = k / group;
  Int4GroupSums out{};
  out.padded = (groups + kLanes - 1) / kLanes * kLanes;
  out.sums = reinterpret_cast<int32_t*>(thread_scratch(3, static_cast<size_t>(out.padded)));
  out.steps = thread_scratch(4, static_cast<size_t>(out.padded));
  for (int64_t g = 0; g < out.padded; ++g) {
    const int16_t* from = x.factors + g * group;
    int32_t sum = 0;
    for (int64_t i = 0; g < groups && i < group; ++i) sum += from[i];
    out.sums[g] = sum;
    out.steps[g] = g < groups ? x.steps[g * group / kPanelDepth] : 0.0f;
  }
  return out;
}

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

// What n groups from g on, kLanes of them or fewer, of one row of the weight give: to products[g],
// which has room for kLanes.
template <typename Codes, int kGroup>
__attribute__((always_inline)) inline void multiply_groups(const RoundedRows& x,
                                                           const Int4GroupSums& groups,
                                                           const Int4Row<Codes>& w, int64_t g,
                                                           int n, float* products) {
  constexpr int kUnitGroups = kGroup < kInt4Unit ? kInt4Unit / kGroup : 1;
  constexpr int kUnits = kGroup > kInt4Unit ? kGroup / kInt4Unit : 1;  // of a group
  constexpr int kSteps = kInt4Unit / kInt4Step / kUnitGroups;
  VecI sums[kLanes];
  if (n < kLanes) std::memset(sums, 0, sizeof(sums));
  const auto add_groups = [&](int i) {  // those of a unit, or one of several
    const int64_t first = (g + i) * kGroup;
    ZC_UNROLL for (int own = 0; own < kUnitGroups; ++own) {
      WideI total{};
      ZC_UNROLL for (int unit = 0; unit < kUnits; ++unit) {
        ZC_UNROLL for (int step = 0; step < kSteps; ++step) {
          const WideHalves levels = Codes::levels(
              load_int4(w.codes + first / 2 + unit * (kInt4Unit / 2), own * kSteps + step),
              WideHalves{});
          add_pairs(total, levels,
                    load_halves(x.factors + first + unit * kInt4Unit +
                                (own * kSteps + step) * kInt4Step));
        }
      }
      sums[i + own] = fold(total);
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
  VecI sum = sum_lanes(sums);
  if constexpr (Codes::kHasZeros) {
    VecI factor_sums;
    std::memcpy(&factor_sums, groups.sums + g, sizeof(factor_sums));
    sum -= widen_bytes(zeros) * factor_sums;
  }
  store(products + g,
        __builtin_convertvector(sum, VecF) * (Codes::scales(scales) * load(groups.steps + g)));
}

template <typename Codes, int kGroup>
ZC_NOINLINE void multiply_int4_row(const RoundedRows& x, const Int4GroupSums& groups,
                                   const Int4Row<Codes>& w, int64_t n_groups, float* products) {
  int64_t g = 0;
  for (; g + kLanes <= n_groups; g += kLanes)
    multiply_groups<Codes, kGroup>(x, groups, w, g, kLanes, products);
  if (g < n_groups)
    multiply_groups<Codes, kGroup>(x, groups, w, g, static_cast<int>(n_groups - g), products);
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

template <typename Codes, int kGroup>
void stream_int4(const LinearArgs& a, const LinearTile& tile, const RoundedRows& x) {
  const int64_t k = a.x.size(1);
  const int64_t n_groups = k / kGroup;
  const Int4GroupSums groups = sum_groups(x, k, kGroup);
  // (columns, groups), zeros in columns beyond the last.
  float* const products = thread_scratch(2, static_cast<size_t>(kLanes * groups.padded));
  for (int64_t c = tile.c0; c < tile.c1; c += kLanes) {
    const int columns = static_cast<int>(std::min<int64_t>(kLanes, tile.c1 - c));
    if (columns < kLanes) std::memset(products, 0, sizeof(float) * kLanes * groups.padded);
    for (int j = 0; j < columns; ++j) {
      const Int4Row<Codes> w(a, c + j, k, n_groups);
      multiply_int4_row<Codes, kGroup>(x, groups, w, n_groups, products + j * groups.padded);
    }
    float bias[kLanes];
    if (a.bias.defined()) widen_from(a.bias, c, bias, columns);
    float y[kLanes];
    store(y, add_in_order(products, groups.padded, n_groups));
    write_row(a, y, bias, tile.out_row(tile.r0), c, columns);
  }
}

// ---- a block of the weight, with its rows on the lanes ----

inline constexpr int kInt4Half = kInt4Unit / 2;  // elements: the least group
inline constexpr int kInt4Halves = kPanelDepth / kInt4Half;
inline constexpr int kInt4Pairs = kInt4Words / 2;

// kPanelDepth elements of V vectors of rows of a weight. One vector is for a few rows of x, beside
// which codes are unpacked as they are multiplied; two are for many, and unpacked once.
template <int V>
struct Int4Panel {
  static constexpr bool kUnpacked = V > 1;
  static constexpr int kStep = kUnpacked ? 2 : 4;  // elements of which a lane has the codes

  // Pairs of elements, 16 bits each. Packed they are words of a half of a unit: their last 4 bits
  // are elements 2 i and 2 i + 1, the next ones the two that are kInt4Words behind them.
  WideI words[kPanelDepth / kStep][V];
  // Of each group; a zero point twice, in 16 bits.
  WideF scales[kInt4Halves][V];
  WideI zeros[kInt4Halves][V];

  // What the codes say of the elements from `at` + 2 i on, `at` a multiple of kInt4Words. i stays
  // below kInt4Pairs.
  template <typename Codes>
  WideHalves levels(int64_t at, int64_t group, int i, int v) const {
    if constexpr (kUnpacked) return reinterpret_cast<WideHalves>(words[at / 2 + i][v]);
    const int64_t half = at / kInt4Half * kInt4Half;
    return Codes::levels(reinterpret_cast<WideHalves>(words[half / 4 + i][v]) >> (at - half) / 4,
                         reinterpret_cast<WideHalves>(zeros[group][v]));
  }
};

// Asks for memory from p on.
template <int kBytes>
inline void ask_for(const uint8_t* p) {
  ZC_UNROLL for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(p + line);
}

// kWideLanes rows of a weight from c on. Beyond the last column the last one stands again, and
// nobody looks.
template <typename Codes>
struct Int4Rows {
  using Scale = typename Codes::Scale;
  const uint8_t* codes[kWideLanes];
  const Scale* scales[kWideLanes];
  const uint8_t* zeros[kWideLanes];  // if there are any
  // Of those that come next, `ahead` rows behind.
  const uint8_t* next_codes;
  const Scale* next_scales;
  const uint8_t* next_zeros = nullptr;

  Int4Rows() = default;
  Int4Rows(const LinearArgs& a, int64_t c, int64_t end, int64_t ahead) {
    const int64_t row_codes = a.weight.size(1);
    const int64_t groups = a.scales.size(1);
    for (int j = 0; j < kWideLanes; ++j) {
      const int64_t row = std::min(c + j, end - 1);
      codes[j] = a.weight.as<uint8_t>() + row * row_codes;
      scales[j] = a.scales.as<Scale>() + row * groups;
      if constexpr (Codes::kHasZeros) zeros[j] = a.zeros.as<uint8_t>() + row * groups;
    }
    next_codes = a.weight.as<uint8_t>() + (c + ahead) * row_codes;
    next_scales = a.scales.as<Scale>() + (c + ahead) * groups;
    if constexpr (Codes::kHasZeros) next_zeros = a.zeros.as<uint8_t>() + (c + ahead) * groups;
  }

  // What goes with n groups of as many rows as these from `first` on.
  void ask_for_groups(int64_t first, int64_t n) const {
    for (int64_t i = first * kWideLanes; i < (first + n) * kWideLanes; i += 64) {
      if constexpr (Codes::kHasZeros) __builtin_prefetch(next_zeros + i);
      for (int64_t line = 0; line < 64; line += 64 / int64_t{sizeof(Scale)})
        __builtin_prefetch(next_scales + i + line);
    }
  }
};

// v[i]: the words i, of 32 bits, of what row_at(0) to row_at(kWideLanes - 1) point to.
template <typename RowAt>
inline void load_across(const RowAt& row_at, WideF (&v)[kLanes]) {
#if defined(ZC_ISA_AVX512)
  ZC_UNROLL for (int i = 0; i < kLanes; ++i) {
    const int row = i % 4 + i / 4 * 8;  // as transpose takes them
    v[i] = _mm512_maskz_insertf32x8(
        0xffff,
        _mm512_castps256_ps512(_mm256_loadu_ps(reinterpret_cast<const float*>(row_at(row)))),
        _mm256_loadu_ps(reinterpret_cast<const float*>(row_at(row + 4))), 1);
  }
#else
  ZC_UNROLL for (int i = 0; i < kLanes; ++i) std::memcpy(&v[i], row_at(i), sizeof(v[i]));
#endif
  transpose(v);
}

// to[g * stride]: what kWideLanes rows have for each of n groups from `at` on, in 32 bits.
template <typename T, typename Wide, typename Widen>
inline void load_groups(const T* const (&rows)[kWideLanes], int64_t at, int64_t n,
                        const Widen& widen_each, Wide* to, int stride) {
  for (int64_t g = 0; g < n; g += kLanes) {
    alignas(64) int32_t words[kWideLanes][kLanes];
    const auto widen_all = [&](const auto& groups_at) {
      for (int j = 0; j < kWideLanes; ++j) {
        const auto wide = widen_each(groups_at(j));
        std::memcpy(words[j], &wide, sizeof(wide));
      }
    };
    if (n - g >= kLanes) {
      widen_all([&](int j) { return rows[j] + at + g; });
    } else {
      T last[kWideLanes][kLanes] = {};
      for (int j = 0; j < kWideLanes; ++j)
        for (int64_t i = g; i < n; ++i) last[j][i - g] = rows[j][at + i];
      widen_all([&](int j) { return last[j]; });
    }
    WideF v[kLanes];
    load_across([&](int j) { return words[j]; }, v);
    ZC_UNROLL for (int i = 0; i < kLanes; ++i) to[(g + i) * stride] = reinterpret_cast<Wide>(v[i]);
  }
}

// Vector v of a panel: the n elements from `first` on. As much of the rows that come next is asked
// for meanwhile, in the order of memory, since the machine does not see so many streams.
template <int V, typename Codes>
ZC_NOINLINE void load_panel(const Int4Rows<Codes>& rows, int64_t first, int64_t n, int group_bits,
                            int v, Int4Panel<V>& panel) {
  const int64_t group = first >> group_bits;
  const int64_t groups = n >> group_bits;
  const auto load_zeros = [&] {
    if constexpr (Codes::kHasZeros)
      load_groups(rows.zeros, group, groups, widen_twice, &panel.zeros[0][v], V);
  };
  if constexpr (Int4Panel<V>::kUnpacked) load_zeros();
  for (int64_t unit = 0; unit < n; unit += kInt4Unit) {
    const int64_t at = (first + unit) / 2;
    ask_for<kWideLanes * kInt4Unit / 2>(rows.next_codes + at * kWideLanes);
    for (int pair = 0; pair < kInt4Pairs; pair += kLanes) {
      WideF words[kLanes];
      load_across([&](int j) { return rows.codes[j] + at + 4 * pair; }, words);
      if constexpr (Int4Panel<V>::kUnpacked) {
        ZC_UNROLL for (int field = 0; field < 4; ++field) {
          const int64_t first_of = unit + field * kInt4Words;
          const auto zero = reinterpret_cast<WideHalves>(panel.zeros[first_of >> group_bits][v]);
          ZC_UNROLL for (int i = 0; i < kLanes; ++i) {
            const auto own = reinterpret_cast<WideHalves>(words[i]) >> 4 * field;
            panel.words[first_of / 2 + pair + i][v] =
                reinterpret_cast<WideI>(Codes::levels(own, zero));
          }
        }
      } else {
        ZC_UNROLL for (int i = 0; i < kLanes; ++i) {
          const auto own = reinterpret_cast<WideHalves>(words[i]);
          panel.words[unit / 4 + pair + i][v] = reinterpret_cast<WideI>(own);
          panel.words[unit / 4 + kInt4Pairs + pair + i][v] = reinterpret_cast<WideI>(own >> 8);
        }
      }
    }
  }
  if constexpr (!Int4Panel<V>::kUnpacked) load_zeros();
  load_groups(rows.scales, group, groups, Codes::scales, &panel.scales[0][v], V);
  rows.ask_for_groups(group, groups);
}

// ---- rows of x pass by ----

// acc (R, V) += what the n elements of block `depth` give of rows [r, r + R) of x and a panel. kAll
// counts the sums, as in dot_block.
template <typename Codes, int V, int... kAll>
inline void dot_int4_panel(std::integer_sequence<int, kAll...>, const RoundedRows& x, int64_t depth,
                           int r, const Int4Panel<V>& panel, int64_t n, int group_bits,
                           WideF* acc) {
  const int16_t* factors = x.at(depth, r);
  const float* const steps = x.steps + depth * x.rows + r;
  const int64_t in_group = (int64_t{1} << group_bits) - 1;
  WideI sums[sizeof...(kAll)];
  ((sums[kAll] = WideI{}), ...);
  for (int64_t at = 0; at < n; at += kInt4Half, factors += kInt4Half) {
    const int64_t g = at >> group_bits;
    ZC_UNROLL for (int i = 0; i < kInt4Pairs; ++i) {
      WideHalves levels[V];
      ZC_UNROLL for (int v = 0; v < V; ++v) levels[v] = panel.template levels<Codes>(at, g, i, v);
      (add_pairs(sums[kAll], levels[kAll % V],
                 broadcast_pair(factors + kAll / V * kPanelDepth + 2 * i)),
       ...);
      ZC_UNROLL for (int v = 0; v < V; ++v) levels[v] =
          panel.template levels<Codes>(at + kInt4Words, g, i, v);
      (add_pairs(sums[kAll], levels[kAll % V],
                 broadcast_pair(factors + kAll / V * kPanelDepth + kInt4Words + 2 * i)),
       ...);
    }
    if (((at + kInt4Half) & in_group) != 0) continue;
    const auto finish = [&](int t, WideI& sum) {
      acc[t] += __builtin_convertvector(sum, WideF) *
                (panel.scales[g][t % V] * broadcast_wide(steps[t / V]));
      sum = WideI{};
    };
    (finish(kAll, sums[kAll]), ...);
  }
}
template <typename Codes, int R, int V>
ZC_NOINLINE void dot_int4_tile(const RoundedRows& x, int64_t depth, int r,
                               const Int4Panel<V>& panel, int64_t n, int group_bits, WideF* acc) {
  dot_int4_panel<Codes, V>(std::make_integer_sequence<int, R * V>{}, x, depth, r, panel, n,
                           group_bits, acc);
}

// By panels of V vectors of columns, up to kMost rows at a time.
template <typename Codes, int V, int kMost>
void linear_int4_panels(const LinearArgs& a, const LinearTile& tile, const RoundedRows& x) {
  constexpr int kColumns = V * kWideLanes;
  const int64_t k = a.x.size(1);
  const int group_bits = std::countr_zero(static_cast<uint64_t>(a.group()));
  auto* acc = reinterpret_cast<WideF*>(  // (rows, V)
      thread_scratch(2, static_cast<size_t>(x.rows) * kColumns));
  Int4Panel<V> panel;
  for (int64_t c = tile.c0; c < tile.c1; c += kColumns) {
    Int4Rows<Codes> rows[V];
    for (int v = 0; v < V; ++v) rows[v] = {a, c + v * kWideLanes, tile.c1, kColumns};
    std::memset(acc, 0, static_cast<size_t>(x.rows) * kColumns * sizeof(float));
    for (int64_t first = 0; first < k; first += kPanelDepth) {
      const int64_t n = std::min<int64_t>(kPanelDepth, k - first);
      for (int v = 0; v < V; ++v) load_panel(rows[v], first, n, group_bits, v, panel);
      by_rows<kMost>(x.rows, [&](int r, auto n_rows) {
        dot_int4_tile<Codes, decltype(n_rows)::value>(x, first / kPanelDepth, r, panel, n,
                                                      group_bits, acc + r * V);
      });
    }
    for (int64_t j = c; j < std::min(tile.c1, c + kColumns); j += kWideLanes) {
      const int columns = static_cast<int>(std::min<int64_t>(kWideLanes, tile.c1 - j));
      float bias[kWideLanes];
      if (a.bias.defined()) widen_from(a.bias, j, bias, columns);
      for (int r = 0; r < x.rows; ++r)
        write_row(a, reinterpret_cast<float*>(acc + r * V) + (j - c), bias,
                  tile.out_row(tile.r0 + r), j, columns);
    }
  }
}

// Whether one row of x meets the weight as a stream: with AVX-512 a panel is as fast.
#if defined(ZC_ISA_AVX512)
inline constexpr bool kInt4Streamed = false;
#else
inline constexpr bool kInt4Streamed = true;
#endif

// Fewer rows of the weight side by side are read faster; two vectors of them share what is read of
// x, and are unpacked once for all of its rows. Up to so many rows of x the former counts.
inline constexpr int kInt4FewRows = kWideLanes;

// Rows of x that are multiplied at once: with two vectors each their sums fill 16 registers.
inline constexpr int kInt4FewTogether = std::min(kInt4FewRows, 8);
inline constexpr int kInt4ManyTogether = 6;

template <typename Codes>
void linear_int4(const LinearArgs& a, const LinearTile& tile) {
  const RoundedRows x = round_rows(a, tile);
  if (x.rows > kInt4FewRows) return linear_int4_panels<Codes, 2, kInt4ManyTogether>(a, tile, x);
  if constexpr (kInt4Streamed)
    if (x.rows == 1) {
      if (a.group() == 32) return stream_int4<Codes, 32>(a, tile, x);
      if constexpr (Codes::kHasZeros)
        return a.group() == 64 ? stream_int4<Codes, 64>(a, tile, x)
                               : stream_int4<Codes, 128>(a, tile, x);
    }
  linear_int4_panels<Codes, 1, kInt4FewTogether>(a, tile, x);
}

inline void linear_int4_tile(const LinearArgs& a, const LinearTile& tile) {
  a.is_float4() ? linear_int4<Float4Codes>(a, tile) : linear_int4<Int4Codes>(a, tile);
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
