#pragma once

// Everything that the *-inl.h kernels use from outside. Included before an instruction set is
// switched on: a library template compiled for AVX2 could be the copy that the linker keeps for
// machines without it.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cstdlib>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "csrc/math/activation.h"
#include "csrc/math/dispatch.h"
#include "csrc/core/error.h"
#include "csrc/math/expert_key.h"
#include "csrc/math/float16.h"
#include "csrc/math/float4_weight.h"
#include "csrc/math/int4_weight.h"
#include "csrc/math/key_range.h"
#include "csrc/math/range_search.h"
#include "csrc/math/random.h"
#include "csrc/math/recurrence.h"
#include "csrc/math/rope.h"
#include "csrc/math/softmax_state.h"
#include "csrc/ops/backend.h"
#include "csrc/ops/kv_table.h"
#include "csrc/ops/state_table.h"
#include "csrc/core/thread_pool.h"
