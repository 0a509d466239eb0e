#pragma once

#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/emu/grid.h"
#include "csrc/emu/site.h"
#include "csrc/emu/vector_types.h"

// Kernels that begin before those in front of them have ended (programmatic dependent launch), as
// early as CUDA allows, and before a copy in front of them, too, which CUDA would let end: what
// such a kernel touches of theirs before it waits for them it finds unwritten, and what it writes
// they find there.
namespace zc::emu {

struct Block;

// A grid that was launched to begin early, on the host thread that made it.
class EarlyGrid {
 public:
  EarlyGrid(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel);
  ~EarlyGrid();
  EarlyGrid(const EarlyGrid&) = delete;
  EarlyGrid& operator=(const EarlyGrid&) = delete;

  // Runs the first blocks until their threads wait for the kernels before.
  void begin();
  // Runs all that is left, those kernels having ended. Throws what the first block to fail threw;
  // a thread that ends without having waited fails.
  void finish();

 private:
  dim3 grid_;
  dim3 block_;
  size_t shared_bytes_;
  std::function<void()> kernel_;
  std::vector<std::unique_ptr<Block>> begun_;
};

// What a stream runs: `run`, or for a kernel that was launched early what `make` makes.
struct Work {
  std::function<void()> run;
  std::function<std::unique_ptr<EarlyGrid>()> make;
};

// Runs works one after the other, each with those behind it begun that were launched early.
class WorkRunner {
 public:
  // next(i): the i-th work behind this one, which will be run next but i; null: none that is known.
  void run(const Work& work, const std::function<const Work*(size_t)>& next);

 private:
  std::vector<std::unique_ptr<EarlyGrid>> begun_;  // of the works that come next, in order
};

// kernel<<<grid, block, shared_bytes>>>(args...), launched early.
template <typename... Params, typename... Args>
Work early_work(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                Args&&... args) {
  return {{}, [=, values = std::tuple<Params...>(static_cast<Params>(args)...)] {
            return std::make_unique<EarlyGrid>(grid, block, shared_bytes,
                                               [=] { std::apply(kernel, values); });
          }};
}

}  // namespace zc::emu

namespace zc::simt {

inline void let_next_begin() {}
void wait_for_kernels_before(emu::Site site = emu::Site::here());

}  // namespace zc::simt
