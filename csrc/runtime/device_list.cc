#include "csrc/runtime/device_list.h"

#include "csrc/core/error.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/runtime/limits.h"
#include "csrc/runtime/plugin_device.h"

namespace zc {

namespace {

ListedDevice describe_cpu() {
  ListedDevice cpu;
  cpu.name = "cpu";
  cpu.isa = cpu::best_isa();
  cpu.facts.memory_bytes = usable_memory_bytes();
  return cpu;
}

}  // namespace

std::vector<ListedDevice> list_devices(const std::string& kind, const std::string& folder) {
  if (kind == "cpu") return {describe_cpu()};
  std::vector<ListedDevice> devices;
  try {
    const Plugin* plugin = load_plugin(kind, folder);
    OpStatus counted;
    const int32_t count = plugin->device_count(&counted);
    check_status(counted);
    for (int32_t i = 0; i < count; ++i) {
      ListedDevice device;
      OpStatus status;
      plugin->device_facts(i, &device.facts, &status);
      device.name = kind + ":" + std::to_string(i);
      device.isa = device.facts.architecture;
      if (status.code != 0) device.reason = status.message;
      devices.push_back(device);
    }
  } catch (const Error& e) {
    ListedDevice missing;
    missing.name = kind;
    missing.reason = e.message;
    devices.push_back(missing);
  }
  return devices;
}

}  // namespace zc
