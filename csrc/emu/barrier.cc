#include "csrc/emu/barrier.h"

#include <cstring>

#include "csrc/emu/order.h"
#include "csrc/emu/scheduler.h"

namespace zc::emu {

namespace {

void open_barrier(Block& block, Barrier& b) {
  for (unsigned i = 0; i < block.n_warps; ++i) {
    block.warps[i].ready |= b.waiting[i];
    b.waiting[i] = 0;
  }
  b.arrived = 0;
  ++b.phase;
  ++block.stats.barriers;
}

bool same_place(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file));
}

}  // namespace

void barrier(int id, int n_threads, bool wait, Site site) {
  Thread& me = *current;
  Block& block = *me.block;
  if (id < 0 || id >= kBarriers) [[unlikely]]
    fail("%s:%d: barrier %d, expected 0 to %d", site.file, site.line, id, kBarriers - 1);
  Barrier& b = block.barriers[id];
  const bool all = n_threads == kAllThreads;
  if (!all && (n_threads <= 0 || n_threads % 32 || n_threads > static_cast<int>(block.n_threads)))
      [[unlikely]]
    fail("%s:%d: barrier %d for %d threads, expected a multiple of 32 up to %u", site.file,
         site.line, id, n_threads, block.n_threads);
  const int expected = all ? static_cast<int>(block.n_alive) : n_threads;
  if (b.arrived == 0) {
    b.site = site;
    b.expected = expected;
  } else if (all && !same_place(b.site, site)) [[unlikely]] {
    fail("divergent __syncthreads: this thread at %s:%d, others at %s:%d", site.file, site.line,
         b.site.file, b.site.line);
  } else if (!all && b.expected != n_threads) [[unlikely]] {
    fail("%s:%d: barrier %d for %d threads, but for %d at %s:%d", site.file, site.line, id,
         n_threads, b.expected, b.site.file, b.site.line);
  }
  const char* token = &block.tokens->barriers[id][b.phase & 1];
  tsan::release(token);
  if (++b.arrived >= expected) {
    open_barrier(block, b);
    if (wait) tsan::acquire(token);
    return;
  }
  if (!wait) return;
  b.waiting[me.warp_index] |= 1u << me.lane;
  make_waiting(me);
  me.wait_address = static_cast<uint32_t>(id);
  suspend(Wait::kBarrier, "barrier", site);
  tsan::acquire(token);
}

BarrierVotes barrier_votes(bool predicate, Site site) {
  Barrier& b = current->block->barriers[0];
  BarrierVotes& votes = b.votes[b.phase & 1];
  // Whoever read this slot's last votes, two phases ago, has passed a barrier since.
  if (b.arrived == 0) votes = {};
  votes.n_true += predicate;
  votes.n_threads += 1;
  barrier(0, kAllThreads, true, site);
  return votes;
}

void barrier_thread_exited(Block& block) {
  Barrier& b = block.barriers[0];
  if (b.arrived > 0 && b.arrived >= static_cast<int>(block.n_alive)) open_barrier(block, b);
}

void check_barriers(const Block& block) {
  for (int id = 0; id < kBarriers; ++id) {
    const Barrier& b = block.barriers[id];
    if (b.arrived > 0)
      fail("%s:%d: barrier %d: %d of %d threads had arrived when the block ended", b.site.file,
           b.site.line, id, b.arrived, b.expected);
  }
}

}  // namespace zc::emu
