#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/error.h"

namespace zc {

// Element types of tensors. The numbers cross N-API (lib/native/addon.ts).
enum class DType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kI32 = 3, kU8 = 4, kI8 = 5 };

inline constexpr int kDTypeCount = 6;

// Inlined always: kernels call it, of which no instruction set may have a copy that others share.
[[gnu::always_inline]] inline size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
    case DType::kI8:
      return 1;
  }
  throw_internal("dtype_size: unknown dtype");
}

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
    case DType::kU8:
      return "u8";
    case DType::kI8:
      return "i8";
  }
  return "unknown";
}

}  // namespace zc
