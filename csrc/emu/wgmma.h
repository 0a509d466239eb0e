#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "csrc/emu/site.h"
#include "csrc/math/float16.h"

// Products of a warpgroup, four warps, whose operands lie in shared memory: wgmma, under the names
// of csrc/cuda/device/hardware.h.
namespace zc::emu {

// One lane's call.
struct WgmmaCall {
  float* d;           // n / 2 sums
  const uint32_t* a;  // its part of A, null when A lies in shared memory
  uint64_t a_descriptor;
  uint64_t b_descriptor;
  int n;
  bool accumulates;
  bool transposes_a;
  bool transposes_b;
  bool is_bf16;
};

// A product of a warpgroup, computed at once or when the first lane waits for it.
struct WgmmaProduct {
  WgmmaCall call;  // of lane 0
  bool is_late;
  uint32_t a[128][4];
  std::vector<float> values;  // (64, n), empty until computed
};

struct Warpgroup {
  int arrived;
  const WgmmaCall* calls[128];
  uint32_t waiting[4];
  std::shared_ptr<WgmmaProduct> issued;  // the last one
};

// What one thread has issued and not waited for.
struct WgmmaQueue {
  struct Entry {
    std::shared_ptr<WgmmaProduct> product;
    float* d;
    std::vector<float> hidden;  // d as it was, while the registers hold NaN
  };
  std::vector<Entry> entries;
  std::vector<size_t> group_ends;
  bool is_fenced = false;
};

void wgmma(const WgmmaCall& call, Site site);
void wait_wgmma(size_t n_groups);

struct Thread;
// Throws kInternal for products that a thread never waited for.
void check_wgmma(const Thread& thread);

}  // namespace zc::emu

namespace zc::simt {

void wgmma_fence();
void wgmma_commit();
template <int N>
void wgmma_wait() {
  emu::wait_wgmma(N);
}

template <bool kTransposesA, bool kTransposesB, int kSums, typename T>
void wgmma_m64k16(float (&d)[kSums], uint64_t a, uint64_t b, bool accumulates, T,
                  emu::Site site = emu::Site::here()) {
  emu::wgmma({d, nullptr, a, b, 2 * kSums, accumulates, kTransposesA, kTransposesB,
              std::is_same_v<T, bf16>},
             site);
}
template <bool kTransposesB, int kSums, typename T>
void wgmma_m64k16(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b, bool accumulates, T,
                  emu::Site site = emu::Site::here()) {
  emu::wgmma({d, a, 0, b, 2 * kSums, accumulates, false, kTransposesB, std::is_same_v<T, bf16>},
             site);
}

// Registers are memory here, which the compiler sees change.
template <int N>
void wgmma_keep(float (&)[N]) {}
template <int N, int M>
void wgmma_keep(uint32_t (&)[N][M]) {}

// The number of registers is the hardware's affair.
template <int kRegisters>
void setmaxnreg_inc() {}
template <int kRegisters>
void setmaxnreg_dec() {}

}  // namespace zc::simt
