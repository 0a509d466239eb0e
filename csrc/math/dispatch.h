#pragma once

#include "csrc/core/dtype.h"
#include "csrc/math/float16.h"

namespace zc {

// A C++ type carried as a value, for generic lambdas.
template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the element type of a floating dtype.
template <typename F>
decltype(auto) dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(Type<float>{});
    case DType::kF16:
      return f(Type<f16>{});
    case DType::kBF16:
      return f(Type<bf16>{});
    default:
      throw Error(ErrorCode::kDtype,
                  format("dtype is %s, expected f32, f16 or bf16", dtype_name(dtype)));
  }
}

}  // namespace zc
