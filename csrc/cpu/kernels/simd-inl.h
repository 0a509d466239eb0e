// Vectors of kLanes floats. GCC's and Clang's vector extension gives the arithmetic on every
// machine; only what it cannot express (FMA, half conversion) is written per instruction set.
#ifndef ZC_UNROLL
// Unrolls the loop that follows. GCC keeps an array of vectors in registers only if the loops over
// it are gone early; Clang unrolls them unasked.
#if defined(__clang__)
#define ZC_UNROLL
#else
#define ZC_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

#ifndef ZC_NOINLINE
// Loops that fill the registers stay functions of their own: in the middle of a larger one GCC
// keeps some of their sums in memory.
#define ZC_NOINLINE __attribute__((noinline))
#endif

namespace zc::cpu {
namespace ZC_ISA {

#if defined(ZC_ISA_AVX2)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));

// Not VecF{} + x: adding to zero is an instruction that the compiler may not drop, because of -0.
inline VecF broadcast(float x) {
#if defined(ZC_ISA_AVX2)
  return _mm256_set1_ps(x);
#else
  return VecF{x, x, x, x};
#endif
}

inline VecF load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof(v)); }

// a * b + c in one rounding where the machine has it.
inline VecF fma(VecF a, VecF b, VecF c) {
#if defined(ZC_ISA_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(ZC_ISA_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline VecF load(const bf16* p) {
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));
  Half h;
  std::memcpy(&h, p, sizeof(h));
  const VecU bits = __builtin_convertvector(h, VecU) << 16;
  VecF v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

inline VecF load(const f16* p) {
#if defined(ZC_ISA_AVX2)
  __m128i h;
  std::memcpy(&h, p, sizeof(h));
  return _mm256_cvtph_ps(h);
#elif defined(ZC_ISA_NEON)
  float16x4_t h;
  std::memcpy(&h, p, sizeof(h));
  return vcvt_f32_f16(h);
#else
  VecF v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// As from_float<bf16> and from_float<f16>: nearest, ties to even, NaN stays NaN; f16 saturates.
inline void store(bf16* p, VecF v) {
  VecU bits;
  std::memcpy(&bits, &v, sizeof(bits));
  const VecU rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const VecU quiet = bits | 0x400000u;
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));
  const Half h = __builtin_convertvector((v == v ? rounded : quiet) >> 16, Half);
  std::memcpy(p, &h, sizeof(h));
}

inline void store(f16* p, VecF v) {
#if defined(ZC_ISA_AVX2)
  // The second operand is the result where one is NaN.
  v = _mm256_max_ps(broadcast(-65504.0f), _mm256_min_ps(broadcast(65504.0f), v));
  const __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof(h));
#elif defined(ZC_ISA_NEON)
  const float16x4_t h =
      vcvt_f16_f32(vmaxq_f32(broadcast(-65504.0f), vminq_f32(broadcast(65504.0f), v)));
  std::memcpy(p, &h, sizeof(h));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<f16>(v[i]);
#endif
}

// ---- the widest vectors of the machine, for the products that are bound by arithmetic ----

#if defined(ZC_ISA_AVX512)
inline constexpr int kWideLanes = 16;
typedef float WideF __attribute__((vector_size(64)));

typedef int32_t WideI __attribute__((vector_size(64)));
typedef uint32_t WideU __attribute__((vector_size(64)));
typedef uint16_t WideHalves __attribute__((vector_size(64)));

inline WideF broadcast_wide(float x) { return _mm512_set1_ps(x); }
inline WideF fma(WideF a, WideF b, WideF c) { return _mm512_fmadd_ps(a, b, c); }
inline WideF load_wide(const float* p) { return _mm512_loadu_ps(p); }
inline WideF load_wide(const bf16* p) {
  typedef uint16_t Half __attribute__((vector_size(32)));
  Half h;
  std::memcpy(&h, p, sizeof(h));
  return reinterpret_cast<WideF>(__builtin_convertvector(h, WideU) << 16);
}
// The forms with a mask of all lanes: the others warn of an uninitialized register in GCC 12.
inline WideF load_wide(const f16* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(float* p, WideF v) { _mm512_storeu_ps(p, v); }
// Lane i and lane i + 8 as one.
inline VecF fold(WideF v) {
  return _mm512_maskz_extractf32x8_ps(0xff, v, 0) + _mm512_maskz_extractf32x8_ps(0xff, v, 1);
}
inline VecF fold(VecF v) { return v; }
#else
inline constexpr int kWideLanes = kLanes;
using WideF = VecF;
using WideI = VecI;
using WideU = VecU;
typedef uint16_t WideHalves __attribute__((vector_size(4 * kLanes)));

inline WideF broadcast_wide(float x) { return broadcast(x); }
template <typename T>
inline WideF load_wide(const T* p) {
  return load(p);
}
inline VecF fold(WideF v) { return v; }
#endif

// As many bytes of a weight as a WideF has, from memory: on AVX-512 in halves. Files lay weights
// where they like, and 64 bytes that lie in two lines are loads of both: a Zen 5 then reads 15 GB/s
// with one core instead of 28 (25 where all lie in one).
inline WideU load_streamed(const void* p) {
#if defined(ZC_ISA_AVX512)
  const auto* half = static_cast<const float*>(p);
  return reinterpret_cast<WideU>(_mm512_maskz_insertf32x8(
      0xffff, _mm512_castps256_ps512(_mm256_loadu_ps(half)), _mm256_loadu_ps(half + 8), 1));
#else
  WideU words;
  std::memcpy(&words, p, sizeof(words));
  return words;
#endif
}

// Two elements of bfloat16 are one word, of which either is the upper half of a float: that at the
// even place (part 0) or at the odd one (1). No lane moves.
inline WideF part_of(WideU words, int part) {
  return reinterpret_cast<WideF>(part == 0 ? words << 16 : words & 0xffff0000u);
}
// Of the elements of a weight from p on that are taken in one step those of a part: of bfloat16 2
// kWideLanes, of other types, which have one part, kWideLanes.
inline WideF load_part(const bf16* p, int part) { return part_of(load_streamed(p), part); }
inline WideF load_part(const float* p, int) { return reinterpret_cast<WideF>(load_streamed(p)); }
inline WideF load_part(const f16* p, int) { return load_wide(p); }

// Pairwise, so that the order of summation is the same whatever the compiler does.
inline float sum(VecF v) {
  float x[kLanes];
  store(x, v);
#if defined(ZC_ISA_AVX2)
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#else
  return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

// The sums of kLanes vectors, one a lane: to[i] is sum(v[i]), bit for bit.
#if defined(ZC_ISA_AVX2)
// Four numbers a half to two, x0 + x2 and x1 + x3: those of a, then those of b.
inline VecF sum_pairs(VecF a, VecF b) {
  return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0)) +
         _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2));
}
inline void sum_each(const VecF* v, float* to) {
  VecF halves[4];  // (v[2i], v[2i + 1]): x0 + x4, x1 + x5, x2 + x6, x3 + x7 of each
  for (int i = 0; i < 4; ++i)
    halves[i] = _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x20) +
                _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x31);
  const VecF a = sum_pairs(halves[0], halves[1]);  // of v[0], v[2], v[1], v[3]
  const VecF b = sum_pairs(halves[2], halves[3]);  // of v[4], v[6], v[5], v[7]
  const VecF total = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)) +
                     _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1));  // 0, 2, 4, 6, 1, 3, 5, 7
  store(to, _mm256_permutevar8x32_ps(total, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}
#elif defined(ZC_ISA_NEON)
inline VecF sum_pairs(VecF a, VecF b) {  // x0 + x2 and x1 + x3: those of a, then those of b
  return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                   vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}
inline void sum_each(const VecF* v, float* to) {
  store(to, vpaddq_f32(sum_pairs(v[0], v[1]), sum_pairs(v[2], v[3])));
}
#else
inline void sum_each(const VecF* v, float* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = sum(v[i]);
}
#endif

// a > b ? a : b on each lane: b where one is NaN.
inline VecF vmax(VecF a, VecF b) {
#if defined(ZC_ISA_AVX2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// a < b ? a : b on each lane: b where one is NaN.
inline VecF vmin(VecF a, VecF b) {
#if defined(ZC_ISA_AVX2)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// The largest lane. Where there are NaN any lane may win.
inline float max_lane(VecF v) {
#if defined(ZC_ISA_AVX2)
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
#else
  float result = v[0];
  for (int i = 1; i < kLanes; ++i) result = v[i] > result ? v[i] : result;
  return result;
#endif
}

// The largest magnitude of n elements; NaN where one is no finite number.
inline float largest_magnitude(const float* x, int64_t n) {
  VecF best{};
  VecF poison{};
  const int64_t vectors = n / kLanes * kLanes;
  for (int64_t i = 0; i < vectors; i += kLanes) {
    const VecF v = load(x + i);
    best = vmax(vmax(v, -v), best);
    poison += v * broadcast(0.0f);
  }
  float most = max_lane(best);
  float rest = sum(poison);
  for (int64_t i = vectors; i < n; ++i) {
    const float size = std::fabs(x[i]);
    most = size > most ? size : most;
    rest += x[i] * 0.0f;
  }
  return most + rest;
}

// Columns become rows: lane i of v[j] goes to lane j of v[i].
inline void transpose(VecF* v) {
#if defined(ZC_ISA_AVX2)
  VecF pairs[8];  // 2 x 2 blocks, then 4 x 4, then the halves
  ZC_UNROLL for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  VecF fours[8];
  ZC_UNROLL for (int i = 0; i < 8; i += 4) ZC_UNROLL for (int j = 0; j < 2; ++j) {
    fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
    fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
  }
  ZC_UNROLL for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
#else
  ZC_UNROLL for (int i = 0; i < kLanes; ++i) ZC_UNROLL for (int j = 0; j < i; ++j) {
    const float swapped = v[i][j];
    v[i][j] = v[j][i];
    v[j][i] = swapped;
  }
#endif
}

#if defined(ZC_ISA_AVX512)
// The same of 16 rows of 8, of which v[i] has two: i and i + 4, from v[4] on i + 4 and i + 8.
inline void transpose(WideF* v) {
  WideF pairs[8];
  ZC_UNROLL for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_maskz_unpacklo_ps(0xffff, v[i], v[i + 1]);
    pairs[i + 1] = _mm512_maskz_unpackhi_ps(0xffff, v[i], v[i + 1]);
  }
  WideF fours[8];
  ZC_UNROLL for (int i = 0; i < 8; i += 4) ZC_UNROLL for (int j = 0; j < 2; ++j) {
    fours[i + 2 * j] = _mm512_maskz_shuffle_ps(0xffff, pairs[i + j], pairs[i + j + 2], 0x44);
    fours[i + 2 * j + 1] = _mm512_maskz_shuffle_ps(0xffff, pairs[i + j], pairs[i + j + 2], 0xee);
  }
  ZC_UNROLL for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_maskz_shuffle_f32x4(0xffff, fours[i], fours[i + 4], 0x88);
    v[i + 4] = _mm512_maskz_shuffle_f32x4(0xffff, fours[i], fours[i + 4], 0xdd);
  }
}
#endif

// e^x for x <= 0 (and small positive x), relative error below 2e-7; 0 for x below -87.3 and for
// -inf; NaN stays NaN, so that a broken activation reaches the logits, where it is reported.
// Cody-Waite reduction by ln 2 and the minimax polynomial of degree 5 of Cephes' expf.
inline VecF exp(VecF x) {
  const VecF floor_x = broadcast(-87.3f);
  const VecI kept = ~(x < floor_x);
  x = vmax(floor_x, x);                       // in this order NaN stays
  const VecF magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF rounded = x * broadcast(1.44269504f) + magic;
  const VecF n = rounded - magic;
  VecF r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  VecF p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  // The last bits of `rounded` are n: 2^n is (n + 127) << 23.
  VecI exponent;
  std::memcpy(&exponent, &rounded, sizeof(exponent));
  exponent = (exponent << 23) + (127 << 23);
  VecF scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  const VecF result = p * scale;
  VecI bits;
  std::memcpy(&bits, &result, sizeof(bits));
  bits &= kept;
  VecF masked;
  std::memcpy(&masked, &bits, sizeof(masked));
  return masked;
}

// Copies n elements to float.
template <typename T>
inline void widen(const T* from, float* to, int64_t n) {
  const int64_t vectors = n / kLanes * kLanes;
  for (int64_t i = 0; i < vectors; i += kLanes) store(to + i, load(from + i));
  for (int64_t i = vectors; i < n; ++i) to[i] = to_float(from[i]);
}

template <typename T>
inline void narrow(const float* from, T* to, int64_t n) {
  const int64_t vectors = n / kLanes * kLanes;
  for (int64_t i = 0; i < vectors; i += kLanes) store(to + i, load(from + i));
  for (int64_t i = vectors; i < n; ++i) to[i] = from_float<T>(from[i]);
}

// Elements [at, at + n) of a tensor of floats, widened, and the way back.
inline void widen_from(const TensorView& t, int64_t at, float* to, int64_t n) {
  dispatch_float(t.dtype,
                 [&](auto type) { widen(t.as<typename decltype(type)::type>() + at, to, n); });
}
inline void narrow_to(const TensorView& t, int64_t at, const float* from, int64_t n) {
  dispatch_float(t.dtype,
                 [&](auto type) { narrow(from, t.as<typename decltype(type)::type>() + at, n); });
}

// Calls f(first row, std::integral_constant<int, R>) for kMost rows at a time, and once for the
// rest.
template <int kMost, typename F>
inline void by_rows(int rows, const F& f, int r = 0) {
  for (; r + kMost <= rows; r += kMost) f(r, std::integral_constant<int, kMost>{});
  if constexpr (kMost > 1)
    if (r < rows) by_rows<kMost - 1>(rows, f, r);
}
// The same in as few calls, which differ by one row at most.
template <int kMost, typename F>
inline void by_even_rows(int rows, const F& f) {
  int r = 0;
  for (int calls = (rows + kMost - 1) / kMost; calls > 0; --calls) {
    const int end = r + (rows - r + calls - 1) / calls;
    by_rows<kMost>(end, f, r);
    r = end;
  }
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
