#include "csrc/cpu/dispatch.h"

namespace zc::cpu {

namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

}  // namespace

std::string best_isa() { return has_avx2() ? "avx2" : "baseline"; }

const Backend* find_backend(const std::string& isa) {
  if (isa == "baseline") return &kBaselineBackend;
#if defined(__x86_64__)
  if (isa == "avx2" && has_avx2()) return &kAvx2Backend;
#endif
  return nullptr;
}

std::string isa_list() { return has_avx2() ? ", cpu:avx2, cpu:baseline" : ", cpu:baseline"; }

}  // namespace zc::cpu
