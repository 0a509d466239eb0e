#pragma once

#include "csrc/emu/vector_types.h"

// Words that blocks leave for each other without a fence, under the names of
// csrc/cuda/device/hardware.h.
namespace zc::simt {

void store_whole(uint4* to, const uint4& x);

// Stores are seen when the hardware likes: where asynchronous copies are late, a thread that asks
// for a word for the first time finds the zeros that were there before.
uint4 load_whole(const uint4* from);

}  // namespace zc::simt
