// When each kernel of a program began and ended, by CUPTI, a line each: microseconds since the first
// began, microseconds since the one before ended (negative: they overlapped), its own, grid, name. For
// any program, whole CUDA graphs with it:
//   g++ -std=c++20 -O1 -shared -fPIC bench/cuda/timeline.cc -o timeline.so
//     -I$CUDA/include -I$CUPTI/include -L$CUPTI/lib -lcupti
//   TIMELINE=kernels.txt CUDA_INJECTION64_PATH=$PWD/timeline.so LD_LIBRARY_PATH=$CUPTI/lib PROGRAM ...
#include <cupti.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Kernel {
  uint64_t begin;  // ns
  uint64_t end;
  int grid[3];
  std::string name;
};

std::mutex mutex;
std::vector<Kernel> kernels;

void CUPTIAPI lend_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *size = size_t{8} << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(64, *size));
  *max_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  const std::lock_guard lock(mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto* k = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
    kernels.push_back({k->start, k->end, {k->gridX, k->gridY, k->gridZ}, k->name});
  }
  std::free(buffer);
}

void write_timeline() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  const char* path = std::getenv("TIMELINE");
  std::FILE* file = std::fopen(path ? path : "timeline.txt", "w");
  if (!file) {
    std::perror("TIMELINE");
    return;
  }
  const std::lock_guard lock(mutex);
  std::sort(kernels.begin(), kernels.end(),
            [](const Kernel& a, const Kernel& b) { return a.begin < b.begin; });
  uint64_t ended = kernels.empty() ? 0 : kernels.front().begin;
  for (const Kernel& k : kernels) {
    const auto us = [](uint64_t to, uint64_t from) {
      return (static_cast<double>(to) - static_cast<double>(from)) * 1e-3;
    };
    std::fprintf(file, "%12.2f %9.2f %9.2f %d,%d,%d %s\n", us(k.begin, kernels.front().begin),
                 us(k.begin, ended), us(k.end, k.begin), k.grid[0], k.grid[1], k.grid[2],
                 k.name.c_str());
    ended = std::max(ended, k.end);
  }
  std::fclose(file);
}

}  // namespace

// What CUDA calls in a library that CUDA_INJECTION64_PATH names.
extern "C" int InitializeInjection() {
  cuptiActivityRegisterCallbacks(lend_buffer, take_buffer);
  const CUptiResult result = cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  if (result != CUPTI_SUCCESS) std::fprintf(stderr, "timeline: CUPTI answered %d\n", result);
  std::atexit(write_timeline);
  return 1;
}
