#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"
#include "csrc/math/dispatch.h"
#include "csrc/math/float16.h"

// Elements in vectors of 16 bytes, for ops that are bound by memory. Tensors may begin at any
// element, so a launcher finds out whether 16-byte accesses are possible and tells its kernel; the
// arithmetic is the same either way, and so are the bits.
namespace zc::cuda {

// Elements a thread takes at a time: 16 bytes of a 16-bit type, twice that of float.
inline constexpr int kVector = 8;

inline uint64_t address_bits(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// Whether rows of `width` elements, all of them behind such addresses, can be read in whole
// vectors. `addresses`: address_bits of each, or-ed.
inline bool in_vectors(uint64_t addresses, int64_t width) {
  return addresses % 16 == 0 && width % kVector == 0;
}

// Four words that two elements each share, the first in the lower half.
ZC_DEVICE float low_half(uint32_t pair, f16) { return to_float(f16{static_cast<uint16_t>(pair)}); }
ZC_DEVICE float high_half(uint32_t pair, f16) {
  return to_float(f16{static_cast<uint16_t>(pair >> 16)});
}
ZC_DEVICE float low_half(uint32_t pair, bf16) { return bits_to_float(pair << 16); }
ZC_DEVICE float high_half(uint32_t pair, bf16) { return bits_to_float(pair & 0xffff0000u); }

template <typename T>
ZC_DEVICE uint32_t join_halves(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

template <typename T>
ZC_DEVICE void load_vector(const T* from, float (&x)[kVector]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
  ZC_UNROLL for (int i = 0; i < 4; ++i) {
    x[2 * i] = low_half(pairs[i], T{});
    x[2 * i + 1] = high_half(pairs[i], T{});
  }
}
ZC_DEVICE void load_vector(const float* from, float (&x)[kVector]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

// Elements in 16 bytes.
template <typename T>
inline constexpr int kPer16Bytes = 16 / static_cast<int>(sizeof(T));

template <typename T>
ZC_DEVICE void unpack_16_bytes(const uint4& vector, float (&x)[kPer16Bytes<T>]) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  ZC_UNROLL for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = bits_to_float(words[i]);
    } else {
      x[2 * i] = low_half(words[i], T{});
      x[2 * i + 1] = high_half(words[i], T{});
    }
  }
}

template <typename T>
ZC_DEVICE void store_vector(T* to, const float (&x)[kVector]) {
  uint32_t pairs[4];
  ZC_UNROLL for (int i = 0; i < 4; ++i) pairs[i] = join_halves<T>(x[2 * i], x[2 * i + 1]);
  *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
ZC_DEVICE void store_vector(float* to, const float (&x)[kVector]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// The first `n` (up to kVector) elements behind `from` in float, zeros for the rest. `vectors`: the
// address is a multiple of 16.
template <typename T>
ZC_DEVICE void load_floats(const T* from, int64_t n, bool vectors, float (&x)[kVector]) {
  if (vectors && n >= kVector) {
    load_vector(from, x);
    return;
  }
  ZC_UNROLL for (int i = 0; i < kVector; ++i) x[i] = i < n ? to_float(from[i]) : 0.0f;
}

// Writes the first `n` (up to kVector) of x, rounded to T; f16 saturates.
template <typename T>
ZC_DEVICE void store_floats(T* to, int64_t n, bool vectors, const float (&x)[kVector]) {
  if (vectors && n >= kVector) {
    store_vector(to, x);
    return;
  }
  ZC_UNROLL for (int i = 0; i < kVector; ++i) if (i < n) to[i] = from_float<T>(x[i]);
}

// Calls f(Type<Word>{}) with the widest word in which memory can be copied: `bits` is all addresses
// and sizes in bytes, or-ed.
template <typename F>
void dispatch_word(uint64_t bits, F&& f) {
  if (bits % 16 == 0)
    f(Type<uint4>{});
  else if (bits % 4 == 0)
    f(Type<uint32_t>{});
  else
    f(Type<uint16_t>{});
}

}  // namespace zc::cuda
