#include "csrc/cuda/device_context.h"

#include <algorithm>
#include <cstring>

#include "csrc/cuda/fault.h"
#include "csrc/cuda/publish.h"

namespace zc {

using cuda::check_cuda;

namespace {

// Reads up to here go through the kernel that publishes faults; larger ones are copied beside it.
constexpr int64_t kPublishBytes = 64 << 10;

// A stream that does not wait for whatever else the process does with CUDA.
OwnStream create_stream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  return OwnStream(stream);
}

// A pool to allocate from in stream order; null where the device has none.
OwnPool create_pool(int32_t ordinal, cudaStream_t stream) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = ordinal;
  cudaMemPool_t created = nullptr;
  cudaError_t status = cudaMemPoolCreate(&created, &properties);
  OwnPool pool(status == cudaSuccess ? created : nullptr);
  if (pool) {
    // Some say so only when they are to give memory.
    void* trial = nullptr;
    status = cudaMallocFromPoolAsync(&trial, 1, pool.get(), stream);
    if (status == cudaSuccess) status = cudaFreeAsync(trial, stream);
  }
  if (status == cudaErrorNotSupported) {
    cudaGetLastError();
    return nullptr;
  }
  check_cuda(status, "a pool of memory");
  // Freed memory stays in the pool: an allocation costs microseconds, not a round to the driver.
  uint64_t threshold = UINT64_MAX;
  check_cuda(cudaMemPoolSetAttribute(pool.get(), cudaMemPoolAttrReleaseThreshold, &threshold),
             "cudaMemPoolSetAttribute");
  return pool;
}

}  // namespace

DeviceContext::DeviceContext(int32_t ordinal) : ordinal_(ordinal) {
  check_cuda(cudaSetDevice(ordinal), "cudaSetDevice");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  architecture = 10 * properties.major + properties.minor;
  n_multiprocessors = properties.multiProcessorCount;
  shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
  total_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  main_ = create_stream();
  recording_ = create_stream();
  stream = main_.get();
  pool_ = create_pool(ordinal, stream);
  staging_ = std::make_unique<cuda::StagingRing>(stream);
  fault_block_ = allocate_block(sizeof(cuda::Fault));
  fault = static_cast<cuda::Fault*>(fault_block_.get());
  fill(fault, 0, sizeof(cuda::Fault));
}

DeviceContext::~DeviceContext() {
  // Of a device that was lost every call fails, and nothing is to be done about it.
  cudaSetDevice(ordinal_);
  cudaStreamSynchronize(main_.get());
}

void DeviceContext::enter() const {
  if (is_lost_) {
    std::lock_guard lock(mutex_);
    throw Error(ErrorCode::kDeviceLost, lost_reason_);
  }
  check_cuda(cudaSetDevice(ordinal_), "cudaSetDevice");
}

void DeviceContext::set_lost(const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (is_lost_) return;
  lost_reason_ = reason;
  is_lost_ = true;
}

// ---- memory ----

cudaError_t DeviceContext::try_to_allocate(void** memory, int64_t bytes) {
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  return pool_ ? cudaMallocFromPoolAsync(memory, size, pool_.get(), main_.get())
               : cudaMalloc(memory, size);
}

void* DeviceContext::allocate(int64_t bytes) {
  void* memory = nullptr;
  cudaError_t status = cudaErrorMemoryAllocation;
  if (bytes <= total_bytes_) {
    status = try_to_allocate(&memory, bytes);
    if (status == cudaErrorMemoryAllocation && pool_) {
      // What was freed may not be free before the stream gets there, or lie in pieces in the pool.
      cudaGetLastError();
      check_cuda(cudaStreamSynchronize(main_.get()), "cudaStreamSynchronize");
      check_cuda(cudaMemPoolTrimTo(pool_.get(), 0), "cudaMemPoolTrimTo");
      status = try_to_allocate(&memory, bytes);
    }
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(ErrorCode::kOutOfMemory,
                format("%lld bytes do not fit: the device has %lld bytes, %lld of them free",
                       static_cast<long long>(bytes), static_cast<long long>(total_bytes_),
                       static_cast<long long>(free_bytes())));
  }
  check_cuda(status, "an allocation");
  return memory;
}

void* DeviceContext::reserve(int64_t bytes) {
  void* memory = allocate(bytes);
  // Not fill(): this may be another thread than the one that records.
  check_cuda(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), main_.get()),
             "cudaMemsetAsync");
  return memory;
}

void DeviceContext::release(void* memory) {
  // Nothing can be done about a failure, and the next call reports what is behind it. cudaFree
  // waits for everything that was enqueued.
  const cudaError_t status = pool_ ? cudaFreeAsync(memory, main_.get()) : cudaFree(memory);
  if (status != cudaSuccess) cudaGetLastError();
}

int64_t DeviceContext::free_bytes() const {
  size_t free = 0;
  size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  if (!pool_) return static_cast<int64_t>(free);
  uint64_t reserved = 0;
  uint64_t used = 0;
  check_cuda(cudaMemPoolGetAttribute(pool_.get(), cudaMemPoolAttrReservedMemCurrent, &reserved),
             "cudaMemPoolGetAttribute");
  check_cuda(cudaMemPoolGetAttribute(pool_.get(), cudaMemPoolAttrUsedMemCurrent, &used),
             "cudaMemPoolGetAttribute");
  return static_cast<int64_t>(free + (reserved - used));
}

DeviceBlock DeviceContext::allocate_block(int64_t bytes) {
  return {allocate(bytes), [this](void* memory) { release(memory); }};
}

void* DeviceContext::use(const DeviceBlock& block) {
  if (graph_ && (graph_->blocks.empty() || graph_->blocks.back() != block))
    graph_->blocks.push_back(block);
  return block.get();
}

void* DeviceContext::scratch(int64_t bytes) {
#if defined(__CUDACC__)
  constexpr bool kAlwaysNew = false;
#else
  // Exactly what was asked for, and full of NaN: a kernel must write what it reads.
  constexpr bool kAlwaysNew = true;
#endif
  if (bytes <= 0) return nullptr;
  if (kAlwaysNew || bytes > scratch_bytes_) {
    constexpr int64_t kUnit = int64_t{2} << 20;
    const int64_t size = kAlwaysNew ? bytes : (bytes + kUnit - 1) / kUnit * kUnit;
    // The old block is freed after the ops that were enqueued with it, or with their graph; before
    // the new one is taken, lest both have to fit.
    scratch_.reset();
    scratch_bytes_ = 0;
    scratch_ = allocate_block(size);
    scratch_bytes_ = size;
  }
  return use(scratch_);
}

int32_t* DeviceContext::counters(int64_t n) {
  if (n > n_counters_) {
    const int64_t size = std::max<int64_t>(n, 1024);
    DeviceBlock block = allocate_block(size * int64_t{sizeof(int32_t)});
    // On the main stream even while ops are recorded: once, not with every replay.
    check_cuda(
        cudaMemsetAsync(block.get(), 0, static_cast<size_t>(size) * sizeof(int32_t), main_.get()),
        "cudaMemsetAsync");
    counters_ = std::move(block);
    n_counters_ = size;
  }
  return static_cast<int32_t*>(use(counters_));
}

void DeviceContext::copy(void* to, const void* from, int64_t bytes) {
  if (bytes <= 0) return;
  check_cuda(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
      "cudaMemcpyAsync");
}

void DeviceContext::fill(void* to, int byte, int64_t bytes) {
  if (bytes <= 0) return;
  check_cuda(cudaMemsetAsync(to, byte, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
}

// ---- marks ----

DeviceMark* DeviceContext::mark(const void* from, int64_t bytes) {
#if !defined(__CUDACC__)
  // Here and not in front of each op, whose kernel could not begin early then.
  if (counters_)
    check_cuda(
        emu::enqueue(main_.get(),
                     [words = static_cast<const int32_t*>(counters_.get()), n = n_counters_] {
                       for (int64_t i = 0; i < n; ++i)
                         if (words[i] != 0)
                           throw Error(ErrorCode::kInternal,
                                       format("a kernel left a counter at %d", words[i]));
                     }),
        "a check of the counters");
#endif
  DeviceMark* mark = marks_.take(bytes);
  try {
    if (bytes > kPublishBytes)
      check_cuda(cudaMemcpyAsync(mark->bytes(), from, static_cast<size_t>(bytes),
                                 cudaMemcpyDeviceToHost, main_.get()),
                 "cudaMemcpyAsync");
    cuda::publish(*this, mark->bytes(), from, bytes > kPublishBytes ? 0 : bytes, mark->fault());
    mark->block.record(main_.get());
  } catch (...) {
    marks_.give_back(mark);
    throw;
  }
  return mark;
}

void DeviceContext::wait(DeviceMark* mark, void* to) {
  struct GiveBack {
    cuda::Marks& marks;
    DeviceMark* mark;
    ~GiveBack() { marks.give_back(mark); }
  } give_back{marks_, mark};
  enter();
  mark->block.wait();
  if (to && mark->n_bytes > 0) std::memcpy(to, mark->bytes(), static_cast<size_t>(mark->n_bytes));
  cuda::throw_fault(*mark->fault());
}

// ---- graphs ----

void DeviceContext::begin_recording() {
  auto begun = std::make_unique<DeviceGraph>();
  // Relaxed: what other threads of the process do with CUDA meanwhile is theirs.
  check_cuda(cudaStreamBeginCapture(recording_.get(), cudaStreamCaptureModeRelaxed),
             "cudaStreamBeginCapture");
  graph_ = std::move(begun);
  stream = recording_.get();
}

DeviceGraph* DeviceContext::end_recording() {
  stream = main_.get();
  std::unique_ptr<DeviceGraph> done = std::move(graph_);
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(recording_.get(), &graph), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&done->exec, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "cudaGraphInstantiate");
  return done.release();
}

void DeviceContext::launch_graph(const DeviceGraph& graph) {
  check_cuda(cudaGraphLaunch(graph.exec, main_.get()), "cudaGraphLaunch");
}

}  // namespace zc
