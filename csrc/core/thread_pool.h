#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace zc {

// A fixed set of worker threads for data-parallel loops. Idle workers sleep: on a shared machine a
// spinning thread takes the core from whoever would finish the loop. One loop runs at a time.
class ThreadPool {
 public:
  // n_threads counts the caller of parallel_for, so n_threads = 1 starts no thread. Throws
  // kOutOfMemory when the system refuses to start that many.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(i) for i in [0, n), in any order and on any thread; returns when all are done.
  // Rethrows the first exception. Stops early, throwing, once cancel() was called.
  template <typename Body>
  void parallel_for(int64_t n, const Body& body) {
    run(
        n, [](const void* context, int64_t i) { (*static_cast<const Body*>(context))(i); }, &body);
  }

  // Makes running and later loops give up between two iterations: the environment is going away.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

 private:
  using Call = void (*)(const void* context, int64_t i);
  void run(int64_t n, Call call, const void* context);
  void work();
  void end();
  void take_iterations();

  std::vector<std::thread> workers_;
  std::atomic<bool> cancelled_{false};

  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  uint64_t generation_ = 0;
  int n_active_ = 0;
  bool stop_ = false;

  Call call_ = nullptr;
  const void* context_ = nullptr;
  int64_t n_ = 0;
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
};

// A 64-byte aligned buffer of this thread, at least n_floats long, valid until the next call with
// the same slot on the same thread. Kernels take their temporary tiles from it, so that a replayed
// step allocates nothing.
inline constexpr int kScratchSlots = 8;
float* thread_scratch(int slot, size_t n_floats);

}  // namespace zc
