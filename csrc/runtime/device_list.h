#pragma once

#include <string>
#include <vector>

#include "csrc/ops/plugin.h"

namespace zc {

// A device that there is, or the reason why there is none.
struct ListedDevice {
  std::string name;    // as Device is opened: "cpu", "cuda:0"
  std::string reason;  // why it cannot be opened; "": it can
  std::string isa;
  DeviceFacts facts{};  // of a plugin's device, as far as they are known
};

// The CPU, and the devices of the plugins whose libraries lie in the folder; of the GPU also when
// there is no library. May take a second the first time.
std::vector<ListedDevice> list_devices(const std::string& plugin_folder);

}  // namespace zc
