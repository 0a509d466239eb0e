#pragma once

#include <cstddef>
#include <tuple>

#include "csrc/emu/vector_types.h"

namespace zc::emu {

// Runs all blocks of a grid and returns when they have ended. Blocks come in settings().schedule's
// order, n_host_threads at a time. Throws what the first block to fail threw.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*invoke)(void*), void* kernel);

}  // namespace zc::emu

namespace zc::simt {

// kernel<<<grid, block, shared_bytes>>>(args...), to its end.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
  };
  Call call{kernel, std::tuple<Params...>(static_cast<Params>(args)...)};
  emu::run_grid(
      grid, block, shared_bytes,
      [](void* p) {
        Call* c = static_cast<Call*>(p);
        std::apply(c->kernel, c->args);
      },
      &call);
}

}  // namespace zc::simt
