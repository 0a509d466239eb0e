#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>

#include "csrc/emu/vector_types.h"

namespace zc::emu {

struct Block;

// Numbers the blocks of a grid as settings().schedule asks: a permutation of 0 to n - 1.
class BlockOrder {
 public:
  explicit BlockOrder(uint64_t n);
  uint64_t operator()(uint64_t i) const;

 private:
  uint64_t n_;
  uint64_t factor_ = 1;
  uint64_t offset_ = 0;
};

// Throws kInternal for a launch that CUDA would refuse.
void check_launch(dim3 grid, dim3 block);

// Runs a block to its end and counts what it did.
void finish_block(Block& block, const std::function<void()>& run);

// How a grid is run: whether it was launched to begin early, and how many of its blocks have.
struct Launch {
  bool is_early = false;
  uint64_t n_begun = 0;
};

// Runs the blocks of a grid and returns when they have ended. Blocks come in the schedule's order,
// n_host_threads at a time. Throws what the first block to fail threw.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*invoke)(void*), void* kernel,
              Launch launch = {});

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
