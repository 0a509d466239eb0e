#pragma once

#include <cstdint>

#include "csrc/ops/op_args.h"

namespace zc {

class ThreadPool;

// What an op may use beside its arguments.
struct OpContext {
  ThreadPool* threads;
};

// What an op answers. Nothing throws across this boundary: a backend may live in another shared
// library.
struct OpStatus {
  int32_t code = 0;  // 0: done; otherwise 1 + the ErrorCode
  char message[252] = {};
};

inline constexpr uint32_t kBackendVersion = 1;

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
