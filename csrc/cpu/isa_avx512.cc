// The CPU kernels for AVX-512 (F, BW, VL, DQ, VNNI): as for AVX2 in eights, but for products of
// matrices, tiles and squares of pages, which take sixteen lanes (WideF in simd-inl.h).
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/kernel_deps.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif

#define ZC_ISA avx512
#define ZC_ISA_AVX2 1
#define ZC_ISA_AVX512 1
#define ZC_ISA_BACKEND kAvx512Backend
#include "csrc/cpu/kernels/all-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
