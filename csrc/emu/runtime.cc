#include "csrc/emu/runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

using zc::emu::Work;
using zc::emu::WorkRunner;

struct EmuGraph {
  std::shared_ptr<const std::vector<Work>> works;
};

// What waits to be run. Works run one at a time and in order, on the thread of whoever waits.
struct EmuStream {
  std::mutex mutex;  // of all but `running`
  std::deque<Work> queue;
  uint64_t n_enqueued = 0;
  int64_t n_until_fault = 0;  // the work that many further on fails; 0: none does
  uint64_t n_done = 0;
  bool is_recording = false;
  std::vector<Work> recorded;
  std::exception_ptr failure;  // sticks, as after a failed kernel
  std::mutex running;          // held by whoever runs works
};

struct EmuEvent {
  std::mutex mutex;
  EmuStream* stream = nullptr;
  uint64_t n_before = 0;
};

struct EmuPool {
  std::mutex mutex;
  std::unordered_map<void*, size_t> allocations;
  int64_t used = 0;
};

namespace {

// As deep as CUDA's own queue: whoever launches more waits for the oldest.
constexpr size_t kQueueDepth = 1024;
// Of the device's memory, that a stream takes: one that is left behind is missed.
constexpr int64_t kStreamBytes = 256;
// Larger blocks are not filled at first, and given back to the system when zeroed.
constexpr size_t kLargeBytes = size_t{1} << 20;
constexpr size_t kPage = 4096;

struct Emulated {
  std::mutex mutex;
  std::map<const char*, size_t> pinned;        // first byte and length
  std::unordered_map<void*, EmuPool*> owners;  // of device memory
  EmuPool no_pool;                             // what cudaMalloc gave
  std::vector<EmuStream*> streams;
};
Emulated& emulated() {
  static Emulated* const all = new Emulated;  // never destroyed: threads may outlive main
  return *all;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;
thread_local std::string failure_text;

cudaError_t give(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

int64_t number_from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

int64_t total_bytes() {
  static const int64_t physical = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return number_from_environment("ZC_EMU_MEMORY", physical);
}

std::atomic<int64_t>& used_bytes() {
  static std::atomic<int64_t> used{0};
  return used;
}

cudaError_t failure_of(EmuStream& stream) {
  if (!stream.failure) return cudaSuccess;
  try {
    std::rethrow_exception(stream.failure);
  } catch (const std::exception& e) {
    failure_text = e.what();
  }
  return give(cudaErrorLaunchFailure);
}

// Runs works until so many are done.
cudaError_t run_until(EmuStream& stream, uint64_t n) {
  std::lock_guard running(stream.running);
  WorkRunner runner;
  // Nobody else takes works, and adding some leaves the others where they are.
  const auto next = [&](size_t i) -> const Work* {
    std::lock_guard lock(stream.mutex);
    return stream.n_done + 1 + i < n ? &stream.queue[i] : nullptr;
  };
  for (;;) {
    Work work;
    {
      std::lock_guard lock(stream.mutex);
      if (stream.n_done >= n) return failure_of(stream);
      work = std::move(stream.queue.front());
      stream.queue.pop_front();
    }
    std::exception_ptr failure;
    try {
      if (!stream.failure) runner.run(work, next);
    } catch (...) {
      failure = std::current_exception();
    }
    std::lock_guard lock(stream.mutex);
    ++stream.n_done;
    if (!failure) continue;
    stream.failure = failure;
    failure_of(stream);
    // A status has no room for what every thread of a block waits for.
    std::fprintf(stderr, "cuda-emu: %s\n", failure_text.c_str());
  }
}

bool is_pinned(const void* host, size_t bytes) {
  Emulated& all = emulated();
  std::lock_guard lock(all.mutex);
  auto after = all.pinned.upper_bound(static_cast<const char*>(host));
  if (after == all.pinned.begin()) return false;
  const auto& [first, length] = *std::prev(after);
  return static_cast<const char*>(host) + bytes <= first + length;
}

// Zeros, and pages that are zeroed whole cost nothing any more.
void zero(char* to, size_t bytes) {
  char* const end = to + bytes;
  const auto up = [](char* p) {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage);
  };
  char* const first = up(to);
  char* const last = up(end - kPage + 1);
  if (bytes < kLargeBytes || first >= last) {
    std::memset(to, 0, bytes);
    return;
  }
  std::memset(to, 0, static_cast<size_t>(first - to));
  madvise(first, static_cast<size_t>(last - first), MADV_DONTNEED);
  std::memset(last, 0, static_cast<size_t>(end - last));
}

}  // namespace

namespace zc::emu {

cudaError_t enqueue(cudaStream_t stream, Work work) {
  uint64_t n_due = 0;
  {
    std::lock_guard lock(stream->mutex);
    if (stream->is_recording) {
      stream->recorded.push_back(std::move(work));
      return cudaSuccess;
    }
    if (stream->failure) return failure_of(*stream);
    if (stream->n_until_fault > 0 && --stream->n_until_fault == 0)
      work = {[] { throw std::runtime_error("a fault that was asked for"); }, {}};
    stream->queue.push_back(std::move(work));
    ++stream->n_enqueued;
    if (stream->queue.size() > kQueueDepth) n_due = stream->n_enqueued - kQueueDepth;
  }
  return n_due > 0 ? run_until(*stream, n_due) : cudaSuccess;
}

}  // namespace zc::emu

using zc::emu::enqueue;

// ---- errors ----

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    default:
      return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t status) {
  if (status == cudaErrorLaunchFailure) return failure_text.c_str();
  return cudaGetErrorName(status);
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

// ---- devices ----

cudaError_t cudaDriverGetVersion(int* version) {
  *version = static_cast<int>(number_from_environment("ZC_EMU_DRIVER", CUDART_VERSION));
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// The first is a Hopper, the second has what all others have, and little shared memory: launchers
// choose their kernels by the architecture.
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device > 1) return give(cudaErrorInvalidDevice);
  *properties = {};
  const auto architecture =
      static_cast<int>(number_from_environment("ZC_EMU_ARCHITECTURE", device == 0 ? 90 : 86));
  std::snprintf(properties->name, sizeof(properties->name), "emulated GPU");
  properties->major = architecture / 10;
  properties->minor = architecture % 10;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = static_cast<size_t>(total_bytes());
  const bool has_little = architecture == 86 || architecture == 89 || architecture >= 120;
  properties->sharedMemPerBlockOptin = (has_little ? 99 : architecture < 90 ? 163 : 227) * 1024;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return give(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = static_cast<size_t>(total_bytes());
  *free = static_cast<size_t>(std::max<int64_t>(0, total_bytes() - used_bytes()));
  return cudaSuccess;
}

// ---- streams, events, graphs ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmuStream;
  used_bytes() += kStreamBytes;
  (*stream)->n_until_fault = number_from_environment("ZC_EMU_FAULT", 0);
  std::lock_guard lock(emulated().mutex);
  emulated().streams.push_back(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  uint64_t n;
  {
    std::lock_guard lock(stream->mutex);
    n = stream->n_enqueued;
  }
  return run_until(*stream, n);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  {
    std::lock_guard lock(emulated().mutex);
    std::erase(emulated().streams, stream);
  }
  used_bytes() -= kStreamBytes;
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  std::lock_guard lock(stream->mutex);
  stream->is_recording = true;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  std::lock_guard lock(stream->mutex);
  stream->is_recording = false;
  *graph = new EmuGraph{std::make_shared<std::vector<Work>>(std::exchange(stream->recorded, {}))};
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmuEvent;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  std::lock_guard lock(event->mutex);
  std::lock_guard stream_lock(stream->mutex);
  event->stream = stream;
  event->n_before = stream->n_enqueued;
  return failure_of(*stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  EmuStream* stream;
  uint64_t n;
  {
    std::lock_guard lock(event->mutex);
    stream = event->stream;
    n = event->n_before;
  }
  return stream ? run_until(*stream, n) : cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  // So many find no memory.
  static std::atomic<int64_t> n_refused{number_from_environment("ZC_EMU_NO_GRAPHS", 0)};
  if (n_refused.load() > 0 && n_refused-- > 0) return give(cudaErrorMemoryAllocation);
  *exec = new EmuGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return enqueue(stream, [works = exec->works] {
    WorkRunner runner;
    for (size_t w = 0; w < works->size(); ++w)
      runner.run((*works)[w], [&](size_t i) {
        return w + 1 + i < works->size() ? &(*works)[w + 1 + i] : nullptr;
      });
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

// ---- memory ----

namespace {

cudaError_t allocate(void** memory, size_t bytes, EmuPool& pool) {
  const auto size = static_cast<int64_t>(bytes);
  if (used_bytes().fetch_add(size) + size > total_bytes() ||
      posix_memalign(memory, 256, bytes) != 0) {
    used_bytes() -= size;
    return give(cudaErrorMemoryAllocation);
  }
  if (bytes < kLargeBytes) std::memset(*memory, 0xff, bytes);
  Emulated& all = emulated();
  std::scoped_lock lock(all.mutex, pool.mutex);
  all.owners[*memory] = &pool;
  pool.allocations[*memory] = bytes;
  pool.used += size;
  return cudaSuccess;
}

void free_device(void* memory) {
  Emulated& all = emulated();
  std::lock_guard lock(all.mutex);
  const auto owner = all.owners.find(memory);
  if (owner == all.owners.end()) throw std::runtime_error("freed what is no allocation");
  EmuPool& pool = *owner->second;
  all.owners.erase(owner);
  std::lock_guard pool_lock(pool.mutex);
  const auto found = pool.allocations.find(memory);
  const auto size = static_cast<int64_t>(found->second);
  pool.allocations.erase(found);
  pool.used -= size;
  used_bytes() -= size;
  std::free(memory);
}

}  // namespace

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  if (number_from_environment("ZC_EMU_POOLS", 1) == 0) return give(cudaErrorNotSupported);
  *pool = new EmuPool;
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  std::lock_guard lock(pool->mutex);
  *static_cast<uint64_t*>(value) = static_cast<uint64_t>(pool->used);
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

// CUDA waits for the last allocation to be freed; after a failed kernel none is.
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  Emulated& all = emulated();
  std::lock_guard lock(all.mutex);
  for (const auto& [memory, bytes] : pool->allocations) {
    all.owners.erase(memory);
    used_bytes() -= static_cast<int64_t>(bytes);
    std::free(memory);
  }
  delete pool;
  return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void** memory, size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream) {
  {
    std::lock_guard lock(stream->mutex);
    if (stream->failure) return failure_of(*stream);
  }
  return allocate(memory, bytes, *pool);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return allocate(memory, bytes, emulated().no_pool);
}

cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  return enqueue(stream, [memory] { free_device(memory); });
}

cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  cudaError_t status = cudaSuccess;
  std::vector<EmuStream*> streams;
  {
    std::lock_guard lock(emulated().mutex);
    streams = emulated().streams;
  }
  for (EmuStream* stream : streams) {
    const cudaError_t own = cudaStreamSynchronize(stream);
    if (own != cudaSuccess) status = own;
  }
  if (status == cudaSuccess) free_device(memory);
  return status;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  if (posix_memalign(memory, kPage, bytes) != 0) return give(cudaErrorMemoryAllocation);
  Emulated& all = emulated();
  std::lock_guard lock(all.mutex);
  all.pinned[static_cast<const char*>(*memory)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  Emulated& all = emulated();
  {
    std::lock_guard lock(all.mutex);
    all.pinned.erase(static_cast<const char*>(memory));
  }
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if ((kind == cudaMemcpyHostToDevice && !is_pinned(from, bytes)) ||
      (kind == cudaMemcpyDeviceToHost && !is_pinned(to, bytes)))
    return give(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] {
    if (byte == 0)
      zero(static_cast<char*>(to), bytes);
    else
      std::memset(to, byte, bytes);
  });
}
