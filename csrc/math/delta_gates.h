#pragma once

#include <cmath>

#include "csrc/math/hd.h"

// What one row says to the state of a value head (Gated DeltaNet, arXiv 2412.06464).
namespace zc {

struct DeltaGates {
  float keep;   // alpha, multiplies the state
  float write;  // beta, how much of the new value is written
};

// log(1 + e^x); x itself above 20, as torch has it.
ZC_HD float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

ZC_HD DeltaGates delta_gates(float decay, float decay_bias, float decay_log, float beta) {
  // e^-|beta| never overflows.
  const float e = expf(-fabsf(beta));
  return {expf(-expf(decay_log) * softplus(decay + decay_bias)),
          (beta < 0.0f ? e : 1.0f) / (1.0f + e)};
}

// Keys and queries are divided by their length: 1 over it, of the sum of squares.
ZC_HD float delta_norm(float sum_of_squares) { return 1.0f / sqrtf(sum_of_squares + 1e-6f); }

}  // namespace zc
