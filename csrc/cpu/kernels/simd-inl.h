// Vectors of kLanes floats. GCC's and Clang's vector extension gives the arithmetic on every
// machine; only what it cannot express (FMA, half conversion) is written per instruction set.
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
#else
  VecF v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

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

inline VecF vmax(VecF a, VecF b) { return a > b ? a : b; }

// e^x for x <= 0 (and small positive x), relative error below 2e-7; 0 for x below -87.3 and for
// -inf; NaN stays NaN, so that a broken activation reaches the logits, where it is reported.
// Cody-Waite reduction by ln 2 and the minimax polynomial of degree 5 of Cephes' expf.
inline VecF exp(VecF x) {
  const VecF floor_x = broadcast(-87.3f);
  const VecI below = x < floor_x;
  const VecI is_nan = x != x;
  x = vmax(x, floor_x);
  const VecF magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF n = (x * broadcast(1.44269504f) + magic) - magic;
  VecF r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  VecF p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  const VecI exponent = (__builtin_convertvector(n, VecI) + 127) << 23;
  VecF scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  VecF result = p * scale;
  VecI bits;
  std::memcpy(&bits, &result, sizeof(bits));
  bits = (bits & ~below) | is_nan;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Copies n elements to float.
template <typename T>
inline void widen(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

template <typename T>
inline void narrow(const float* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(from[i]);
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
