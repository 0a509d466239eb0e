#pragma once

// What kernels are written with: CUDA's own names for threads, barriers, shuffles and votes, and
// zc::simt for the instructions that have no portable spelling. nvcc gives them to the hardware;
// any other compiler runs the same kernels on the CPU (csrc/emu).
#if defined(__CUDACC__)
#include "csrc/cuda/device/hardware.h"
#else
#include "csrc/emu/simt.h"
#endif
