#include "csrc/runtime/device.h"

#include <algorithm>
#include <charconv>
#include <thread>

#include "csrc/core/error.h"
#include "csrc/cpu/dispatch.h"

namespace zc {

namespace {

int threads_or_default(int n_threads) {
  if (n_threads > 0) return n_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The plugin's device that a name like "cuda" or "cuda:1" means; null for every other name.
std::shared_ptr<PluginDevice> open_plugin(const std::string& name, const std::string& folder) {
  const std::string kind = name.substr(0, name.find(':'));
  if (kind != "cuda" && kind != "cuda-emu") return nullptr;
  int32_t ordinal = 0;
  if (kind.size() < name.size()) {
    const char* begin = name.c_str() + kind.size() + 1;
    const char* end = name.c_str() + name.size();
    const auto [stop, fault] = std::from_chars(begin, end, ordinal);
    ZC_CHECK(fault == std::errc{} && stop == end && ordinal >= 0, ErrorCode::kDevice,
             "device: is '%s', expected a number after '%s:'", name.c_str(), kind.c_str());
  }
  return std::make_shared<PluginDevice>(kind, ordinal, folder);
}

std::string isa_of(const std::string& name) {
  if (name == "cpu") return cpu::best_isa();
  return name.rfind("cpu:", 0) == 0 ? name.substr(4) : "";
}

}  // namespace

Device::Device(const std::string& name, int n_threads, const std::string& plugin_folder)
    : name_(name),
      plugin_(open_plugin(name, plugin_folder)),
      isa_(plugin_ ? plugin_->architecture() : isa_of(name)),
      backend_(plugin_ ? &plugin_->backend() : cpu::find_backend(isa_)),
      memory_(plugin_),
      threads_(backend_ && !plugin_ ? threads_or_default(n_threads) : 1),
      context_{&threads_, plugin_ ? plugin_->context() : nullptr},
      stream_(plugin_ ? [plugin = plugin_.get()] { plugin->synchronize(); }
                      : std::function<void()>()) {
  ZC_CHECK(backend_, ErrorCode::kDevice, "device: '%s' is not available here, expected cpu%s, cuda",
           name.c_str(), cpu::isa_list().c_str());
  if (!memory_) memory_ = std::make_shared<HostMemory>();
}

void Device::stop() {
  threads_.cancel();
  stream_.stop();
}

}  // namespace zc
