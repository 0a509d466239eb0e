#pragma once

#include "csrc/cuda/kernel.h"

namespace zc::cuda {

// The launcher of every op: enqueues its kernels on the context's stream. Arguments were checked by
// csrc/ops/op_check.cc; tensors are device memory, which a launcher cannot read.
#define ZC_OP(op, Args) void op(Context& context, const Args& args);
#include "csrc/ops/op_list.def"
#undef ZC_OP

}  // namespace zc::cuda
