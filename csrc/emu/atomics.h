#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/emu/fence.h"

// CUDA's atomics under CUDA's names: read-modify-write without an order, as on the GPU. They return
// what was there before. Overloads are the ones nvcc knows.
namespace zc::emu {

// Replaces *p by next(*p) and returns what *p was. Compared by its bits, so that floats with NaN
// end too.
template <typename T, typename Next>
inline T atomic_update(T* p, const Next& next) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static_assert(sizeof(Bits) == sizeof(T));
  Bits* word = reinterpret_cast<Bits*>(p);
  Bits before = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    const T old = __builtin_bit_cast(T, before);
    const T value = next(old);
    if (__atomic_compare_exchange_n(word, &before, __builtin_bit_cast(Bits, value), false,
                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      note_atomic(p);
      return old;
    }
  }
}

inline int wrapping_add(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}

}  // namespace zc::emu

// `expression`: what to store, of `old` and `x`.
#define ZC_EMU_ATOMIC(name, T, expression)                                                \
  inline T name(T* p, T x) {                                                              \
    return zc::emu::atomic_update(p, [x]([[maybe_unused]] T old) { return expression; }); \
  }
ZC_EMU_ATOMIC(atomicAdd, int, zc::emu::wrapping_add(old, x))
ZC_EMU_ATOMIC(atomicAdd, unsigned, old + x)
ZC_EMU_ATOMIC(atomicAdd, unsigned long long, old + x)
ZC_EMU_ATOMIC(atomicAdd, float, old + x)
ZC_EMU_ATOMIC(atomicAdd, double, old + x)
ZC_EMU_ATOMIC(atomicSub, int, zc::emu::wrapping_add(zc::emu::wrapping_add(old, ~x), 1))
ZC_EMU_ATOMIC(atomicSub, unsigned, old - x)
ZC_EMU_ATOMIC(atomicExch, int, x)
ZC_EMU_ATOMIC(atomicExch, unsigned, x)
ZC_EMU_ATOMIC(atomicExch, unsigned long long, x)
ZC_EMU_ATOMIC(atomicExch, float, x)
ZC_EMU_ATOMIC(atomicMin, int, old < x ? old : x)
ZC_EMU_ATOMIC(atomicMin, unsigned, old < x ? old : x)
ZC_EMU_ATOMIC(atomicMin, long long, old < x ? old : x)
ZC_EMU_ATOMIC(atomicMin, unsigned long long, old < x ? old : x)
ZC_EMU_ATOMIC(atomicMax, int, old > x ? old : x)
ZC_EMU_ATOMIC(atomicMax, unsigned, old > x ? old : x)
ZC_EMU_ATOMIC(atomicMax, long long, old > x ? old : x)
ZC_EMU_ATOMIC(atomicMax, unsigned long long, old > x ? old : x)
ZC_EMU_ATOMIC(atomicAnd, int, old& x)
ZC_EMU_ATOMIC(atomicAnd, unsigned, old& x)
ZC_EMU_ATOMIC(atomicAnd, unsigned long long, old& x)
ZC_EMU_ATOMIC(atomicOr, int, old | x)
ZC_EMU_ATOMIC(atomicOr, unsigned, old | x)
ZC_EMU_ATOMIC(atomicOr, unsigned long long, old | x)
ZC_EMU_ATOMIC(atomicXor, int, old ^ x)
ZC_EMU_ATOMIC(atomicXor, unsigned, old ^ x)
ZC_EMU_ATOMIC(atomicXor, unsigned long long, old ^ x)
// Counts up to x and begins again at 0; counts down from x and begins again there.
ZC_EMU_ATOMIC(atomicInc, unsigned, old >= x ? 0u : old + 1u)
ZC_EMU_ATOMIC(atomicDec, unsigned, old == 0u || old > x ? x : old - 1u)
#undef ZC_EMU_ATOMIC

#define ZC_EMU_CAS(T)                                                                        \
  inline T atomicCAS(T* p, T expected, T x) {                                                \
    __atomic_compare_exchange_n(p, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    zc::emu::note_atomic(p);                                                                 \
    return expected;                                                                         \
  }
ZC_EMU_CAS(int)
ZC_EMU_CAS(unsigned)
ZC_EMU_CAS(unsigned long long)
ZC_EMU_CAS(unsigned short)
#undef ZC_EMU_CAS
