#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/emu/vector_types.h"

// CUDA's arithmetic built-ins under CUDA's names: what one thread computes alone. Overloads are the
// ones nvcc knows, so that a call it would refuse is refused here too.

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

// ---- bits ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline unsigned __brev(unsigned x) {
  x = ((x >> 1) & 0x55555555u) | ((x & 0x55555555u) << 1);
  x = ((x >> 2) & 0x33333333u) | ((x & 0x33333333u) << 2);
  x = ((x >> 4) & 0x0f0f0f0fu) | ((x & 0x0f0f0f0fu) << 4);
  return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
// Bytes of hi:lo picked by the nibbles of the selector; a nibble's top bit spreads the byte's sign.
inline unsigned __byte_perm(unsigned lo, unsigned hi, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(hi) << 32 | lo;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = (selector >> (4 * i)) & 15u;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7u))) & 0xffu;
    if (pick & 8u) byte = (byte & 0x80u) ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
// hi:lo shifted, its upper (left) or lower (right) word; the shift wraps at 32, with _c it stops.
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31u)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31u));
}
inline unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned shift) {
  return shift >= 32u ? lo : __funnelshift_l(lo, hi, shift);
}
inline unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned shift) {
  return shift >= 32u ? hi : __funnelshift_r(lo, hi, shift);
}

inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }

// ---- integers ----

inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>((static_cast<Wide>(a) * b) >> 64);
}
// c + the four products of signed (unsigned) bytes; the sum wraps.
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 32; i += 8)
    sum += static_cast<unsigned>(static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i));
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += ((a >> i) & 0xffu) * ((b >> i) & 0xffu);
  return c;
}

// min and max as CUDA overloads them: equal types, or signed with unsigned of the same width.
#define ZC_EMU_MIN_MAX(Result, A, B)         \
  inline Result min(A a, B b) {              \
    const Result x = static_cast<Result>(a); \
    const Result y = static_cast<Result>(b); \
    return y < x ? y : x;                    \
  }                                          \
  inline Result max(A a, B b) {              \
    const Result x = static_cast<Result>(a); \
    const Result y = static_cast<Result>(b); \
    return x < y ? y : x;                    \
  }
#define ZC_EMU_MIN_MAX_INTEGER(Signed, Unsigned) \
  ZC_EMU_MIN_MAX(Signed, Signed, Signed)         \
  ZC_EMU_MIN_MAX(Unsigned, Unsigned, Unsigned)   \
  ZC_EMU_MIN_MAX(Unsigned, Signed, Unsigned)     \
  ZC_EMU_MIN_MAX(Unsigned, Unsigned, Signed)
ZC_EMU_MIN_MAX_INTEGER(int, unsigned)
ZC_EMU_MIN_MAX_INTEGER(long, unsigned long)
ZC_EMU_MIN_MAX_INTEGER(long long, unsigned long long)
#undef ZC_EMU_MIN_MAX_INTEGER
#undef ZC_EMU_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

// ---- float arithmetic: rounded to nearest, never contracted ----

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(double{x})); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Approximations: the hardware's differ from these in the last bits.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return exp2f(x * 1.4426950408889634f); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __exp10f(float x) { return exp2f(x * 3.3219280948873623f); }
inline float __logf(float x) { return log2f(x) * 0.6931471805599453f; }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log2f(x) * 0.3010299956639812f; }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return exp2f(y * log2f(x)); }
// 0 for divisors between 2^126 and infinity, as the hardware's.
inline float __fdividef(float a, float b) {
  const float size = fabsf(b);
  if (size > 0x1p126f && size < INFINITY) return isinf(a) ? NAN : copysignf(0.0f, a * b);
  return a / b;
}

// ---- conversions: saturating, NaN gives 0 ----

namespace zc::emu {
template <typename Integer>
inline Integer float_to_integer(float x) {
  constexpr Integer kLowest = static_cast<Integer>(Integer(-1) < Integer(0) ? INT_MIN : 0);
  constexpr Integer kHighest = static_cast<Integer>(Integer(-1) < Integer(0) ? INT_MAX : UINT_MAX);
  if (std::isnan(x)) return 0;
  if (x <= static_cast<float>(kLowest)) return kLowest;
  if (x >= static_cast<float>(kHighest)) return kHighest;
  return static_cast<Integer>(x);
}
}  // namespace zc::emu

inline int __float2int_rn(float x) { return zc::emu::float_to_integer<int>(nearbyintf(x)); }
inline int __float2int_rz(float x) { return zc::emu::float_to_integer<int>(truncf(x)); }
inline int __float2int_rd(float x) { return zc::emu::float_to_integer<int>(floorf(x)); }
inline int __float2int_ru(float x) { return zc::emu::float_to_integer<int>(ceilf(x)); }
inline unsigned __float2uint_rn(float x) {
  return zc::emu::float_to_integer<unsigned>(nearbyintf(x));
}
inline unsigned __float2uint_rz(float x) { return zc::emu::float_to_integer<unsigned>(truncf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }

// ---- loads and stores with a hint for the caches ----

template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcg(const T* p) {
  return *p;
}
template <typename T>
inline T __ldca(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcs(const T* p) {
  return *p;
}
template <typename T>
inline T __ldlu(const T* p) {
  return *p;
}
template <typename T>
inline void __stcg(T* p, T x) {
  *p = x;
}
template <typename T>
inline void __stcs(T* p, T x) {
  *p = x;
}
template <typename T>
inline void __stwb(T* p, T x) {
  *p = x;
}
