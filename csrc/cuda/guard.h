#pragma once

#include <cstdio>

#include "csrc/core/error.h"
#include "csrc/cuda/device_context.h"
#include "csrc/ops/backend.h"

namespace zc::cuda {

// Runs body; what it throws goes into the status.
template <typename Body>
void guarded(OpStatus* status, const Body& body) {
  try {
    body();
  } catch (...) {
    const Error error = current_error();
    status->code = 1 + static_cast<int32_t>(error.code);
    std::snprintf(status->message, sizeof(status->message), "%s", error.what());
    std::snprintf(status->op, sizeof(status->op), "%s", error.op.c_str());
  }
}

// Runs body on a device, unless it was lost; remembers when it is.
template <typename Body>
void on_device(DeviceContext* device, OpStatus* status, const Body& body) {
  guarded(status, [&] {
    device->enter();
    body();
  });
  if (status->code == 1 + static_cast<int32_t>(ErrorCode::kDeviceLost))
    device->set_lost(status->message);
}

}  // namespace zc::cuda
