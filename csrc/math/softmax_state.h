#pragma once

#include <cmath>

#include "csrc/math/hd.h"

namespace zc {

// Weights that merge two attention states with log-sum-exps a and b (natural log): o = wa*oa +
// wb*ob. -inf marks a state that saw no key.
struct MergeWeights {
  float a;
  float b;
  float lse;
};

ZC_HD MergeWeights merge_weights(float a, float b) {
  const float m = a > b ? a : b;
  if (m == -INFINITY) return {0.0f, 0.0f, -INFINITY};
  const float ea = expf(a - m);
  const float eb = expf(b - m);
  const float sum = ea + eb;
  return {ea / sum, eb / sum, m + logf(sum)};
}

}  // namespace zc
