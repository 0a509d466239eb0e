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

// The devices of a kind: "cpu", or a plugin's whose library lies in the folder. One without a
// number and with the reason when there is none. May take a second the first time.
std::vector<ListedDevice> list_devices(const std::string& kind, const std::string& folder);

}  // namespace zc
