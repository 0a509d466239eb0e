// The CPU kernels for NEON as every 64-bit ARM has it, with FMA and half conversion.
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/kernel_deps.h"

#if defined(__aarch64__)
#define ZC_ISA neon
#define ZC_ISA_NEON 1
#define ZC_ISA_BACKEND kNeonBackend
#include "csrc/cpu/kernels/all-inl.h"
#endif
