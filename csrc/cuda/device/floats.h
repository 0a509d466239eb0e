#pragma once

#include "csrc/core/dtype.h"
#include "csrc/cuda/device/simt.h"
#include "csrc/math/float16.h"

// Elements of a dtype that is known at run time only: for ops that wait for memory or for their
// launch, where a kernel for each dtype would buy nothing.
namespace zc::cuda {

// Element i of f32, f16 or bf16 data.
ZC_DEVICE float load_float(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  return dtype == DType::kF16 ? to_float(static_cast<const f16*>(data)[i])
                              : to_float(static_cast<const bf16*>(data)[i]);
}

ZC_DEVICE void store_float(void* data, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32)
    static_cast<float*>(data)[i] = x;
  else if (dtype == DType::kF16)
    static_cast<f16*>(data)[i] = from_float<f16>(x);
  else
    static_cast<bf16*>(data)[i] = to_bf16(x);
}

// x as the dtype holds it.
ZC_DEVICE float round_float(DType dtype, float x) {
  if (dtype == DType::kF32) return x;
  return dtype == DType::kF16 ? to_float(from_float<f16>(x)) : to_float(to_bf16(x));
}

}  // namespace zc::cuda
