#pragma once

#include "csrc/cuda/kernel.h"

namespace zc::cuda {

// mixedAttention for every shape and dtype, one (row, head) a block, in float32 arithmetic.
void mixed_attention_any_shape(Context& context, const MixedAttentionArgs& args);

}  // namespace zc::cuda
