#pragma once

#include "csrc/core/error.h"
#include "csrc/cuda/device/fault.h"

namespace zc::cuda {

// Clears a recorded fault and throws it as an error of its op; returns when there is none.
void throw_fault(Fault& fault);

}  // namespace zc::cuda
