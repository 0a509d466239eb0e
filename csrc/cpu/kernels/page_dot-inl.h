// Sums over the terms of page squares (page-inl.h), which attention over pages consists of: of K
// squares over channels, of V squares over tokens. Codes are multiplied as 16-bit integers and
// summed in 32 bits: two products a lane and instruction, none of them rounded, so that sums are
// the same bits in any order and on any instruction set. Floats are summed term after term.
namespace zc::cpu {
namespace ZC_ISA {

// What the elements of a format are multiplied by, and summed in.
template <Format F>
using Factor = std::conditional_t<is_quantized(F), int16_t, float>;
template <Format F>
using Sums = std::conditional_t<is_quantized(F), WideI, WideF>;

// Factors are integers of at most this size.
inline constexpr float kMaxFactor = 32767.0f;

// Terms whose products with the codes of a format add up below 2^31, of codes of 8 bits 256 * 255 *
// 32767 = 2139029760; of others as many as a head has channels.
template <Format F>
inline constexpr int kSumTerms = F == Format::kU8 ? 256 : kMaxHeadDim;
static_assert(int64_t{kSumTerms<Format::kU4>} * 15 * 32767 < int64_t{1} << 31);

// Not by an initializer: that fills memory, where GCC then leaves the sums.
template <typename Vec, int P, int R>
inline void clear(Vec (&sums)[P][R][kSquareVecs]) {
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) sums[p][r][i] = Vec{};
}

inline WideHalves broadcast_pair(const int16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof(pair));
#if defined(ZC_ISA_AVX512)
  return reinterpret_cast<WideHalves>(_mm512_set1_epi32(pair));
#elif defined(ZC_ISA_AVX2)
  return reinterpret_cast<WideHalves>(_mm256_set1_epi32(pair));
#else
  return reinterpret_cast<WideHalves>(WideI{} + pair);
#endif
}

// Keeps a sum in its register. Integer sums are associative, and GCC regroups them into trees that
// do not fit the registers: 1.9 times slower.
inline void keep_order(WideI& sum) {
#if defined(ZC_ISA_AVX512)
  asm("" : "+v"(sum));
#elif defined(__x86_64__)
  asm("" : "+x"(sum));
#elif defined(__aarch64__)
  asm("" : "+w"(sum));
#endif
}

// sum += of each lane, the sum of the products of its two halves.
inline void add_pairs(WideI& sum, WideHalves a, WideHalves b) {
#if defined(ZC_ISA_AVX512)
  sum = reinterpret_cast<WideI>(_mm512_dpwssd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(ZC_ISA_AVX2)
  sum += reinterpret_cast<WideI>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  static_assert(kLanes == 4);
  sum += reinterpret_cast<WideI>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(ZC_ISA_NEON)
  const int16x8_t x = reinterpret_cast<int16x8_t>(a);
  const int16x8_t y = reinterpret_cast<int16x8_t>(b);
  sum += vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
  const WideI x = reinterpret_cast<WideI>(a);
  const WideI y = reinterpret_cast<WideI>(b);
  sum += ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
  keep_order(sum);
}

// sums (P, R, 16 lanes) += factors (R, 16, rows `stride` apart) times the terms of P squares.
template <Format F, int R, int P>
inline void add_squares(const uint8_t* const (&squares)[P], const int16_t* factors, int64_t stride,
                        WideI (&sums)[P][R][kSquareVecs]) {
  for (int w = 0; w < kSquareRows<F>; ++w) {
    WideHalves fields[P][kSquareVecs];
    for (int p = 0; p < P; ++p)
      for (int i = 0; i < kSquareVecs; ++i)
        fields[p][i] = reinterpret_cast<WideHalves>(load_fields<F>(squares[p], w, i));
    for (int k = 0; k < kFields<F>; ++k) {
      WideHalves codes[P][kSquareVecs];
      for (int p = 0; p < P; ++p)
        for (int i = 0; i < kSquareVecs; ++i) {
          codes[p][i] = fields[p][i] >> static_cast<uint16_t>(k * kFieldBits<F>);
          if (k + 1 < kFields<F>)  // the uppermost field has nothing above it
            codes[p][i] &= static_cast<uint16_t>((1 << kFieldBits<F>)-1);
        }
      for (int r = 0; r < R; ++r) {
        const WideHalves x = broadcast_pair(factors + r * stride + 2 * (w * kFields<F> + k));
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < kSquareVecs; ++i) add_pairs(sums[p][r][i], codes[p][i], x);
      }
    }
  }
}

// The same over the terms [first, last) of float squares.
template <Format F, int R, int P>
inline void add_squares(const uint8_t* const (&squares)[P], const float* factors, int64_t stride,
                        WideF (&sums)[P][R][kSquareVecs], int first = 0, int last = kPageTokens) {
  for (int term = first; term < last; ++term)
    for (int p = 0; p < P; ++p)
      for (int i = 0; i < kSquareVecs; ++i) {
        const WideF x = load_wide(reinterpret_cast<const Element<F>*>(squares[p]) +
                                  term * kPageTokens + i * kWideLanes);
        for (int r = 0; r < R; ++r)
          sums[p][r][i] = fma(broadcast_wide(factors[r * stride + term]), x, sums[p][r][i]);
      }
}

// Rounds x (n) to n multiples of `step`, its largest magnitude divided by kMaxFactor: to[i] is what
// x[i] / step is nearest to. Returns the sum of what rounding leaves, x[i] - to[i] * step. n is a
// multiple of kLanes.
inline float round_to_factors(const float* x, int n, float step, int16_t* to) {
  typedef int16_t Factors __attribute__((vector_size(2 * kLanes)));
  const VecF magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, and
                                              // leaves that in the lower half of the bits
  const VecF inverse = broadcast(1.0f / step);
  VecF rest{};
  for (int i = 0; i < n; i += kLanes) {
    const VecF v = load(x + i);
    const VecF shifted = v * inverse + magic;
    VecU bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    const Factors factors = __builtin_convertvector(bits, Factors);
    std::memcpy(to + i, &factors, sizeof(factors));
    rest += fma(magic - shifted, broadcast(step), v);
  }
  return sum(rest);
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
