#pragma once

#include <string>

#include "csrc/ops/backend.h"

namespace zc::cpu {

// The instruction sets that the CPU kernels were compiled for, each a backend of its own.
extern const Backend kBaselineBackend;
#if defined(__x86_64__)
extern const Backend kAvx2Backend;
extern const Backend kAvx512Backend;
#elif defined(__aarch64__)
extern const Backend kNeonBackend;
#endif

// The best instruction set of this machine: "avx512", "avx2", "neon" or "baseline".
std::string best_isa();

// The backend of an instruction set, nullptr when it is unknown or this machine lacks it.
const Backend* find_backend(const std::string& isa);

// ", cpu:avx2, cpu:baseline": what Device names may follow "cpu" here.
std::string isa_list();

}  // namespace zc::cpu
