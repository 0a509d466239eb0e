#pragma once

#include "csrc/ops/backend.h"

namespace zc::cuda {

// Every op's launcher behind a function that does not throw.
extern const Backend kBackend;

// The op of an index in op_list.def, "flash_attention", for the message of a fault.
const char* op_name(int32_t index);

}  // namespace zc::cuda
