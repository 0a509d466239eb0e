#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/core/tensor_view.h"
#include "csrc/runtime/device.h"
#include "csrc/runtime/mapped_file.h"
#include "csrc/runtime/program.h"

namespace zc::napi {

// A promise that the stream of a device will settle, and what it keeps alive until then. Touched on
// the environment's thread only; the stream's thread knows its number.
struct Pending {
  Napi::Promise::Deferred deferred;
  Napi::Reference<Napi::Value> result;  // what the promise resolves to; empty: undefined
  const Device* device;
};

// What one environment (the main thread, or a worker thread) owns. Nothing native is shared between
// environments.
struct AddonState {
  Napi::FunctionReference error_class;  // ZipCacheError of lib/errors.ts
  std::unordered_map<uint64_t, Pending> pending;
  uint64_t next_pending = 1;
};

// A device of this environment with the road back from its stream's thread.
struct DeviceHandle {
  std::shared_ptr<Device> device;
  napi_threadsafe_function settle = nullptr;
  // What JavaScript holds, held here while a promise is pending: a collected device would end its
  // stream, and the promise with it.
  Napi::Reference<Napi::Value> external;
  int n_pending = 0;
  std::shared_ptr<Program> recording;  // where ops go instead of the stream; null: not recording
};

// A program is of one device: its ops run on that device's own thread.
struct ProgramHandle {
  std::shared_ptr<Program> program;  // null once disposed
  std::weak_ptr<DeviceHandle> device;
};

struct TensorHandle {
  std::shared_ptr<Storage> storage;  // null once disposed
  TensorView view;
  std::weak_ptr<DeviceHandle> device;
};

// Type tags: a handle of another kind, or an object that is no handle, is refused instead of
// crashing.
inline constexpr napi_type_tag kDeviceTag = {0x7c1f0d6b9a2e4c01ull, 0x9d3b5a7e11c04f01ull};
inline constexpr napi_type_tag kTensorTag = {0x7c1f0d6b9a2e4c02ull, 0x9d3b5a7e11c04f02ull};
inline constexpr napi_type_tag kProgramTag = {0x7c1f0d6b9a2e4c04ull, 0x9d3b5a7e11c04f04ull};
inline constexpr napi_type_tag kFileTag = {0x7c1f0d6b9a2e4c03ull, 0x9d3b5a7e11c04f03ull};

inline AddonState& state(Napi::Env env) { return *env.GetInstanceData<AddonState>(); }

// ---- errors.cc: the one place where zc::Error becomes a ZipCacheError ----
Napi::Value to_js(Napi::Env env, const Error& error);
[[noreturn]] void throw_js(Napi::Env env, const Error& error);

// Runs body, turning what it throws into a thrown ZipCacheError. Anything else that came out of a
// function which JavaScript called would end the process.
template <typename Body>
auto guarded(Napi::Env env, const Body& body, const char* op = "") {
  try {
    return body();
  } catch (const Napi::Error&) {  // JavaScript's own
    throw;
  } catch (...) {
    Error error = current_error();
    if (*op) error.op = op;
    throw_js(env, error);
  }
}

// Makes `f` a function of the addon, under this name. node-addon-api's own way ends the process for
// what is no Napi::Error, and takes memory for more than six arguments before `f` is called.
template <Napi::Value (*f)(const Napi::CallbackInfo&)>
void define(Napi::Object exports, const char* name) {
  const auto call = [](napi_env env, napi_callback_info info) -> napi_value {
    try {
      return guarded(env, [&] { return f(Napi::CallbackInfo(env, info)); });
    } catch (const Napi::Error& e) {
      e.ThrowAsJavaScriptException();
      return nullptr;
    }
  };
  napi_value function = nullptr;
  const napi_status status =
      napi_create_function(exports.Env(), name, NAPI_AUTO_LENGTH, call, nullptr, &function);
  NAPI_THROW_IF_FAILED_VOID(exports.Env(), status);
  exports.Set(name, function);
}

// ---- handles.cc ----
std::shared_ptr<DeviceHandle>& device_of(const Napi::Value& value, const char* argument);
TensorHandle& tensor_of(const Napi::Value& value, const char* argument);
std::shared_ptr<DeviceHandle> device_of(const TensorHandle& tensor, const char* argument);
std::shared_ptr<MappedFile>& file_of(const Napi::Value& value, const char* argument);

// A program holds ops alone: copies between it and JavaScript belong to its runs.
void refuse_while_recording(const DeviceHandle& handle);

// Enqueues `command`, if there is any; a promise that is settled when it and everything before it
// has run and `read` was read.
Napi::Value promise_at_marker(Napi::Env env, const std::shared_ptr<DeviceHandle>& handle,
                              Stream::Read read, Napi::Value result,
                              std::function<void()> command = nullptr);

void register_handles(Napi::Object exports);

// ---- ops.cc ----
void register_ops(Napi::Object exports);

// ---- stored_weights.cc ----
void register_stored_weights(Napi::Object exports);

}  // namespace zc::napi
