#include "csrc/cuda/fault.h"

#include "csrc/cuda/op_table.h"

namespace zc::cuda {

namespace {

const char* message_of(FaultReason reason) {
  switch (reason) {
#define ZC_FAULT(name, message) \
  case FaultReason::name:       \
    return message;
#include "csrc/cuda/device/fault_list.def"
#undef ZC_FAULT
    case FaultReason::kNone:
      break;
  }
  return "device: a kernel reported an unknown fault";
}

ErrorCode code_of(FaultReason reason) {
  return reason == FaultReason::kSegmentFloats || reason == FaultReason::kGroup
             ? ErrorCode::kUnsupported
             : ErrorCode::kArgument;
}

}  // namespace

void throw_fault(Fault& fault) {
  const Fault found = fault;
  fault = Fault{};
  if (found.reason == 0) return;
  const int64_t* v = found.values;
  char text[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
  std::snprintf(text, sizeof(text), message_of(static_cast<FaultReason>(found.reason)),
                static_cast<long long>(v[0]), static_cast<long long>(v[1]),
                static_cast<long long>(v[2]), static_cast<long long>(v[3]));
#pragma GCC diagnostic pop
  throw Error(code_of(static_cast<FaultReason>(found.reason)), text, op_name(found.op));
}

}  // namespace zc::cuda
