#include "csrc/emu/scheduler.h"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <string>

#include "csrc/core/error.h"
#include "csrc/emu/order.h"
#include "csrc/emu/settings.h"

namespace zc::emu {

__thread Thread* current;

namespace {

// Spinning so long without anybody doing anything else is a loop that will not end.
constexpr uint64_t kMaxYields = 2'000'000;

// "0-63,96"
std::string ranges(const std::vector<unsigned>& ascending) {
  constexpr size_t kMaxListed = 40;
  std::string text;
  for (size_t i = 0; i < ascending.size();) {
    if (i > kMaxListed) return text + ",...";
    size_t last = i;
    while (last + 1 < ascending.size() && ascending[last + 1] == ascending[last] + 1) ++last;
    if (i) text += ",";
    text += std::to_string(ascending[i]);
    if (last > i) text += "-" + std::to_string(ascending[last]);
    i = last + 1;
  }
  return text;
}

std::string describe_wait(const Block& block, const Thread& t) {
  const Site& s = t.wait_site;
  switch (t.wait) {
    case Wait::kExited:
      return "have exited";
    case Wait::kWarp:
      return format("wait in %s (mask %08x) at %s:%d", t.wait_name, t.wait_mask, s.file, s.line);
    case Wait::kWarpgroup:
      return format("wait in %s of the warpgroup at %s:%d", t.wait_name, s.file, s.line);
    case Wait::kBarrier: {
      const Barrier& b = block.barriers[t.wait_address];
      return format("wait at barrier %u (%d of %d arrived) at %s:%d", t.wait_address, b.arrived,
                    b.expected, s.file, s.line);
    }
    case Wait::kMbarrier:
      return format("wait for parity %u of the mbarrier at shared address %u at %s:%d",
                    t.wait_parity, t.wait_address - kSharedBase, s.file, s.line);
    case Wait::kKernelsBefore:
      return format("wait for the kernels before at %s:%d", s.file, s.line);
    case Wait::kNothing:
      break;
  }
  return "are ready";
}

// Who waits where: "; threads 0-63 wait at barrier 1 (64 of 128 arrived) at k.cu:40".
std::string describe_waits(const Block& block) {
  std::map<std::string, std::vector<unsigned>> groups;
  for (unsigned i = 0; i < block.n_threads; ++i)
    groups[describe_wait(block, block.threads[i])].push_back(i);
  std::string text;
  for (const auto& [what, threads] : groups) text += "; threads " + ranges(threads) + " " + what;
  return text;
}

Thread* ready_thread(Block& block, unsigned warp_index, unsigned lane) {
  return &block.threads[warp_index * 32 + lane];
}

Thread* next_in_order(Block& block, bool reverse) {
  const unsigned n = block.n_warps;
  unsigned w = current ? current->warp_index : 0;
  for (unsigned i = 0; i < n; ++i) {
    if (const uint32_t ready = block.warps[w].ready)
      return ready_thread(
          block, w,
          static_cast<unsigned>(reverse ? 31 - __builtin_clz(ready) : __builtin_ctz(ready)));
    w = reverse ? (w ? w - 1 : n - 1) : (w + 1 == n ? 0 : w + 1);
  }
  return nullptr;
}

Thread* next_at_random(Block& block) {
  const unsigned n = block.n_warps;
  // Mostly the same warp, so that warps drift apart and not only lanes.
  const bool stay = current && current->warp->ready && block.random.below(8) != 0;
  unsigned w = stay ? current->warp_index : block.random.below(n);
  for (unsigned i = 0; i < n; ++i) {
    if (const uint32_t ready = block.warps[w].ready) {
      const unsigned turn = block.random.below(32);
      const uint32_t turned = ready >> turn | (turn ? ready << (32 - turn) : 0);
      return ready_thread(block, w, (static_cast<unsigned>(__builtin_ctz(turned)) + turn) & 31);
    }
    w = w + 1 == n ? 0 : w + 1;
  }
  return nullptr;
}

}  // namespace

void fail(const char* fmt, ...) {
  char text[4096];
  va_list args;
  va_start(args, fmt);
  std::vsnprintf(text, sizeof(text), fmt, args);
  va_end(args);
  std::string message = text;
  if (current) {
    const uint3& b = current->block->index;
    message += format(" [block (%u,%u,%u) thread %u]", b.x, b.y, b.z, current->linear);
  }
  throw Error(ErrorCode::kInternal, "emulator: " + message);
}

Thread* next_thread(Block& block) {
  const ScheduleOrder order = settings().schedule;
  for (;;) {
    Thread* next;
    if (order == ScheduleOrder::kRandom) [[unlikely]] {
      if (!block.async.empty() && block.random.below(16) == 0) block.async.run_one(block);
      next = next_at_random(block);
    } else {
      next = next_in_order(block, order == ScheduleOrder::kReverse);
    }
    if (next || block.async.empty()) return next;
    block.async.run_one(block);
  }
}

void suspend(Wait wait, const char* name, Site site) {
  Thread& me = *current;
  Block& block = *me.block;
  me.wait = wait;
  me.wait_name = name;
  me.wait_site = site;
  block.yields = 0;
  Thread* next = next_thread(block);
  if (!next && block.can_hold()) {
    current = nullptr;
    switch_fiber(me.fiber, block.host);
    me.wait = Wait::kNothing;
    return;
  }
  if (!next) fail("deadlock: no thread of the block can go on%s", describe_waits(block).c_str());
  if (next != &me) {
    ++block.stats.switches;
    current = next;
    switch_fiber(me.fiber, next->fiber);
  }
  me.wait = Wait::kNothing;
}

void yield() {
  Thread& me = *current;
  Block& block = *me.block;
  if (++block.yields > kMaxYields)
    fail("livelock: only threads that spin%s", describe_waits(block).c_str());
  make_waiting(me);
  Thread* next = next_thread(block);
  make_ready(me);
  if (!next || next == &me) return;
  ++block.stats.switches;
  current = next;
  switch_fiber(me.fiber, next->fiber);
}

void abandon_block() {
  Thread& me = *current;
  Block& block = *me.block;
  current = nullptr;
  leave_fiber(me.fiber, block.host);
}

void exit_thread() {
  Thread& me = *current;
  Block& block = *me.block;
  make_waiting(me);
  me.warp->exited |= 1u << me.lane;
  me.wait = Wait::kExited;
  --block.n_alive;
  Thread* next = nullptr;
  if (!block.error && block.n_alive > 0) try {
      barrier_thread_exited(block);
      next = next_thread(block);
      if (!next && !block.can_hold())
        fail("deadlock: no thread of the block can go on%s", describe_waits(block).c_str());
    } catch (...) {
      block.error = std::current_exception();
    }
  if (block.error || !next) abandon_block();
  ++block.stats.switches;
  current = next;
  leave_fiber(me.fiber, next->fiber);
}

}  // namespace zc::emu
