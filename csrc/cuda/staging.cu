#include "csrc/cuda/staging.h"

#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace zc::cuda {

namespace {

// Linux rounds a thread's naps up by 50 us, unless it asks otherwise.
void sleep_precisely() {
#if defined(__linux__)
  thread_local const int asked = prctl(PR_SET_TIMERSLACK, 1000UL);
  static_cast<void>(asked);
#endif
}

}  // namespace

PinnedBlock::PinnedBlock(int64_t bytes) : bytes_(bytes) {
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  void* memory = nullptr;
  const cudaError_t status =
      cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (status != cudaSuccess) cudaEventDestroy(event_);
  check_cuda(status, "cudaHostAlloc");
  data_ = static_cast<char*>(memory);
}

PinnedBlock::~PinnedBlock() {
  cudaFreeHost(data_);
  cudaEventDestroy(event_);
}

void PinnedBlock::record(cudaStream_t stream) {
  check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
}

// Asks, and sleeps in between: CUDA's own waits either take a core from JavaScript for as long as a
// step, or need an interrupt, which comes late or, in some containers, not at all.
void PinnedBlock::wait() {
  constexpr int kSpins = 64;  // some 50 us
  constexpr auto kNap = std::chrono::microseconds(20);
  for (int i = 0;; ++i) {
    const cudaError_t status = cudaEventQuery(event_);
    if (status != cudaErrorNotReady) return check_cuda(status, "cudaEventQuery");
    cudaGetLastError();  // no error, but this thread's next launch may find it as the last one
    if (i < kSpins) {
      std::this_thread::yield();
      continue;
    }
    sleep_precisely();
    std::this_thread::sleep_for(kNap);
  }
}

StagingRing::StagingRing(cudaStream_t stream) : stream_(stream) {
  for (auto& block : blocks_) block = std::make_unique<PinnedBlock>(kBlockBytes);
}

PinnedBlock& StagingRing::advance() {
  blocks_[current_]->record(stream_);
  current_ = (current_ + 1) % kBlocks;
  filled_ = 0;
  blocks_[current_]->wait();
  return *blocks_[current_];
}

void StagingRing::write(void* to, const void* from, int64_t bytes) {
  auto* target = static_cast<char*>(to);
  auto* source = static_cast<const char*>(from);
  while (bytes > 0) {
    if (filled_ + std::min(bytes, kBlockBytes) > kBlockBytes) advance();
    const int64_t n = std::min(bytes, kBlockBytes);
    char* staged = blocks_[current_]->data() + filled_;
    std::memcpy(staged, source, static_cast<size_t>(n));
    check_cuda(
        cudaMemcpyAsync(target, staged, static_cast<size_t>(n), cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
    filled_ += (n + 63) / 64 * 64;
    target += n;
    source += n;
    bytes -= n;
  }
}

void StagingRing::read(void* to, const void* from, int64_t bytes) {
  auto* target = static_cast<char*>(to);
  auto* source = static_cast<const char*>(from);
  // The copy of a block is under way while the one before is taken out of its own.
  PinnedBlock* full = nullptr;
  int64_t n_full = 0;
  const auto take_out = [&] {
    if (!full) return;
    full->wait();
    std::memcpy(target, full->data(), static_cast<size_t>(n_full));
    target += n_full;
  };
  while (bytes > 0) {
    const int64_t n = std::min(bytes, kBlockBytes);
    PinnedBlock& block = advance();
    filled_ = kBlockBytes;  // the next write begins in another block
    check_cuda(cudaMemcpyAsync(block.data(), source, static_cast<size_t>(n), cudaMemcpyDeviceToHost,
                               stream_),
               "cudaMemcpyAsync");
    block.record(stream_);
    take_out();
    full = &block;
    n_full = n;
    source += n;
    bytes -= n;
  }
  take_out();
}

DeviceMark* Marks::take(int64_t bytes) {
  std::unique_lock lock(mutex_);
  returned_.wait(lock, [&] { return n_taken_ < kMaxTaken; });
  std::unique_ptr<DeviceMark> mark;
  const auto fits = std::find_if(idle_.begin(), idle_.end(),
                                 [&](const auto& idle) { return idle->capacity >= bytes; });
  if (fits != idle_.end()) {
    mark = std::move(*fits);
    idle_.erase(fits);
  } else {
    int64_t capacity = 4096;
    while (capacity < bytes) capacity *= 2;
    mark = std::make_unique<DeviceMark>(capacity);
    // Larger ones take over: no more are kept than are under way at a time.
    if (idle_.size() >= static_cast<size_t>(kMaxTaken)) idle_.erase(idle_.begin());
  }
  ++n_taken_;
  mark->n_bytes = bytes;
  return mark.release();
}

void Marks::give_back(DeviceMark* mark) {
  {
    std::lock_guard lock(mutex_);
    idle_.emplace_back(mark);
    --n_taken_;
  }
  returned_.notify_one();
}

}  // namespace zc::cuda
