#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
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

// A product that was issued and has not been computed.
struct PendingWgmma {
  WgmmaCall calls[128];
  uint32_t a[128][4];
  std::vector<float> hidden;  // the sums as they were, while the registers hold NaN
};

struct Warpgroup {
  int arrived;
  void* arguments[128];
  uint32_t waiting[4];
  std::deque<std::unique_ptr<PendingWgmma>> pending;
  uint64_t n_issued;
  uint64_t n_done;
};

// One thread's: how many products had been issued at each commit.
struct WgmmaGroups {
  std::vector<uint64_t> ends;
  bool is_fenced = false;
};

void wgmma(const WgmmaCall& call, Site site);
void wait_wgmma(size_t n_groups);

struct Block;
// Throws kInternal for products that nobody waited for.
void check_wgmma(const Block& block);

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
