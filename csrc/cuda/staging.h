#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "csrc/cuda/kernel.h"

// Pinned host memory between the caller's and the device's: what CUDA copies without waiting.
namespace zc::cuda {

// Pinned host memory and an event, freed together.
class PinnedBlock {
 public:
  explicit PinnedBlock(int64_t bytes);
  ~PinnedBlock();
  PinnedBlock(const PinnedBlock&) = delete;
  PinnedBlock& operator=(const PinnedBlock&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // What was enqueued so far is done once wait() returns.
  void record(cudaStream_t stream);
  void wait();

 private:
  char* data_ = nullptr;
  int64_t bytes_;
  cudaEvent_t event_ = nullptr;
};

// Copies of any length between the device and pageable memory, through a ring of blocks. Small
// writes share a block, so that most cost neither a wait nor an event. For one thread at a time.
class StagingRing {
 public:
  explicit StagingRing(cudaStream_t stream);

  // Returns when `from` may change; the copy is done in stream order.
  void write(void* to, const void* from, int64_t bytes);
  // Returns when the bytes are there.
  void read(void* to, const void* from, int64_t bytes);

 private:
  static constexpr int64_t kBlockBytes = int64_t{1} << 20;
  static constexpr size_t kBlocks = 8;

  // The next block, free to be overwritten.
  PinnedBlock& advance();

  cudaStream_t stream_;
  std::array<std::unique_ptr<PinnedBlock>, kBlocks> blocks_;
  size_t current_ = 0;
  int64_t filled_ = 0;  // bytes of the current block
};

}  // namespace zc::cuda

namespace zc {

// A place in the stream: a block that holds the fault and then the bytes that were asked for.
struct DeviceMark {
  explicit DeviceMark(int64_t capacity) : block(kHead + capacity), capacity(capacity) {}

  cuda::Fault* fault() { return reinterpret_cast<cuda::Fault*>(block.data()); }
  char* bytes() { return block.data() + kHead; }

  static constexpr int64_t kHead = 64;
  static_assert(sizeof(cuda::Fault) <= kHead);
  cuda::PinnedBlock block;
  int64_t capacity;
  int64_t n_bytes = 0;
};

namespace cuda {

// The marks of a device, used again and again.
class Marks {
 public:
  // Room for all there can be: giving one back must not fail.
  Marks() { idle_.reserve(2 * kMaxTaken); }

  // A mark with room for so many bytes; waits while too many are under way.
  DeviceMark* take(int64_t bytes);
  // On any thread.
  void give_back(DeviceMark* mark);

 private:
  // Marks under way at a time: what is read is one step behind what runs, not a hundred.
  static constexpr int kMaxTaken = 64;

  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<DeviceMark>> idle_;
  int n_taken_ = 0;
};

}  // namespace cuda
}  // namespace zc
