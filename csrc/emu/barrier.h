#pragma once

#include <cstdint>

#include "csrc/emu/site.h"

// Barriers of a block: __syncthreads is number 0 with all threads that have not exited; named ones
// say how many threads they are for.
namespace zc::emu {

inline constexpr int kBarriers = 16;
inline constexpr int kAllThreads = -1;

struct BarrierVotes {
  int n_true;
  int n_threads;
};

struct Barrier {
  int arrived;
  int expected;
  Site site;             // of the first that arrived
  uint32_t waiting[32];  // lanes of each warp
  uint32_t phase;
  BarrierVotes votes[2];  // of this phase and of the one before, which its threads may still read
};

// Arrives at a barrier for n_threads threads; `wait`: and waits for the others. Throws kInternal
// when its threads disagree on their number, or on the line of their __syncthreads.
void barrier(int id, int n_threads, bool wait, Site site);

// __syncthreads that counts for how many threads the predicate holds.
BarrierVotes barrier_votes(bool predicate, Site site);

struct Block;
// A thread fewer to wait for.
void barrier_thread_exited(Block& block);
// Throws kInternal for a barrier at which threads have arrived in vain.
void check_barriers(const Block& block);

}  // namespace zc::emu

namespace zc::simt {

// n threads, a multiple of 32.
inline void bar_sync(int id, int n, emu::Site site = emu::Site::here()) {
  emu::barrier(id, n, true, site);
}
inline void bar_arrive(int id, int n, emu::Site site = emu::Site::here()) {
  emu::barrier(id, n, false, site);
}

}  // namespace zc::simt
