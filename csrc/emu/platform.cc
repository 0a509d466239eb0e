// The emulator as a plugin: one device whose memory is the host's, and whose stream is whoever
// calls.
#include "csrc/cuda/platform.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "csrc/cuda/fault.h"
#include "csrc/cuda/kernel.h"

namespace zc {

struct DeviceContext {
  virtual ~DeviceContext() = default;
};

namespace cuda {

namespace {

int64_t memory_bytes() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

void check_room(int64_t bytes) {
  ZC_CHECK(bytes <= memory_bytes(), ErrorCode::kOutOfMemory,
           "a tensor of %lld bytes does not fit: the device has %lld bytes",
           static_cast<long long>(bytes), static_cast<long long>(memory_bytes()));
}

void* allocate_aligned(int64_t bytes) {
  check_room(bytes);
  // Exactly so many bytes, so that AddressSanitizer sees the end of each.
  void* memory = nullptr;
  const size_t size = bytes > 0 ? static_cast<size_t>(bytes) : 1;
  if (posix_memalign(&memory, 256, size) != 0)
    throw Error(ErrorCode::kOutOfMemory, format("a tensor of %lld bytes could not be allocated",
                                                static_cast<long long>(bytes)));
  return memory;
}

// What the devices say they are: Hopper's instructions have kernels of their own, all others share
// theirs.
struct Architecture {
  int number;  // 10 major + minor
  int shared_bytes_per_block;
};
constexpr Architecture kArchitectures[] = {{90, 227 * 1024}, {80, 99 * 1024}};
constexpr int32_t kDevices = 2;

struct EmulatedContext final : DeviceContext, Context {
  explicit EmulatedContext(const Architecture& is) {
    architecture = is.number;
    shared_bytes_per_block = is.shared_bytes_per_block;
    n_multiprocessors = 4;
    fault = &found;
  }
  ~EmulatedContext() override {
    for (void* block : scratch_blocks) std::free(block);
  }

  void* scratch(int64_t bytes) override {
    if (bytes > scratch_bytes) {
      scratch_blocks.push_back(allocate_aligned(bytes));
      scratch_bytes = bytes;
    }
    // A kernel must write what it reads: 0xff is NaN in every float type.
    if (bytes > 0) std::memset(scratch_blocks.back(), 0xff, static_cast<size_t>(bytes));
    return scratch_blocks.empty() ? nullptr : scratch_blocks.back();
  }
  int32_t* counters(int64_t n) override {
    for (const int32_t value : counter_words)
      ZC_CHECK(value == 0, ErrorCode::kInternal, "device: a kernel left a counter at %d", value);
    if (static_cast<int64_t>(counter_words.size()) < n)
      counter_words.resize(static_cast<size_t>(n), 0);
    return counter_words.data();
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0) std::memmove(to, from, static_cast<size_t>(bytes));
  }
  void fill(void* to, int byte, int64_t bytes) override {
    if (bytes > 0) std::memset(to, byte, static_cast<size_t>(bytes));
  }

  Fault found{};
  std::vector<void*> scratch_blocks;
  int64_t scratch_bytes = 0;
  std::mutex mutex;                                // of the reservations
  std::unordered_map<void*, size_t> reservations;  // address and length
  std::vector<int32_t> counter_words;
};

EmulatedContext& emulated(DeviceContext* device) { return static_cast<EmulatedContext&>(*device); }

int32_t device_count(OpStatus*) { return kDevices; }

void device_facts(int32_t ordinal, DeviceFacts* facts, OpStatus*) {
  *facts = {};
  std::snprintf(facts->name, sizeof(facts->name), "emulated CUDA device");
  std::snprintf(facts->architecture, sizeof(facts->architecture), "emulated sm_%d",
                kArchitectures[ordinal].number);
  facts->n_multiprocessors = 4;
  facts->memory_bytes = memory_bytes();
}

DeviceContext* open(int32_t ordinal, OpStatus* status) {
  DeviceContext* device = nullptr;
  guarded(status, [&] {
    ZC_CHECK(ordinal < kDevices, ErrorCode::kDevice, "device: is number %d, expected 0 to %d",
             ordinal, kDevices - 1);
    device = new EmulatedContext(kArchitectures[ordinal]);
  });
  return device;
}

void close(DeviceContext* device) { delete device; }

void* allocate(DeviceContext*, int64_t bytes, OpStatus* status) {
  void* memory = nullptr;
  guarded(status, [&] { memory = allocate_aligned(bytes); });
  return memory;
}

// Zeros that cost memory only where they are touched: an engine reserves for the worst case.
void* reserve(DeviceContext* device, int64_t bytes, OpStatus* status) {
  void* memory = nullptr;
  guarded(status, [&] {
    check_room(bytes);
    memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    EmulatedContext& context = emulated(device);
    std::lock_guard lock(context.mutex);
    context.reservations[memory] = static_cast<size_t>(bytes);
  });
  return memory;
}

void release(DeviceContext* device, void* memory) {
  EmulatedContext& context = emulated(device);
  std::lock_guard lock(context.mutex);
  const auto found = context.reservations.find(memory);
  if (found == context.reservations.end()) {
    std::free(memory);
    return;
  }
  munmap(memory, found->second);
  context.reservations.erase(found);
}

void copy(DeviceContext* device, void* to, const void* from, int64_t bytes, OpStatus*) {
  emulated(device).copy(to, from, bytes);
}

void fill(DeviceContext* device, void* to, int32_t byte, int64_t bytes, OpStatus*) {
  emulated(device).fill(to, byte, bytes);
}

void synchronize(DeviceContext* device, OpStatus* status) {
  guarded(status, [&] { throw_fault(*emulated(device).fault); });
}

const Plugin kPlugin = {
    kPluginVersion, "cuda-emu",  &kBackend, device_count, device_facts, open,
    close,          allocate,    reserve,   release,      copy,         copy,
    fill,           synchronize, nullptr,   nullptr,      nullptr,      nullptr,
};

}  // namespace

Context& context_of(DeviceContext* device) { return emulated(device); }

}  // namespace cuda
}  // namespace zc

extern "C" __attribute__((visibility("default"))) const zc::Plugin* zipcache_plugin() {
  return &zc::cuda::kPlugin;
}
