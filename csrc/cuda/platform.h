#pragma once

#include <cstdint>
#include <cstdio>
#include <new>

#include "csrc/core/error.h"
#include "csrc/ops/plugin.h"

namespace zc::cuda {

class Context;

// What differs between a GPU and the emulator: csrc/cuda/platform.cu and csrc/emu/platform.cc each
// define these, and the plugin's entry.
Context& context_of(DeviceContext* device);

// For the message of a fault.
const char* op_name(int32_t index);

extern const Backend kBackend;

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

}  // namespace zc::cuda
