#pragma once

#include <cstdint>
#include <initializer_list>

#include "csrc/cuda/kernel.h"
#include "csrc/ops/kv_table.h"

namespace zc::cuda {

// Whether `data` begins at a multiple of `bytes`.
inline bool is_aligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Pages are read in vectors of 16 bytes, so a pool must begin where one of its units may.
inline void check_pool(const TensorView& pool) {
  ZC_CHECK(is_aligned(pool.data, kPageUnitBytes), ErrorCode::kArgument,
           "pool: begins at an address that is no multiple of %d", kPageUnitBytes);
}

// Runs body(scratch) with views that begin at multiples of 16 bytes, as kernels that move 16 bytes
// at a time need them. Tensors of their own do; a view of a part may not. Where one does not, the
// view is pointed at a copy in scratch memory for as long as body enqueues, and an output's copy is
// copied back. `scratch` is the context's, scratch_bytes of it, aligned to 256.
template <typename Body>
void with_aligned(Context& context, std::initializer_list<TensorView*> inputs,
                  std::initializer_list<TensorView*> outputs, int64_t scratch_bytes,
                  const Body& body) {
  const auto misaligned = [](const TensorView& t) {
    return !is_aligned(t.data, 16) && t.length() > 0;
  };
  const auto padded = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  int64_t total = padded(scratch_bytes);
  for (const TensorView* t : inputs)
    if (misaligned(*t)) total += padded(t->size_bytes());
  for (const TensorView* t : outputs)
    if (misaligned(*t)) total += padded(t->size_bytes());
  uint8_t* const scratch = total > 0 ? static_cast<uint8_t*>(context.scratch(total)) : nullptr;

  uint8_t* next = scratch + padded(scratch_bytes);
  for (TensorView* t : inputs) {
    if (!misaligned(*t)) continue;
    context.copy(next, t->data, t->size_bytes());
    t->data = next;
    next += padded(t->size_bytes());
  }
  struct Copied {
    void* original;
    TensorView* view;
  };
  Copied copied[4];
  int n_copied = 0;
  ZC_CHECK(outputs.size() <= 4, ErrorCode::kInternal, "device: %d outputs, expected at most 4",
           static_cast<int>(outputs.size()));
  for (TensorView* t : outputs) {
    if (!misaligned(*t)) continue;
    copied[n_copied++] = {t->data, t};
    t->data = next;
    next += padded(t->size_bytes());
  }
  body(scratch);
  for (int i = 0; i < n_copied; ++i)
    context.copy(copied[i].original, copied[i].view->data, copied[i].view->size_bytes());
}

}  // namespace zc::cuda
