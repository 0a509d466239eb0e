#include "csrc/emu/copy.h"

#include <cstring>

#include "csrc/emu/mbarrier.h"
#include "csrc/emu/order.h"
#include "csrc/emu/proxy.h"
#include "csrc/emu/scheduler.h"
#include "csrc/emu/settings.h"

namespace zc::emu {

namespace {

constexpr unsigned char kUnderWay = 0xff;  // NaN, as of memory that was never written

void perform(CopyQueue::Copy& copy) {
  if (copy.done) return;
  copy.done = true;
  tsan::note_read(copy.from, static_cast<size_t>(copy.n_bytes));
  tsan::note_write(copy.to, 16);
  const tsan::IgnoreAccesses ignore;
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.n_bytes));
  std::memset(copy.to + copy.n_bytes, 0, static_cast<size_t>(16 - copy.n_bytes));
}

}  // namespace

void AsyncQueue::run_one(Block& block) {
  const tsan::IgnoreAccesses ignore;
  const Operation operation = std::move(operations_.front());
  operations_.pop_front();
  operation(block);
}

bool is_late(Block& block) {
  switch (settings().async) {
    case AsyncOrder::kEager:
      return false;
    case AsyncOrder::kLate:
      return true;
    case AsyncOrder::kRandom:
      return block.random.below(2) == 0;
  }
  return false;
}

void wait_copies(size_t n_groups) {
  CopyQueue& queue = current->copies;
  if (queue.group_ends.size() <= n_groups) return;
  const size_t n_done = queue.group_ends.size() - n_groups;
  const size_t end = queue.group_ends[n_done - 1];
  for (size_t i = 0; i < end; ++i) perform(queue.copies[i]);
  const tsan::IgnoreAccesses ignore;
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + static_cast<ptrdiff_t>(end));
  queue.group_ends.erase(queue.group_ends.begin(),
                         queue.group_ends.begin() + static_cast<ptrdiff_t>(n_done));
  for (size_t& group_end : queue.group_ends) group_end -= end;
}

void check_copies(const Thread& thread) {
  if (!thread.copies.copies.empty())
    fail("thread %u ended with %zu cp.async that it never waited for", thread.linear,
         thread.copies.copies.size());
}

}  // namespace zc::emu

namespace zc::simt {

void cp_async_16(uint32_t to, const void* from, int src_bytes, emu::Site site) {
  emu::Thread& me = *emu::current;
  unsigned char* destination = emu::shared_at(to, 16, 16, "cp.async", site);
  ++me.block->stats.cp_async;
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emu::fail("%s:%d: cp.async: the global address %p is not a multiple of 16", site.file,
              site.line, from);
  if (src_bytes < 0 || src_bytes > 16)
    emu::fail("%s:%d: cp.async: %d bytes, expected 0 to 16", site.file, site.line, src_bytes);
  emu::CopyQueue::Copy copy{destination, static_cast<const unsigned char*>(from), src_bytes, false};
  const bool late = emu::is_late(*me.block);
  if (!late) emu::perform(copy);
  const emu::tsan::IgnoreAccesses ignore;
  if (late) std::memset(destination, emu::kUnderWay, 16);
  me.copies.copies.push_back(copy);
}

void cp_async_commit() {
  const emu::tsan::IgnoreAccesses ignore;
  emu::CopyQueue& queue = emu::current->copies;
  queue.group_ends.push_back(queue.copies.size());
}

void cp_async_mbarrier_arrive(uint32_t barrier, emu::Site site) {
  emu::Thread& me = *emu::current;
  emu::Block& block = *me.block;
  emu::mbarrier_check(barrier, site);
  const emu::tsan::IgnoreAccesses ignore;
  emu::arrive_by_proxy(block, barrier, site, [copies = std::move(me.copies.copies)]() mutable {
    for (emu::CopyQueue::Copy& copy : copies) emu::perform(copy);
  });
  me.copies = {};
}

void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, emu::Site site) {
  emu::Block& block = *emu::current->block;
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emu::fail("%s:%d: bulk copy: address %p or size %u is not a multiple of 16", site.file,
              site.line, from, bytes);
  unsigned char* destination = emu::shared_at(to, bytes, 16, "bulk copy", site);
  emu::mbarrier_check(barrier, site);
  emu::write_by_proxy(block, to, bytes, barrier, site, [=] {
    emu::tsan::note_read(from, bytes);
    std::memcpy(destination, from, bytes);
  });
}

}  // namespace zc::simt
