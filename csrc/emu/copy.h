#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "csrc/emu/site.h"

// Copies from global to shared memory that go on beside the threads, under the names of
// csrc/cuda/device/hardware.h.
namespace zc::emu {

struct Block;

// Operations of a block that run when they like: bulk copies that have been issued and not begun.
class AsyncQueue {
 public:
  using Operation = std::function<void(Block&)>;
  bool empty() const { return operations_.empty(); }
  void push(Operation operation) { operations_.push_back(std::move(operation)); }
  void run_one(Block& block);
  void clear() { operations_.clear(); }

 private:
  std::deque<Operation> operations_;
};

// Whether the next asynchronous operation is to be late.
bool is_late(Block& block);

// cp.async of one thread: copies in the order of issue, groups as counts of them.
struct CopyQueue {
  struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int n_bytes;  // the rest of 16 is zero
    bool done;
  };
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
};

// Waits until at most n_groups of the current thread's committed groups are under way.
void wait_copies(size_t n_groups);

struct Thread;
// Throws kInternal for copies of a thread that it never waited for.
void check_copies(const Thread& thread);

}  // namespace zc::emu

namespace zc::simt {

void cp_async_16(uint32_t to, const void* from, int src_bytes = 16,
                 emu::Site site = emu::Site::here());
// There is no L2.
inline void cp_async_16_once(uint32_t to, const void* from, int src_bytes,
                             emu::Site site = emu::Site::here()) {
  cp_async_16(to, from, src_bytes, site);
}
void cp_async_commit();
template <int N>
void cp_async_wait() {
  emu::wait_copies(N);
}

// This thread arrives at an mbarrier when its copies so far are done.
void cp_async_mbarrier_arrive(uint32_t barrier, emu::Site site = emu::Site::here());

void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier,
               emu::Site site = emu::Site::here());

inline void bulk_copy_once(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier,
                           emu::Site site = emu::Site::here()) {
  bulk_copy(to, from, bytes, barrier, site);
}

inline void prefetch_l2(const void*) {}

}  // namespace zc::simt
