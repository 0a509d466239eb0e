#include "csrc/cuda/device_query.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "csrc/cuda/kernel.h"

namespace zc::cuda {

namespace {

// Before a device is open none can be lost: `unknown error` is a driver that does not start.
void check_start(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(ErrorCode::kDevice, format("device: %s: %s (%s)", call, cudaGetErrorString(status),
                                         cudaGetErrorName(status)));
}

}  // namespace

bool has_code_for(const char* architectures, int architecture) {
  std::string list = architectures;
  while (!list.empty()) {
    const size_t end = list.find_first_of(";,");
    const std::string entry = list.substr(0, end);
    list = end == std::string::npos ? "" : list.substr(end + 1);
    char* rest = nullptr;
    const auto number = static_cast<int>(std::strtol(entry.c_str(), &rest, 10));
    const bool is_specific = *rest == 'a' || *rest == 'f';
    const std::string kind = is_specific ? rest + 1 : rest;
    const bool same_major = architecture / 10 == number / 10;
    if (is_specific) {
      if (architecture == number) return true;
      continue;
    }
    if (kind != "-virtual" && same_major && architecture >= number) return true;
    if (kind != "-real" && architecture >= number) return true;
  }
  return false;
}

int32_t device_count() {
  int driver = 0;
  check_start(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  ZC_CHECK(driver > 0, ErrorCode::kDevice, "device: there is no NVIDIA driver on this machine");
  // A runtime works with every driver of its major version.
  constexpr int kMajor = CUDART_VERSION / 1000;
  ZC_CHECK(driver / 1000 >= kMajor, ErrorCode::kDevice,
           "device: the NVIDIA driver is for CUDA %d.%d, expected %d.0 or newer", driver / 1000,
           driver % 1000 / 10, kMajor);
  int count = 0;
  check_start(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  ZC_CHECK(count > 0, ErrorCode::kDevice, "device: there is no NVIDIA GPU on this machine");
  return count;
}

void query_device(int32_t ordinal, DeviceFacts* facts) {
  *facts = {};
  check_start(cudaDriverGetVersion(&facts->driver_version), "cudaDriverGetVersion");
  check_start(cudaRuntimeGetVersion(&facts->runtime_version), "cudaRuntimeGetVersion");
  cudaDeviceProp properties{};
  check_start(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  const int architecture = 10 * properties.major + properties.minor;
  std::snprintf(facts->name, sizeof(facts->name), "%.127s", properties.name);
  std::snprintf(facts->architecture, sizeof(facts->architecture), "sm_%d", architecture);
  facts->n_multiprocessors = properties.multiProcessorCount;
  facts->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  ZC_CHECK(has_code_for(ZC_CUDA_ARCHITECTURES, architecture), ErrorCode::kDevice,
           "device: %s is an sm_%d, and this build has code for %s alone", facts->name,
           architecture, ZC_CUDA_ARCHITECTURES);
}

}  // namespace zc::cuda
