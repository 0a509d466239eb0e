#include "csrc/emu/early.h"

#include <algorithm>

#include "csrc/emu/block.h"
#include "csrc/emu/scheduler.h"

namespace zc::emu {

namespace {

// Blocks that begin early, of each of the kernels behind the one that runs. The third kernel may
// begin while the first still runs, when the second has let it.
constexpr uint64_t kEarlyBlocks = 2;
constexpr size_t kEarlyKernels = 2;

// ThreadSanitizer knows 8,128 contexts in all, of which the block that runs grids may have 2,100:
// there so many threads begin early at a time, and so many contexts are kept.
constexpr uint64_t kMostEarlyThreads = tsan::kOn ? 1536 : ~uint64_t{0};
constexpr uint64_t kMostIdleContexts = 4096;
thread_local uint64_t early_threads = 0;

uint64_t threads_of(dim3 block) { return uint64_t{block.x} * block.y * block.z; }

// Blocks of this host thread that hold nothing. Their stacks and contexts, which ThreadSanitizer
// takes long to make, are used again, for as many threads: none keeps more of them than it needs.
class IdleBlocks {
 public:
  // The one that waited longest: what it ran before is no neighbour of what it runs next.
  std::unique_ptr<Block> take(uint64_t n_threads) {
    const auto found = std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& block) {
      return block->n_threads == n_threads;
    });
    if (found == blocks_.end()) return std::make_unique<Block>(1);
    std::unique_ptr<Block> block = std::move(*found);
    blocks_.erase(found);
    n_contexts_ -= block->n_contexts();
    return block;
  }

  void give(std::unique_ptr<Block> block) {
    n_contexts_ += block->n_contexts();
    blocks_.push_back(std::move(block));
    for (; n_contexts_ > kMostIdleContexts; blocks_.erase(blocks_.begin()))
      n_contexts_ -= blocks_.front()->n_contexts();
  }

 private:
  std::vector<std::unique_ptr<Block>> blocks_;  // the one that waited longest first
  uint64_t n_contexts_ = 0;
};

thread_local IdleBlocks idle_blocks;

void invoke(void* kernel) { (*static_cast<std::function<void()>*>(kernel))(); }

}  // namespace

EarlyGrid::EarlyGrid(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel)
    : grid_(grid), block_(block), shared_bytes_(shared_bytes), kernel_(std::move(kernel)) {
  check_launch(grid, block);
}

EarlyGrid::~EarlyGrid() {
  for (auto& block : begun_) {
    early_threads -= threads_of(block_);
    if (block->holds) block->abandon();
    idle_blocks.give(std::move(block));
  }
}

void EarlyGrid::begin() {
  const uint64_t n_blocks = uint64_t{grid_.x} * grid_.y * grid_.z;
  const BlockOrder order(n_blocks);
  while (begun_.size() < std::min(kEarlyBlocks, n_blocks) &&
         early_threads + threads_of(block_) <= kMostEarlyThreads) {
    early_threads += threads_of(block_);
    begun_.push_back(idle_blocks.take(threads_of(block_)));
    Block& block = *begun_.back();
    block.prepare(grid_, block_, shared_bytes_);
    block.invoke = &invoke;
    block.kernel = &kernel_;
    block.is_early = true;
    block.holds = true;
    block.run_held(order(begun_.size() - 1));
  }
}

void EarlyGrid::finish() {
  for (auto& block : begun_) finish_block(*block, [&] { block->run_on(); });
  run_grid(grid_, block_, shared_bytes_, &invoke, &kernel_, {true, begun_.size()});
}

void WorkRunner::run(const Work& work, const std::function<const Work*(size_t)>& next) {
  std::unique_ptr<EarlyGrid> grid;
  if (!begun_.empty()) {
    grid = std::move(begun_.front());
    begun_.erase(begun_.begin());
  } else if (work.make) {
    grid = work.make();
  }
  while (begun_.size() < kEarlyKernels) {
    const Work* behind = next(begun_.size());
    if (!behind || !behind->make) break;
    begun_.push_back(behind->make());
    begun_.back()->begin();
  }
  if (grid)
    grid->finish();
  else
    work.run();
}

}  // namespace zc::emu

namespace zc::simt {

void wait_for_kernels_before(emu::Site site) {
  emu::Thread& me = *emu::current;
  emu::Block& block = *me.block;
  me.saw_kernels_before = true;
  if (!block.holds) return;
  ++block.n_held;
  emu::make_waiting(me);
  emu::suspend(emu::Wait::kKernelsBefore, "wait_for_kernels_before", site);
  emu::tsan::acquire(&block.tokens->begin);  // what the host knows by now
}

}  // namespace zc::simt
