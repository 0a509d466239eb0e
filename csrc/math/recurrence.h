#pragma once

#include <cmath>

#include "csrc/math/hd.h"

// What one row says to the state of a head.
namespace zc {

// log(1 + e^x); x itself above 20, as torch has it.
ZC_HD float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// Of the gated delta rule (Gated DeltaNet, arXiv 2412.06464).
struct DeltaGates {
  float keep;   // alpha, multiplies the state
  float write;  // beta, how much of the new value is written
};

ZC_HD DeltaGates delta_gates(float decay, float decay_bias, float decay_log, float beta) {
  // e^-|beta| never overflows.
  const float e = expf(-fabsf(beta));
  return {expf(-expf(decay_log) * softplus(decay + decay_bias)),
          (beta < 0.0f ? e : 1.0f) / (1.0f + e)};
}

// Keys and queries are divided by their length: 1 over it, of the sum of squares.
ZC_HD float delta_norm(float sum_of_squares) { return 1.0f / sqrtf(sum_of_squares + 1e-6f); }

// Of a selective scan (Mamba 2, arXiv 2405.21060).
struct ScanGates {
  float keep;   // e^(-A dt), multiplies the state
  float write;  // dt, multiplies the new input
};

ZC_HD ScanGates scan_gates(float step, float step_bias, float decay_log) {
  const float dt = softplus(step + step_bias);
  return {expf(-expf(decay_log) * dt), dt};
}

}  // namespace zc
