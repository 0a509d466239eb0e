#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/cuda/kernel.h"
#include "csrc/cuda/staging.h"
#include "csrc/ops/plugin.h"

namespace zc {

// Device memory that is freed in stream order when the last holder lets go.
using DeviceBlock = std::shared_ptr<void>;

// Streams and pools end with their holder, which may be a device that could not be opened whole.
struct EndStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using OwnStream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, EndStream>;
struct EndPool {
  void operator()(cudaMemPool_t pool) const { cudaMemPoolDestroy(pool); }
};
using OwnPool = std::unique_ptr<std::remove_pointer_t<cudaMemPool_t>, EndPool>;

// Launched ops. Their scratch memory must not move, so a graph holds what it was recorded with.
struct DeviceGraph {
  ~DeviceGraph() {
    // One that still runs is freed by CUDA when it is done.
    if (exec) cudaGraphExecDestroy(exec);
  }
  cudaGraphExec_t exec = nullptr;
  std::vector<DeviceBlock> blocks;
};

// A device of CUDA: one stream, one pool of memory, scratch for its ops. What Plugin says of its
// functions holds for these; all throw zc::Error.
struct DeviceContext final : cuda::Context {
  explicit DeviceContext(int32_t ordinal);
  ~DeviceContext() override;
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  // Makes CUDA's calls of this thread go to this device. Throws kDeviceLost once it was lost.
  void enter() const;
  // What an error of kDeviceLost said; nothing is asked of the device from then on.
  void set_lost(const std::string& reason);

  void* allocate(int64_t bytes);
  void* reserve(int64_t bytes);
  void release(void* memory);
  int64_t free_bytes() const;

  void write(void* to, const void* from, int64_t bytes) { staging_->write(to, from, bytes); }
  void read(void* to, const void* from, int64_t bytes) { staging_->read(to, from, bytes); }

  DeviceMark* mark(const void* from, int64_t bytes);
  void wait(DeviceMark* mark, void* to);

  void begin_recording();
  DeviceGraph* end_recording();
  void launch_graph(const DeviceGraph& graph);

  void* scratch(int64_t bytes) override;
  int32_t* counters(int64_t n) override;
  void copy(void* to, const void* from, int64_t bytes) override;
  void fill(void* to, int byte, int64_t bytes) override;

 private:
  // What CUDA answers to one try.
  cudaError_t try_to_allocate(void** memory, int64_t bytes);
  DeviceBlock allocate_block(int64_t bytes);
  // A block that the op being enqueued uses.
  void* use(const DeviceBlock& block);

  int32_t ordinal_;
  std::atomic<bool> is_lost_{false};
  mutable std::mutex mutex_;  // of the reason
  std::string lost_reason_;

  int64_t total_bytes_ = 0;
  // In this order, since what follows is freed in the stream, and that into the pool.
  OwnPool pool_;         // null where there are none: virtual GPUs, some containers
  OwnStream main_;       // where everything runs
  OwnStream recording_;  // runs nothing: its ops become graphs

  std::unique_ptr<cuda::StagingRing> staging_;
  cuda::Marks marks_;
  std::unique_ptr<DeviceGraph> graph_;  // being recorded
  DeviceBlock fault_block_;
  DeviceBlock scratch_;
  int64_t scratch_bytes_ = 0;
  DeviceBlock counters_;
  int64_t n_counters_ = 0;
};

}  // namespace zc
