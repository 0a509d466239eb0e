#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/emu/barrier.h"
#include "csrc/emu/block.h"
#include "csrc/emu/fence.h"
#include "csrc/emu/scheduler.h"
#include "csrc/emu/warp.h"
#include "csrc/math/float16.h"

// CUDA's built-ins that know of other threads, under CUDA's names: indices, barriers, fences,
// shuffles, votes. (What one thread computes alone is in intrinsics.h and atomics.h.)
//
// __activemask is left out on purpose: lanes that happen to run together say nothing on a GPU.

#define threadIdx (::zc::emu::current->index)
#define blockIdx (::zc::emu::current->block->index)
#define blockDim (::zc::emu::current->block->size)
#define gridDim (::zc::emu::current->block->grid)
inline constexpr int warpSize = 32;

// ---- barriers ----

inline void __syncthreads(zc::emu::Site site = zc::emu::Site::here()) {
  zc::emu::barrier(0, zc::emu::kAllThreads, true, site);
}
inline int __syncthreads_count(int predicate, zc::emu::Site site = zc::emu::Site::here()) {
  return zc::emu::barrier_votes(predicate != 0, site).n_true;
}
inline int __syncthreads_and(int predicate, zc::emu::Site site = zc::emu::Site::here()) {
  const zc::emu::BarrierVotes votes = zc::emu::barrier_votes(predicate != 0, site);
  return votes.n_true == votes.n_threads;
}
inline int __syncthreads_or(int predicate, zc::emu::Site site = zc::emu::Site::here()) {
  return zc::emu::barrier_votes(predicate != 0, site).n_true != 0;
}
inline void __syncwarp(unsigned mask = ~0u, zc::emu::Site site = zc::emu::Site::here()) {
  zc::emu::syncwarp(mask, site);
}
inline void __threadfence() { zc::emu::thread_fence(); }
inline void __threadfence_block() { zc::emu::block_fence(); }
inline void __threadfence_system() { zc::emu::thread_fence(); }

// ---- shuffles: lanes in groups of `width`, a power of 2 ----

namespace zc::emu {

template <typename T>
inline T shuffle_as(uint32_t mask, T x, uint32_t source_lane, const char* name, Site site) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  bits = shuffle(mask, bits, source_lane, name, site);
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

}  // namespace zc::emu

template <typename T>
inline T __shfl_sync(unsigned mask, T x, int source, int width = 32,
                     zc::emu::Site site = zc::emu::Site::here()) {
  const unsigned lane = zc::emu::current->lane;
  const unsigned w = static_cast<unsigned>(width);
  return zc::emu::shuffle_as(mask, x, (lane & ~(w - 1)) | (static_cast<unsigned>(source) & (w - 1)),
                             "__shfl_sync", site);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32,
                        zc::emu::Site site = zc::emu::Site::here()) {
  const unsigned lane = zc::emu::current->lane;
  const bool inside = (lane & (static_cast<unsigned>(width) - 1)) >= delta;
  return zc::emu::shuffle_as(mask, x, inside ? lane - delta : lane, "__shfl_up_sync", site);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32,
                          zc::emu::Site site = zc::emu::Site::here()) {
  const unsigned lane = zc::emu::current->lane;
  const unsigned w = static_cast<unsigned>(width);
  const bool inside = (lane & (w - 1)) + delta < w;
  return zc::emu::shuffle_as(mask, x, inside ? lane + delta : lane, "__shfl_down_sync", site);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T x, int lane_mask, int width = 32,
                         zc::emu::Site site = zc::emu::Site::here()) {
  const unsigned lane = zc::emu::current->lane;
  const unsigned w = static_cast<unsigned>(width);
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  // Groups behind one's own cannot be read; those before it can.
  const bool inside = source / w <= lane / w;
  return zc::emu::shuffle_as(mask, x, inside ? source : lane, "__shfl_xor_sync", site);
}

// ---- votes and reductions ----

#define ZC_EMU_REDUCE(name, Result, T, bits, reduction)                                      \
  inline Result name(unsigned mask, T x, zc::emu::Site site = zc::emu::Site::here()) {       \
    return static_cast<Result>(zc::emu::reduce(mask, static_cast<uint32_t>(bits),            \
                                               zc::emu::Reduction::reduction, #name, site)); \
  }
ZC_EMU_REDUCE(__ballot_sync, unsigned, int, x != 0, kBallot)
ZC_EMU_REDUCE(__any_sync, int, int, x != 0, kOr)
ZC_EMU_REDUCE(__all_sync, int, int, x != 0, kAnd)
ZC_EMU_REDUCE(__reduce_add_sync, unsigned, unsigned, x, kAdd)
ZC_EMU_REDUCE(__reduce_add_sync, int, int, x, kAdd)
ZC_EMU_REDUCE(__reduce_min_sync, unsigned, unsigned, x, kMin)
ZC_EMU_REDUCE(__reduce_min_sync, int, int, x, kMinSigned)
ZC_EMU_REDUCE(__reduce_max_sync, unsigned, unsigned, x, kMax)
ZC_EMU_REDUCE(__reduce_max_sync, int, int, x, kMaxSigned)
ZC_EMU_REDUCE(__reduce_and_sync, unsigned, unsigned, x, kAnd)
ZC_EMU_REDUCE(__reduce_or_sync, unsigned, unsigned, x, kOr)
ZC_EMU_REDUCE(__reduce_xor_sync, unsigned, unsigned, x, kXor)
ZC_EMU_REDUCE(__match_any_sync, unsigned, unsigned, x, kMatch)
ZC_EMU_REDUCE(__match_any_sync, unsigned, int, x, kMatch)
ZC_EMU_REDUCE(__match_any_sync, unsigned, float, __builtin_bit_cast(uint32_t, x), kMatch)
#undef ZC_EMU_REDUCE

// ---- the rest ----

inline void __nanosleep(unsigned) { zc::emu::yield(); }
[[noreturn]] inline void __trap() { zc::emu::fail("__trap"); }
inline long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

namespace zc::simt {

// Two floats rounded to nearest, `lo` in the lower half. NaN becomes the canonical one.
inline uint32_t pack2(float lo, float hi, f16) {
  const auto bits = [](float x) -> uint32_t { return std::isnan(x) ? 0x7fff : to_f16(x).bits; };
  return bits(lo) | bits(hi) << 16;
}
inline uint32_t pack2(float lo, float hi, bf16) {
  const auto bits = [](float x) -> uint32_t { return std::isnan(x) ? 0x7fff : to_bf16(x).bits; };
  return bits(lo) | bits(hi) << 16;
}
// a + b of two pairs of elements, each rounded to nearest.
template <typename T>
uint32_t add_pairs(uint32_t a, uint32_t b, T) {
  const auto half = [](uint32_t pair, int i) {
    return to_float(T{static_cast<uint16_t>(pair >> 16 * i)});
  };
  return pack2(half(a, 0) + half(b, 0), half(a, 1) + half(b, 1), T{});
}
// a b of two pairs of elements, each rounded to nearest: float holds the product.
template <typename T>
uint32_t multiply_pairs(uint32_t a, uint32_t b, T) {
  const auto half = [](uint32_t pair, int i) {
    return to_float(T{static_cast<uint16_t>(pair >> 16 * i)});
  };
  return pack2(half(a, 0) * half(b, 0), half(a, 1) * half(b, 1), T{});
}
// 2^x. What is below the normal numbers is flushed to 0.
inline float ex2(float x) {
  const float y = exp2f(x);
  if (std::isnan(y)) return bits_to_float(0x7fffffffu);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint32_t select_bits(uint32_t mask, uint32_t x, uint32_t y) {
  return (x & mask) | (y & ~mask);
}
inline float rcp(float x) {
  const float y = 1.0f / (std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x);
  return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y;
}

}  // namespace zc::simt
