#pragma once

#include <cstdint>

#include "csrc/cuda/kernel.h"

namespace zc::cuda {

// Enqueues copying `bytes` bytes from device memory to `to`, and the context's fault to `fault`,
// both in pinned host memory, and clearing the fault: what a wait gives to the host, in one launch.
void publish(Context& context, void* to, const void* from, int64_t bytes, Fault* fault);

}  // namespace zc::cuda
