#pragma once

// CUDA's runtime, or the emulator's.
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "csrc/emu/runtime.h"
#endif
