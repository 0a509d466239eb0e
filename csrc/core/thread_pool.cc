#include "csrc/core/thread_pool.h"

#include <cstdlib>

#include "csrc/core/error.h"

namespace zc {

ThreadPool::ThreadPool(int n_threads) {
  workers_.reserve(static_cast<size_t>(n_threads > 1 ? n_threads - 1 : 0));
  try {
    for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {  // no thread, or no memory for one
    const size_t n_started = workers_.size();
    end();  // a thread that nobody joins would end the process
    throw Error(ErrorCode::kOutOfMemory,
                format("threads: the system starts %zu, expected %d", n_started, n_threads - 1), "",
                "threads");
  }
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::take_iterations() {
  for (;;) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= n_) return;
    try {
      if (cancelled_.load(std::memory_order_relaxed))
        throw Error(ErrorCode::kDevice, "device: disposed while work was in flight");
      call_(context_, i);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(n_, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::work() {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    start_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    lock.unlock();
    take_iterations();
    lock.lock();
    if (--n_active_ == 0) done_.notify_one();
  }
}

void ThreadPool::run(int64_t n, Call call, const void* context) {
  if (n <= 0) return;
  call_ = call;
  context_ = context;
  error_ = nullptr;
  const bool shared = n > 1 && !workers_.empty();
  {
    std::lock_guard lock(mutex_);
    n_ = n;
    next_.store(0, std::memory_order_relaxed);
    if (shared) {
      n_active_ = static_cast<int>(workers_.size());
      ++generation_;
    }
  }
  if (shared) start_.notify_all();
  take_iterations();
  if (shared) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return n_active_ == 0; });
  }
  if (error_) std::rethrow_exception(error_);
}

namespace {

struct Scratch {
  float* data = nullptr;
  size_t n_floats = 0;
  ~Scratch() { std::free(data); }
};

thread_local Scratch scratch_slots[kScratchSlots];

}  // namespace

float* thread_scratch(int slot, size_t n_floats) {
  Scratch& scratch = scratch_slots[slot];
  if (scratch.n_floats < n_floats) {
    std::free(scratch.data);
    scratch.n_floats = 0;
    const size_t bytes = (n_floats * sizeof(float) + 63) / 64 * 64;
    scratch.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!scratch.data) throw Error(ErrorCode::kOutOfMemory, "no memory for a kernel's tiles");
    scratch.n_floats = n_floats;
  }
  return scratch.data;
}

}  // namespace zc
