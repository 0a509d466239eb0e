// The CPU kernels for AVX2 with FMA and F16C.
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/kernel_deps.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define ZC_ISA avx2
#define ZC_ISA_AVX2 1
#define ZC_ISA_BACKEND kAvx2Backend
#include "csrc/cpu/kernels/all-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
