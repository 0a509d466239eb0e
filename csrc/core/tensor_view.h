#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "csrc/core/dtype.h"

namespace zc {

inline constexpr int kMaxRank = 4;

// A row-major block of device memory as the ops see it: an address, a type and a shape.
// Owns nothing; the queue keeps the storage alive for as long as a view of it is in flight.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};  // entries at and after `rank` are 1

  bool defined() const { return rank > 0; }
  int64_t size(int axis) const { return shape[static_cast<size_t>(axis)]; }
  int64_t length() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[static_cast<size_t>(i)];
    return n;
  }
  int64_t size_bytes() const { return length() * static_cast<int64_t>(dtype_size(dtype)); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// "(3, 4, 64)", for messages.
inline std::string shape_text(const TensorView& t) {
  std::string text = "(";
  for (int i = 0; i < t.rank; ++i) {
    if (i) text += ", ";
    text += std::to_string(t.size(i));
  }
  return text + ")";
}

}  // namespace zc
