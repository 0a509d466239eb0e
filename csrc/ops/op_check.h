#pragma once

#include "csrc/ops/op_args.h"

namespace zc {

// Shapes, dtypes and scalar ranges of an op's arguments, checked once, when the op is enqueued, for
// all backends. Each throws Error{kShape | kDtype | kArgument | kUnsupported} whose message names
// the argument, what it was and what it must be.
#define ZC_OP(op, Args) void check(const Args& args);
#include "csrc/ops/op_list.def"
#undef ZC_OP

}  // namespace zc
