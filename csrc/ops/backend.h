#pragma once

#include <cstdint>

#include "csrc/ops/op_args.h"

namespace zc {

class ThreadPool;
struct DeviceContext;

// What an op may use beside its arguments.
struct OpContext {
  ThreadPool* threads;              // of the CPU
  DeviceContext* device = nullptr;  // of a plugin (csrc/ops/plugin.h)
};

// What an op answers. Nothing throws across this boundary: a backend may live in another shared
// library.
struct OpStatus {
  int32_t code = 0;  // 0: done; otherwise 1 + the ErrorCode
  char message[508] = {};
  char op[32] = {};  // the op that is to blame, when it is not the one that was called
};

// One more with every change of the table, of an op's arguments or of what they mean: a plugin that
// was built before is refused.
inline constexpr uint32_t kBackendVersion = 15;

// A backend is a table of functions, one an op. Arguments were checked by csrc/ops/op_check.cc when
// the op was enqueued.
struct Backend {
  uint32_t version;
  const char* name;
#define ZC_OP(op, Args) void (*op)(const OpContext*, const Args*, OpStatus*);
#include "csrc/ops/op_list.def"
#undef ZC_OP
};

}  // namespace zc
