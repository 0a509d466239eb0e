#pragma once

#include <cstdint>

#include "csrc/math/float16.h"

namespace zc {

// Keys of the experts of a row, whose unsigned order is that in which they are chosen: the largest
// rank first (a logit, or a corrected score), of equal ones the smaller expert; NaN behind all
// numbers. Never 0.
ZC_HD uint64_t expert_key(float rank, int32_t expert) {
  const uint32_t bits = float_to_bits(rank + 0.0f);  // -0 becomes 0, its equal
  const uint32_t order = rank != rank ? 0 : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{order} << 32 | ~static_cast<uint32_t>(expert);
}
ZC_HD int32_t expert_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

}  // namespace zc
