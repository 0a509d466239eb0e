#pragma once

// What kernels are written with, for compilers other than nvcc: CUDA's names and the wrappers of
// csrc/cuda/device/hardware.h, run on the CPU with one fiber for each CUDA thread.
#include "csrc/emu/atomics.h"
#include "csrc/emu/bank_conflicts.h"
#include "csrc/emu/builtins.h"
#include "csrc/emu/copy.h"
#include "csrc/emu/early.h"
#include "csrc/emu/fragment.h"
#include "csrc/emu/grid.h"
#include "csrc/emu/intrinsics.h"
#include "csrc/emu/mbarrier.h"
#include "csrc/emu/proxy.h"
#include "csrc/emu/qualifiers.h"
#include "csrc/emu/shared_memory.h"
#include "csrc/emu/tensor_map.h"
#include "csrc/emu/vector_types.h"
#include "csrc/emu/wgmma.h"
#include "csrc/emu/whole.h"
