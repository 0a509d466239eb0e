#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "csrc/math/float16.h"

// Copies of boxes of a tensor and products of a warpgroup, as sm_90a has them; csrc/emu/wgmma.h and
// csrc/emu/tensor_map.h are their twins. Part of csrc/cuda/device/hardware.h.
namespace zc::simt {

using TensorMap = CUtensorMap;

// The box that begins at these coordinates, innermost first, to shared memory, its bytes counted on
// the barrier. What lies outside of the tensor is zero. For one thread.
ZC_DEVICE void tma_load_3d(uint32_t to, const TensorMap* map, uint32_t barrier, int c0, int c1,
                           int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

// Gives registers to the warps of a warpgroup, or takes them: kRegisters each thread from here on.
template <int kRegisters>
ZC_DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
ZC_DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The compiler moves nothing that computes these registers, or uses them, past this: what it knows
// of a product is that it reads and writes registers at once.
template <int N>
ZC_DEVICE void wgmma_keep(float (&x)[N]) {
  ZC_UNROLL for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N, int M>
ZC_DEVICE void wgmma_keep(uint32_t (&x)[N][M]) {
  ZC_UNROLL for (int i = 0; i < N; ++i)
      ZC_UNROLL for (int j = 0; j < M; ++j) asm volatile("" : "+r"(x[i][j])::"memory");
}

// d (64, N) = a (64, 16) b (16, N), added to d if `accumulates`; N = 2 kSums. d[4 j + e] of a
// thread of warp w is row 16 w + g + 8 (e / 2), column 8 j + 2 t + e % 2. a and b are descriptors
// of operands in shared memory, or a is the A fragment of mma_m16n8k16, of the warp's 16 rows.
// Operands lie with the 16 along their rows, transposed ones with the 64 or N.
// Between wgmma_fence and wgmma_commit; nothing may touch d before wgmma_wait.
#define ZC_TEN(t) \
  "%" t "0, %" t "1, %" t "2, %" t "3, %" t "4, %" t "5, %" t "6, %" t "7, %" t "8, %" t "9, "
#define ZC_SUMS8(d, i)                                                                  \
  "+f"((d)[i]), "+f"((d)[i + 1]), "+f"((d)[i + 2]), "+f"((d)[i + 3]), "+f"((d)[i + 4]), \
      "+f"((d)[i + 5]), "+f"((d)[i + 6]), "+f"((d)[i + 7])
#define ZC_SUMS32(d, i) ZC_SUMS8(d, i), ZC_SUMS8(d, i + 8), ZC_SUMS8(d, i + 16), ZC_SUMS8(d, i + 24)
#define ZC_REGISTERS_32 ZC_TEN("") ZC_TEN("1") ZC_TEN("2") "%30, %31"
#define ZC_REGISTERS_60 ZC_TEN("") ZC_TEN("1") ZC_TEN("2") ZC_TEN("3") ZC_TEN("4") ZC_TEN("5")
#define ZC_REGISTERS_64 ZC_REGISTERS_60 "%60, %61, %62, %63"
#define ZC_REGISTERS_90 ZC_REGISTERS_60 ZC_TEN("6") ZC_TEN("7") ZC_TEN("8")
#define ZC_REGISTERS_120 ZC_REGISTERS_90 ZC_TEN("9") ZC_TEN("10") ZC_TEN("11")
#define ZC_REGISTERS_128 ZC_REGISTERS_120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define ZC_OPERANDS_32(d) ZC_SUMS32(d, 0)
#define ZC_OPERANDS_64(d) ZC_SUMS32(d, 0), ZC_SUMS32(d, 32)
#define ZC_OPERANDS_128(d) ZC_SUMS32(d, 0), ZC_SUMS32(d, 32), ZC_SUMS32(d, 64), ZC_SUMS32(d, 96)

// N, the number of sums, the dtype, and the numbers of the asm's further operands.
#define ZC_WGMMA_SHARED(N, SUMS, DTYPE, A, B, SCALE, TA, TB)                                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" SCALE                                    \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" N "k16.f32." DTYPE "." DTYPE        \
               " {" ZC_REGISTERS_##SUMS "}, %" A ", %" B ", p, 1, 1, %" TA ", %" TB ";\n}"   \
               : ZC_OPERANDS_##SUMS(d)                                                       \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)), "n"(int{kTransposesA}), \
                 "n"(int{kTransposesB}))
#define ZC_WGMMA_REGISTERS(N, SUMS, DTYPE, A0, A1, A2, A3, B, SCALE, TB)               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" SCALE                              \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" N "k16.f32." DTYPE "." DTYPE  \
               " {" ZC_REGISTERS_##SUMS "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B \
                                        ", p, 1, 1, %" TB ";\n}"                       \
               : ZC_OPERANDS_##SUMS(d)                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                   \
                 "r"(static_cast<int>(accumulates)), "n"(int{kTransposesB}))

template <bool kTransposesA, bool kTransposesB, int kSums, typename T>
ZC_DEVICE void wgmma_m64k16(float (&d)[kSums], uint64_t a, uint64_t b, bool accumulates, T) {
  static_assert(kSums == 32 || kSums == 64 || kSums == 128);
  constexpr bool kBF16 = std::is_same_v<T, bf16>;
  if constexpr (kSums == 32 && kBF16)
    ZC_WGMMA_SHARED("64", 32, "bf16", "32", "33", "34", "35", "36");
  else if constexpr (kSums == 32)
    ZC_WGMMA_SHARED("64", 32, "f16", "32", "33", "34", "35", "36");
  else if constexpr (kSums == 64 && kBF16)
    ZC_WGMMA_SHARED("128", 64, "bf16", "64", "65", "66", "67", "68");
  else if constexpr (kSums == 64)
    ZC_WGMMA_SHARED("128", 64, "f16", "64", "65", "66", "67", "68");
  else if constexpr (kBF16)
    ZC_WGMMA_SHARED("256", 128, "bf16", "128", "129", "130", "131", "132");
  else
    ZC_WGMMA_SHARED("256", 128, "f16", "128", "129", "130", "131", "132");
}
template <bool kTransposesB, int kSums, typename T>
ZC_DEVICE void wgmma_m64k16(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b, bool accumulates,
                            T) {
  static_assert(kSums == 32 || kSums == 64 || kSums == 128);
  constexpr bool kBF16 = std::is_same_v<T, bf16>;
  if constexpr (kSums == 32 && kBF16)
    ZC_WGMMA_REGISTERS("64", 32, "bf16", "32", "33", "34", "35", "36", "37", "38");
  else if constexpr (kSums == 32)
    ZC_WGMMA_REGISTERS("64", 32, "f16", "32", "33", "34", "35", "36", "37", "38");
  else if constexpr (kSums == 64 && kBF16)
    ZC_WGMMA_REGISTERS("128", 64, "bf16", "64", "65", "66", "67", "68", "69", "70");
  else if constexpr (kSums == 64)
    ZC_WGMMA_REGISTERS("128", 64, "f16", "64", "65", "66", "67", "68", "69", "70");
  else if constexpr (kBF16)
    ZC_WGMMA_REGISTERS("256", 128, "bf16", "128", "129", "130", "131", "132", "133", "134");
  else
    ZC_WGMMA_REGISTERS("256", 128, "f16", "128", "129", "130", "131", "132", "133", "134");
}

#undef ZC_TEN
#undef ZC_SUMS8
#undef ZC_SUMS32
#undef ZC_REGISTERS_32
#undef ZC_REGISTERS_60
#undef ZC_REGISTERS_64
#undef ZC_REGISTERS_90
#undef ZC_REGISTERS_120
#undef ZC_REGISTERS_128
#undef ZC_OPERANDS_32
#undef ZC_OPERANDS_64
#undef ZC_OPERANDS_128
#undef ZC_WGMMA_SHARED
#undef ZC_WGMMA_REGISTERS

}  // namespace zc::simt
