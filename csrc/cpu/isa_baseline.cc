// The CPU kernels for the compiler's default instruction set: the fallback, and the twin that the
// others are tested against.
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/kernel_deps.h"

#define ZC_ISA baseline
#define ZC_ISA_BACKEND kBaselineBackend
#include "csrc/cpu/kernels/all-inl.h"
