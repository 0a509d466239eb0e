#pragma once

#include "csrc/cuda/device/simt.h"

namespace zc::cuda {

// e^-|x| never overflows: sigmoid(x) = (x < 0 ? e^-|x| : 1) / (1 + e^-|x|).
ZC_DEVICE float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

}  // namespace zc::cuda
