#include "csrc/runtime/device.h"

#include "csrc/core/error.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/runtime/limits.h"

namespace zc {

namespace {

int threads_or_default(int n_threads) { return n_threads > 0 ? n_threads : usable_processors(); }

// Null for the CPU, and for names that are none.
std::shared_ptr<PluginDevice> open_plugin(const std::string& name, const std::string& folder) {
  const std::optional<PluginName> parsed = parse_plugin_name(name);
  return parsed ? std::make_shared<PluginDevice>(*parsed, folder) : nullptr;
}

std::string isa_of(const std::string& name) {
  if (name == "cpu") return cpu::best_isa();
  return name.rfind("cpu:", 0) == 0 ? name.substr(4) : "";
}

std::shared_ptr<DeviceMemory> memory_of(const std::shared_ptr<PluginDevice>& plugin) {
  if (plugin) return plugin;
  return std::make_shared<HostMemory>();
}

}  // namespace

Device::Device(const std::string& name, int n_threads, const std::string& plugin_folder)
    : name_(name),
      plugin_(open_plugin(name, plugin_folder)),
      isa_(plugin_ ? plugin_->facts().architecture : isa_of(name)),
      backend_(plugin_ ? &plugin_->backend() : cpu::find_backend(isa_)),
      memory_(memory_of(plugin_)),
      threads_(backend_ && !plugin_ ? threads_or_default(n_threads) : 1),
      context_{&threads_, plugin_ ? plugin_->context() : nullptr},
      stream_(memory_) {
  ZC_CHECK(backend_, ErrorCode::kDevice,
           "device: '%s' is not available here, expected auto, cpu%s, cuda or cuda:N", name.c_str(),
           cpu::isa_list().c_str());
}

void Device::stop() {
  threads_.cancel();
  stream_.stop();
}

}  // namespace zc
