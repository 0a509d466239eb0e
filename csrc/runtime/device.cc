#include "csrc/runtime/device.h"

#include <algorithm>
#include <thread>

#include "csrc/core/error.h"
#include "csrc/cpu/dispatch.h"

namespace zc {

namespace {

int threads_or_default(int n_threads) {
  if (n_threads > 0) return n_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

Device::Device(const std::string& name, int n_threads)
    : name_(name),
      isa_(name == "cpu"                ? cpu::best_isa()
           : name.rfind("cpu:", 0) == 0 ? name.substr(4)
                                        : ""),
      backend_(cpu::find_backend(isa_)),
      memory_(std::make_shared<MemoryAccount>()),
      threads_(backend_ ? threads_or_default(n_threads) : 1),
      context_{&threads_} {
  ZC_CHECK(backend_, ErrorCode::kDevice, "device: '%s' is not available here, expected cpu%s",
           name.c_str(), cpu::isa_list().c_str());
}

void Device::stop() {
  threads_.cancel();
  stream_.stop();
}

}  // namespace zc
