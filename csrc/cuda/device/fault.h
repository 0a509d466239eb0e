#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"

// What a kernel finds wrong in its data: page tables, ids and lengths lie in device memory, where
// no check on the host sees them. A kernel that meets such data skips what it cannot address and
// records the fault; the first one since the last wait is reported by that wait.
namespace zc::cuda {

enum class FaultReason : int32_t {
  kNone = 0,
#define ZC_FAULT(name, message) name,
#include "csrc/cuda/device/fault_list.def"
#undef ZC_FAULT
};

inline constexpr int kFaultValues = 4;

struct Fault {
  int32_t reason;  // FaultReason, written first and by one thread only
  int32_t op;      // index in op_list.def
  int64_t values[kFaultValues];
};

// Where the kernels of one op report. Passed to them by value.
struct FaultSink {
  Fault* fault;
  int32_t op;
};

// Records the fault unless one is recorded already. Returns `good`.
ZC_DEVICE bool check_data(const FaultSink& sink, bool good, FaultReason reason, int64_t v0 = 0,
                          int64_t v1 = 0, int64_t v2 = 0, int64_t v3 = 0) {
  if (good) [[likely]]
    return true;
  if (atomicCAS(&sink.fault->reason, 0, static_cast<int32_t>(reason)) == 0) {
    sink.fault->op = sink.op;
    sink.fault->values[0] = v0;
    sink.fault->values[1] = v1;
    sink.fault->values[2] = v2;
    sink.fault->values[3] = v3;
  }
  return false;
}

}  // namespace zc::cuda
