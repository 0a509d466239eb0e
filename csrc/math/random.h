#pragma once

#include <cstdint>

#include "csrc/math/hd.h"

namespace zc {

// Counter-based uniform number in [0, 1): the (counter + 1)-th output of splitmix64 seeded with
// `seed`. lib/random.ts has the same function.
ZC_HD float uniform(uint64_t seed, uint32_t counter) {
  uint64_t z = seed + (static_cast<uint64_t>(counter) + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-24f;
}

}  // namespace zc
