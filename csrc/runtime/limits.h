#pragma once

#include <cstdint>

// What of the machine this process may use.
namespace zc {

// Physical memory, or what the process's control group or one around it is limited to.
int64_t usable_memory_bytes();

// Processors that threads of this process are spread over: those it may run on, but no more than
// the time that control groups grant is worth. More threads than that would all be stopped together
// for the rest of each period.
int usable_processors();

}  // namespace zc
