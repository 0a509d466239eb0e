#include "csrc/cpu/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace zc::cpu {

namespace {

// An instruction set under its name.
struct Isa {
  const char* name;
  const Backend* backend;
  bool present;  // on this machine
};

#if defined(__x86_64__)
// Half conversion, asked of the processor: older Clangs have no name for it. Whether the system
// keeps the registers is in what it says of AVX2.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Whether the units are 512 bits wide, as AMD's processors say of themselves from Zen 5 on (AMD64
// Architecture Programmer's Manual 3, CPUID Fn8000_001A, FP512).
bool has_wide_units() {
  unsigned a, b, c, d;
  return __get_cpuid(0x8000001a, &a, &b, &c, &d) != 0 && (a & 1u << 3) != 0;
}
#endif

// Best first. AVX-512 is behind AVX2, to be asked for by name, unless it is known to be faster here
// (docs/decisions.md). A function, not a constant: __builtin_cpu_supports asks at run time.
template <typename F>
void each_isa(const F& f) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (has_wide_units()) f(Isa{"avx512", &kAvx512Backend, avx512});
  f(Isa{"avx2", &kAvx2Backend, avx2});
  if (!has_wide_units()) f(Isa{"avx512", &kAvx512Backend, avx512});
#elif defined(__aarch64__)
  f(Isa{"neon", &kNeonBackend, true});
#endif
  f(Isa{"baseline", &kBaselineBackend, true});
}

}  // namespace

std::string best_isa() {
  std::string best;
  each_isa([&](const Isa& isa) {
    if (best.empty() && isa.present) best = isa.name;
  });
  return best;
}

const Backend* find_backend(const std::string& name) {
  const Backend* found = nullptr;
  each_isa([&](const Isa& isa) {
    if (isa.present && isa.name == name) found = isa.backend;
  });
  return found;
}

std::string isa_list() {
  std::string list;
  each_isa([&](const Isa& isa) {
    if (isa.present) list += std::string(", cpu:") + isa.name;
  });
  return list;
}

}  // namespace zc::cpu
