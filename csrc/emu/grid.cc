#include "csrc/emu/grid.h"

#include <memory>
#include <mutex>
#include <numeric>

#include "csrc/core/error.h"
#include "csrc/core/thread_pool.h"
#include "csrc/emu/block.h"
#include "csrc/emu/settings.h"

namespace zc::emu {

namespace {

std::mutex stats_mutex;
Stats total_stats{};

void add_stats(Stats& block_stats) {
  const std::lock_guard lock(stats_mutex);
  // Stats is counters alone.
  const auto* from = reinterpret_cast<const uint64_t*>(&block_stats);
  auto* to = reinterpret_cast<uint64_t*>(&total_stats);
  for (size_t i = 0; i < sizeof(Stats) / sizeof(uint64_t); ++i) to[i] += from[i];
  block_stats = {};
}

// A host thread keeps its stacks and its arena from launch to launch.
Block& block_of_this_thread() {
  static thread_local std::unique_ptr<Block> block;
  if (!block) block = std::make_unique<Block>(Block::kThreadSets);
  return *block;
}

// Never destroyed: a process may end while they sleep, but nobody can wait for them then.
ThreadPool& host_threads() {
  static ThreadPool* pool = new ThreadPool(settings().n_host_threads);
  return *pool;
}

}  // namespace

BlockOrder::BlockOrder(uint64_t n) : n_(n) {
  if (settings().schedule != ScheduleOrder::kRandom) return;
  Random random(settings().seed);
  offset_ = random.next() % n;
  do factor_ = 1 + random.next() % n;
  while (std::gcd(factor_, n) != 1);
}

uint64_t BlockOrder::operator()(uint64_t i) const {
  switch (settings().schedule) {
    case ScheduleOrder::kForward:
      return i;
    case ScheduleOrder::kReverse:
      return n_ - 1 - i;
    case ScheduleOrder::kRandom:
      return (i * factor_ + offset_) % n_;
  }
  return i;
}

void check_launch(dim3 grid, dim3 block) {
  const uint64_t n_threads = uint64_t{block.x} * block.y * block.z;
  ZC_CHECK(n_threads >= 1 && n_threads <= kMaxThreads && block.z <= 64, ErrorCode::kInternal,
           "emulator: a launch of blocks of (%u, %u, %u) threads, expected 1 to %u", block.x,
           block.y, block.z, kMaxThreads);
  ZC_CHECK(grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
               grid.z <= 65535,
           ErrorCode::kInternal,
           "emulator: a launch of (%u, %u, %u) blocks, expected 1 to 2^31 - 1, 65535, 65535",
           grid.x, grid.y, grid.z);
  ZC_CHECK(!current, ErrorCode::kInternal, "emulator: a kernel launched a kernel");
}

void finish_block(Block& block, const std::function<void()>& run) {
  const auto finish = [&] {
    tsan::acquire(&block);
    add_stats(block.stats);
  };
  try {
    run();
  } catch (...) {
    finish();
    throw;
  }
  finish();
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*invoke)(void*), void* kernel,
              Launch launch) {
  check_launch(grid, block);
  Stats launched{};
  launched.launches = 1;
  add_stats(launched);
  const uint64_t n_blocks = uint64_t{grid.x} * grid.y * grid.z;
  const BlockOrder order(n_blocks);
  const auto prepare = [&](Block& b) {
    b.prepare(grid, block, shared_bytes);
    b.invoke = invoke;
    b.kernel = kernel;
    b.is_early = launch.is_early;
  };
  if (settings().n_host_threads == 1 || n_blocks == 1) {
    Block& b = block_of_this_thread();
    prepare(b);
    finish_block(b, [&] {
      for (uint64_t i = launch.n_begun; i < n_blocks; ++i) b.run(order(i));
    });
    return;
  }
  // The pool runs one loop at a time.
  static std::mutex pool_mutex;
  const std::lock_guard lock(pool_mutex);
  host_threads().parallel_for(static_cast<int64_t>(n_blocks - launch.n_begun), [&](int64_t i) {
    Block& b = block_of_this_thread();
    prepare(b);
    finish_block(b, [&] { b.run(order(launch.n_begun + static_cast<uint64_t>(i))); });
  });
}

Stats take_stats() {
  const std::lock_guard lock(stats_mutex);
  const Stats taken = total_stats;
  total_stats = {};
  return taken;
}

}  // namespace zc::emu
