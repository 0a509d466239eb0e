#pragma once

#include "csrc/math/hd.h"

namespace zc {

// One rotated pair of the half-split convention (Hugging Face rotate_half):
// (x[i], x[i + d/2]) turned by the angle whose cosine and sine are given.
struct RopePair {
  float first;
  float second;
};

ZC_HD RopePair rope_rotate(float first, float second, float cos, float sin) {
  return {first * cos - second * sin, second * cos + first * sin};
}

}  // namespace zc
