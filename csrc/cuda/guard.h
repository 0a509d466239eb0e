#pragma once

#include <cstdio>
#include <new>

#include "csrc/core/error.h"
#include "csrc/cuda/device_context.h"
#include "csrc/ops/backend.h"

namespace zc::cuda {

// Runs body; what it throws goes into the status.
template <typename Body>
void guarded(OpStatus* status, const Body& body) {
  const auto fill = [&](ErrorCode code, const char* message, const char* op) {
    status->code = 1 + static_cast<int32_t>(code);
    std::snprintf(status->message, sizeof(status->message), "%s", message);
    std::snprintf(status->op, sizeof(status->op), "%s", op);
  };
  try {
    body();
  } catch (const Error& e) {
    fill(e.code, e.what(), e.op.c_str());
  } catch (const std::bad_alloc&) {
    fill(ErrorCode::kOutOfMemory, "out of memory", "");
  } catch (const std::exception& e) {
    fill(ErrorCode::kInternal, e.what(), "");
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
