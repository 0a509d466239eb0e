#pragma once

#include "csrc/cuda/device/simt.h"
#include "csrc/math/float16.h"

namespace zc::cuda {

// An integer whose unsigned order is the order of floats; never 0 but for NaN. An integer maximum
// over blocks is exact in any order, and atomics have it.
ZC_DEVICE uint32_t order_key(float x) {
  const uint32_t bits = float_to_bits(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
ZC_DEVICE float from_order_key(uint32_t key) {
  return bits_to_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

}  // namespace zc::cuda
