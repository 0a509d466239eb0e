#pragma once

#include <cstddef>
#include <cstdint>

// How the emulator orders what the hardware leaves open. A correct kernel gives the same result in
// every order, so tests run each kernel in several.
namespace zc::emu {

// When an asynchronous copy or product takes effect: at once (finds what is overwritten too early),
// or as late as the waits allow, its destination holding NaN until then (finds a missing wait).
enum class AsyncOrder { kEager, kLate, kRandom };

// Which thread goes on when one stops, and which block comes next.
enum class ScheduleOrder { kForward, kReverse, kRandom };

struct Settings {
  AsyncOrder async = AsyncOrder::kEager;             // ZC_SIMT_ASYNC=eager|late|random
  ScheduleOrder schedule = ScheduleOrder::kForward;  // ZC_SIMT_SCHED=forward|reverse|random:SEED
  uint64_t seed = 1;
  int n_host_threads = 1;              // ZC_SIMT_THREADS: blocks that run at a time
  bool counts_bank_conflicts = false;  // ZC_SIMT_BANKS=1: of plain accesses; ldmatrix's always
  size_t stack_bytes;                  // of one CUDA thread
};

// Read from the environment when first asked for; tests change them between two launches. Throws
// kInternal for a value it does not know.
Settings& settings();

}  // namespace zc::emu
