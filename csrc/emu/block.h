#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <unordered_set>
#include <vector>

#include "csrc/emu/bank_conflicts.h"
#include "csrc/emu/barrier.h"
#include "csrc/emu/copy.h"
#include "csrc/emu/fiber.h"
#include "csrc/emu/order.h"
#include "csrc/emu/proxy.h"
#include "csrc/emu/random.h"
#include "csrc/emu/shared_memory.h"
#include "csrc/emu/site.h"
#include "csrc/emu/stats.h"
#include "csrc/emu/vector_types.h"
#include "csrc/emu/warp.h"
#include "csrc/emu/wgmma.h"

// A block and its threads. A host thread has one Block, which runs one block of a grid after the
// other; every CUDA thread of it is a fiber.
namespace zc::emu {

inline constexpr unsigned kMaxThreads = 1024;
inline constexpr unsigned kMaxWarps = kMaxThreads / 32;

struct Block;

// What a thread that does not run waits for.
enum class Wait : uint8_t {
  kNothing,
  kWarp,
  kWarpgroup,
  kBarrier,
  kMbarrier,
  kKernelsBefore,
  kExited
};

struct Thread {
  uint3 index;      // threadIdx
  unsigned linear;  // within the block
  unsigned lane;
  unsigned warp_index;
  Warp* warp;
  Block* block;
  Fiber fiber;

  Wait wait;
  const char* wait_name;  // of the collective
  Site wait_site;
  uint32_t wait_mask;       // kWarp: the lanes that take part
  uint32_t wait_address;    // kBarrier: its number; kMbarrier: its shared address
  uint32_t wait_parity;     // kMbarrier
  bool saw_kernels_before;  // has called wait_for_kernels_before

  CopyQueue copies;
  WgmmaQueue wgmma;
  std::unordered_set<const void*> asked_words;  // by load_whole
};

struct Block {
  uint3 index;  // blockIdx
  dim3 size;    // blockDim
  dim3 grid;    // gridDim
  SharedMemory shared;

  unsigned n_threads = 0;
  unsigned n_warps = 0;
  unsigned n_alive = 0;  // that have not exited
  Thread* threads = nullptr;
  Warp warps[kMaxWarps];
  Barrier barriers[kBarriers];
  Warpgroup warpgroups[kMaxWarps / 4];
  AsyncQueue async;
  std::vector<uint32_t> mbarriers;  // addresses of all that were initialised
  AccessLog accesses;
  std::unique_ptr<OrderTokens> tokens;

  std::exception_ptr error;  // the first that a thread threw; ends the block
  uint64_t yields = 0;       // in a row, without a thread that did anything else
  Random random;
  Stats stats{};

  bool is_early = false;  // of a kernel that was launched to begin early
  bool holds = false;     // kernels before this one have not run: who waits for them stays
  unsigned n_held = 0;    // threads that wait for them

  // Blocks of a grid are not ordered, but run one after the other on the same stacks. So that
  // ThreadSanitizer does not take neighbours for ordered, two sets of threads take turns.
  static constexpr int kThreadSets = tsan::kOn ? 2 : 1;

  Fiber host;  // who runs the grid
  void (*invoke)(void* kernel) = nullptr;
  void* kernel = nullptr;

  // One that runs a block of a grid after the other takes kThreadSets of sets of threads, one that
  // runs a single block of each one.
  explicit Block(int n_sets) : sets_(static_cast<size_t>(n_sets)) {}
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Runs blocks of this shape from now on.
  void prepare(dim3 grid_size, dim3 block_size, size_t shared_bytes);
  // Runs block number `linear` of the grid. Throws what a thread threw, and kInternal for what was
  // left unfinished.
  void run(uint64_t linear);
  // The same in two parts. The first ends when all threads wait for the kernels before this one, or
  // for each other; `abandon` takes the place of the second.
  void run_held(uint64_t linear);
  void run_on();
  void abandon();
  // Whether a thread that finds nobody to go on may return to the host instead.
  bool can_hold() const { return holds && n_held > 0; }

  // ThreadSanitizer's, for its threads and for what is no thread.
  size_t n_contexts() const { return sets_.size() * (n_threads + kProxies + 3); }
  // ThreadSanitizer's contexts for what is no thread: an asynchronous operation; wgmma as one who
  // sees only what was fenced; those of fence.cc.
  void* next_proxy() { return set_->contexts[proxy_turn_++ % kProxies]; }
  void* fenced_view() { return set_->contexts[kProxies]; }
  void* publisher() { return set_->contexts[kProxies + 1]; }
  void* receiver() { return set_->contexts[kProxies + 2]; }

 private:
  void begin(uint64_t linear);
  void enter_threads();
  void leave_threads();
  void check_end();

  struct ThreadSet {
    std::vector<Thread> threads;
    StackPool stacks;
    void* contexts[kProxies + 3] = {};
  };
  std::vector<ThreadSet> sets_;
  ThreadSet* set_ = nullptr;
  unsigned proxy_turn_ = 0;
  uint64_t n_runs_ = 0;
  size_t shared_bytes_ = 0;
};

// The thread that runs, null outside of kernels. Declared for the fast model of thread-local
// storage: every threadIdx.x reads it.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

}  // namespace zc::emu
