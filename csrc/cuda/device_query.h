#pragma once

#include <cstdint>

#include "csrc/ops/plugin.h"

namespace zc::cuda {

// Devices that there are. Throws kDevice with the reason when there is none.
int32_t device_count();

// Fills in what is known of a device; throws kDevice when it cannot be used.
void query_device(int32_t ordinal, DeviceFacts* facts);

// Whether code for `architectures` runs on a device of compute capability `architecture` (10 major
// + minor). A list as CMake has it, "80;90a-real": machine code runs on later minors of its major,
// "a" code on exactly its own; without "-real" there is PTX too, which any later device compiles.
bool has_code_for(const char* architectures, int architecture);

}  // namespace zc::cuda
