#include "csrc/emu/block.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/emu/mbarrier.h"
#include "csrc/emu/scheduler.h"
#include "csrc/emu/settings.h"

namespace zc::emu {

namespace {

// Where every fiber begins.
void run_thread() {
  Block& block = *current->block;
  enter_fiber(block.host);
  tsan::acquire(&block.tokens->begin);
  try {
    block.invoke(block.kernel);
    if (block.is_early && !current->saw_kernels_before)
      fail("a thread of a kernel that was launched early ended without waiting for those before");
  } catch (...) {
    if (!block.error) block.error = std::current_exception();
  }
  tsan::release(&block);  // acquired when the grid has ended
  exit_thread();
}

}  // namespace

Block::~Block() {
  for (ThreadSet& set : sets_) {
    for (Thread& thread : set.threads) tsan::destroy_context(thread.fiber.context);
    for (void* context : set.contexts) tsan::destroy_context(context);
  }
}

void Block::prepare(dim3 grid_size, dim3 block_size, size_t shared_bytes) {
  const tsan::IgnoreAccesses ignore;
  grid = grid_size;
  size = block_size;
  n_threads = block_size.x * block_size.y * block_size.z;
  n_warps = (n_threads + 31) / 32;
  shared_bytes_ = shared_bytes;
  for (ThreadSet& set : sets_) {
    // Here, since a new context knows all that its maker knows.
    for (void*& context : set.contexts)
      if (!context) context = tsan::create_context();
    set.stacks.reserve(n_threads, settings().stack_bytes);
    if (set.threads.size() < n_threads) set.threads.resize(n_threads);
    for (unsigned i = 0; i < n_threads; ++i) {
      Thread& t = set.threads[i];
      t.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
      t.linear = i;
      t.lane = i % 32;
      t.warp_index = i / 32;
      t.warp = &warps[i / 32];
      t.block = this;
      set.stacks.give(t.fiber, i);
      if (!t.fiber.context) t.fiber.context = tsan::create_context();
    }
  }
}

void Block::begin(uint64_t linear) {
  const tsan::IgnoreAccesses ignore;
  index = {static_cast<unsigned>(linear % grid.x), static_cast<unsigned>(linear / grid.x % grid.y),
           static_cast<unsigned>(linear / (uint64_t{grid.x} * grid.y))};
  random = Random(settings().seed + linear * 0x10001);
  set_ = &sets_[n_runs_++ % sets_.size()];
  threads = set_->threads.data();
  if (tsan::kOn || !tokens) tokens = std::make_unique<OrderTokens>();
  shared.begin(shared_bytes_);
  for (unsigned i = 0; i < n_warps; ++i) {
    const unsigned n_lanes = std::min(32u, n_threads - i * 32);
    const uint32_t lanes = n_lanes == 32 ? ~0u : (1u << n_lanes) - 1u;
    warps[i].ready = warps[i].present = lanes;
    warps[i].waiting = warps[i].exited = 0;
  }
  for (Barrier& b : barriers) b = {};
  for (Warpgroup& w : warpgroups) {
    w.arrived = 0;
    w.issued.reset();
    std::memset(w.waiting, 0, sizeof(w.waiting));
  }
  async.clear();
  mbarriers.clear();
  accesses.sites.clear();
  n_alive = n_threads;
  error = nullptr;
  yields = 0;
  n_held = 0;
  for (unsigned i = 0; i < n_threads; ++i) {
    Thread& t = threads[i];
    t.wait = Wait::kNothing;
    t.saw_kernels_before = false;
    t.asked_words.clear();
    t.copies.copies.clear();
    t.copies.group_ends.clear();
    t.wgmma = {};
    prepare_fiber(t.fiber, run_thread, i);
  }
  ++stats.blocks;
}

// Returns when all threads have ended, when one has failed, or when they are held.
void Block::enter_threads() {
  host.context = tsan::current_context();
  tsan::release(&tokens->begin);
  Thread* first = next_thread(*this);
  current = first;
  switch_fiber(host, first->fiber);
}

void Block::leave_threads() {
  // Abandoned frames have left the stacks poisoned.
  for (unsigned i = 0; i < n_threads; ++i)
    asan::unpoison(threads[i].fiber.stack_bottom, threads[i].fiber.stack_bytes);
  if (tsan::kOn && (error || n_alive > 0))
    for (unsigned i = 0; i < n_threads; ++i) {
      tsan::switch_to(threads[i].fiber.context);
      tsan::release(this);
      tsan::switch_to(host.context);
    }
}

// What a block must not leave behind.
void Block::check_end() {
  const tsan::IgnoreAccesses ignore;
  while (!async.empty()) async.run_one(*this);
  check_mbarriers(*this);
  for (unsigned i = 0; i < n_threads; ++i) {
    check_copies(threads[i]);
    check_wgmma(threads[i]);
  }
  check_barriers(*this);
  shared.check_margins();
  finish_shared_accesses(*this);
}

void Block::run(uint64_t linear) {
  run_held(linear);
  run_on();
}

void Block::run_held(uint64_t linear) {
  begin(linear);
  enter_threads();
}

void Block::abandon() {
  holds = false;
  leave_threads();
  tsan::acquire(this);
}

void Block::run_on() {
  if (holds) {
    holds = false;
    for (unsigned i = 0; i < n_threads; ++i)
      if (threads[i].wait == Wait::kKernelsBefore) make_ready(threads[i]);
    if (!error && n_alive > 0) enter_threads();
  }
  leave_threads();
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
  try {
    check_end();
  } catch (Error& e) {
    throw Error(e.code, e.message + format(" [block (%u,%u,%u)]", index.x, index.y, index.z));
  }
}

}  // namespace zc::emu
