#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/cuda/kernel.h"

// What the programs of bench/cuda share that run kernels without Node: a device, inputs, comparison
// and time. Each is one source file.
namespace zc::bench {

using namespace zc::cuda;

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(status));
  std::exit(1);
}

struct Buffer {
  void* data = nullptr;
  explicit Buffer(int64_t bytes) {
    check(cudaMalloc(&data, std::max<int64_t>(bytes, 1)), "malloc");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }
};

struct Device final : Context {
  Device() {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "properties");
    name = properties.name;
    n_multiprocessors = properties.multiProcessorCount;
    own_architecture = architecture = 10 * properties.major + properties.minor;
    shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    check(cudaMalloc(&fault, sizeof(Fault)), "malloc");
    check(cudaMemset(fault, 0, sizeof(Fault)), "memset");
    check(cudaMalloc(&counters_, kCounters * sizeof(int32_t)), "malloc");
    check(cudaMemset(counters_, 0, kCounters * sizeof(int32_t)), "memset");
    check(cudaMalloc(&scratch_, kScratchBytes), "malloc");
    check(cudaDeviceSynchronize(), "wait");  // the stream does not wait for what had none
  }
  void* scratch(int64_t bytes) override {
    ZC_CHECK(bytes <= kScratchBytes, ErrorCode::kOutOfMemory, "scratch");
    return scratch_;
  }
  int32_t* counters(int64_t n) override {
    ZC_CHECK(n <= kCounters, ErrorCode::kOutOfMemory, "counters");
    return counters_;
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
  }
  void fill(void* to, int byte, int64_t bytes) override {
    check(cudaMemsetAsync(to, byte, bytes, stream), "fill");
  }
  void wait() {
    check(cudaStreamSynchronize(stream), "wait");
    Fault found;
    check(cudaMemcpy(&found, fault, sizeof(found), cudaMemcpyDeviceToHost), "copy");
    if (found.reason != 0) {
      std::fprintf(stderr, "fault %d\n", found.reason);
      std::exit(1);
    }
  }

  static constexpr int64_t kScratchBytes = int64_t{1} << 28;
  static constexpr int64_t kCounters = 4096;
  std::string name;
  int own_architecture;

 private:
  int32_t* counters_;
  void* scratch_;
};

__device__ inline uint32_t hash(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

template <typename T>
__global__ void fill_normal_kernel(T* x, int64_t n, uint32_t seed) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const uint32_t bits =
      hash(static_cast<uint32_t>(i) ^ hash(seed + static_cast<uint32_t>(i >> 32)));
  const float u = (static_cast<float>(bits >> 8) + 0.5f) * 0x1p-24f;
  const float v = static_cast<float>(hash(bits) >> 8) * 0x1p-24f;
  x[i] = from_float<T>(sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
}

inline TensorView view(const Buffer& buffer, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView t;
  t.data = buffer.data;
  t.dtype = dtype;
  t.rank = static_cast<int>(shape.size());
  t.shape.fill(1);
  std::copy(shape.begin(), shape.end(), t.shape.begin());
  return t;
}

inline void fill_normal(Device& device, const TensorView& t, uint32_t seed) {
  const unsigned blocks = blocks_for(t.length(), 256);
  if (t.dtype == DType::kBF16)
    launch(device, &fill_normal_kernel<bf16>, blocks, 256, 0, t.as<bf16>(), t.length(), seed);
  else if (t.dtype == DType::kF16)
    launch(device, &fill_normal_kernel<f16>, blocks, 256, 0, t.as<f16>(), t.length(), seed);
  else
    launch(device, &fill_normal_kernel<float>, blocks, 256, 0, t.as<float>(), t.length(), seed);
}

// The instructions by which prompts are multiplied there.
inline const char* form_of(const Device& device) {
  return device.architecture == 90 ? "wgmma" : "mma";
}

// In stream order, which cudaMemcpy to the device is not.
inline void write(Device& device, const Buffer& buffer, const std::vector<int32_t>& x) {
  check(cudaMemcpyAsync(buffer.data, x.data(), x.size() * sizeof(int32_t), cudaMemcpyHostToDevice,
                        device.stream),
        "copy");
}

template <typename T>
std::vector<float> read(const Buffer& buffer, int64_t n) {
  std::vector<T> raw(static_cast<size_t>(n));
  check(cudaMemcpy(raw.data(), buffer.data, n * sizeof(T), cudaMemcpyDeviceToHost), "copy");
  std::vector<float> x(raw.size());
  std::transform(raw.begin(), raw.end(), x.begin(), [](T y) { return to_float(y); });
  return x;
}

// The largest difference of a row of `width`, relative to the row's largest value or to `floor`.
inline double worst(const std::vector<float>& x, const std::vector<float>& expected, int64_t width,
                    double floor) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); i += static_cast<size_t>(width)) {
    double largest = floor;
    double difference = 0;
    for (size_t j = i; j < i + static_cast<size_t>(width); ++j) {
      if (x[j] == expected[j]) continue;  // infinities too
      largest = std::max(largest, std::abs(double{expected[j]}));
      const double own = std::abs(double{x[j]} - double{expected[j]});
      difference = own <= difference ? difference : own;  // NaN is taken
    }
    const double relative = difference / largest;
    worst = relative <= worst ? worst : relative;
  }
  return worst;
}

// Median and spread of one call in microseconds.
struct Time {
  double median;
  double low;
  double high;
};

template <typename Body>
Time time_of(Device& device, int repeats, const Body& body) {
  cudaEvent_t begin;
  cudaEvent_t end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = -3; i < repeats; ++i) {
    check(cudaEventRecord(begin, device.stream), "record");
    body();
    check(cudaEventRecord(end, device.stream), "record");
    check(cudaEventSynchronize(end), "wait");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "time");
    if (i >= 0) times.push_back(1e3 * ms);
  }
  device.wait();
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() / 10], times[times.size() * 9 / 10]};
}

// The command line of such a program.
struct Mode {
  bool check_only = false;
  bool quick = false;

  Mode(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was found stays, should the rest not come
    for (int i = 1; i < argc; ++i) {
      check_only = check_only || !std::strcmp(argv[i], "--check");
      quick = quick || !std::strcmp(argv[i], "--quick");
    }
  }
};

// The first line that it prints.
inline void print_device(const Device& device) {
  std::printf("{\"device\": \"%s\", \"multiprocessors\": %d, \"architecture\": %d}\n",
              device.name.c_str(), device.n_multiprocessors, device.architecture);
}

}  // namespace zc::bench
