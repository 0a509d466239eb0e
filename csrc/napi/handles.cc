// Devices, tensors, programs and mapped files as tagged handles.
#include <unistd.h>

#include <cmath>
#include <functional>
#include <vector>

#include "csrc/napi/state.h"
#include "csrc/runtime/device_list.h"
#include "csrc/runtime/limits.h"

namespace zc::napi {

namespace {

using DevicePtr = std::shared_ptr<DeviceHandle>;

// `finalize` deletes what it is given; if there is to be no handle, nothing calls it.
template <typename T, typename Finalize>
Napi::External<T> wrap(Napi::Env env, const napi_type_tag* tag, T value, Finalize finalize) {
  auto held = std::make_unique<T>(std::move(value));
  auto external = Napi::External<T>::New(env, held.get(), finalize);
  static_cast<void>(held.release());
  external.TypeTag(tag);
  return external;
}
template <typename T>
Napi::Value wrap(Napi::Env env, const napi_type_tag* tag, T value) {
  return wrap(env, tag, std::move(value), [](Napi::Env, T* held) { delete held; });
}

template <typename T>
T& unwrap(const Napi::Value& value, const napi_type_tag* tag, const char* argument,
          const char* what) {
  const bool good = value.IsExternal() && value.As<Napi::External<T>>().CheckTypeTag(tag);
  if (!good)
    throw Error(ErrorCode::kHandle,
                std::string(argument) + ": is not a " + what + " of this environment", "",
                argument);
  return *value.As<Napi::External<T>>().Data();
}

constexpr double kMaxSafeInteger = 9007199254740991.0;

bool is_size(double value) {
  return value >= 0.0 && value <= kMaxSafeInteger && value == std::floor(value);
}

// A number of bytes of JavaScript; NaN, which is no size, for what is no number.
double number_or_nan(const Napi::Value& value) {
  return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
}

// Where elements of this dtype begin, in bytes.
void check_offset(double offset, DType dtype) {
  const auto size = static_cast<double>(dtype_size(dtype));
  if (!is_size(offset) || !is_size(offset / size))
    throw Error(ErrorCode::kShape,
                format("offset: is element %g, expected a whole number", offset / size), "",
                "offset");
}

// A string that the C side sees whole.
std::string text_of(const Napi::Value& value, const char* argument) {
  std::string text = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  if (!value.IsString() || text.find('\0') != std::string::npos)
    throw Error(ErrorCode::kArgument,
                std::string(argument) + ": is not a string without null characters", "", argument);
  return text;
}

// What crosses from the stream to the environment's thread for every marker that is passed. It is
// made with the marker: there may be no memory by then.
struct Settled {
  uint64_t id;
  DevicePtr handle;
  std::optional<Error> error;
  std::shared_ptr<Settled> held;  // itself, on its way
};

void settle(Napi::Env env, const Settled& settled) {
  AddonState& addon = state(env);
  const auto found = addon.pending.find(settled.id);
  if (found == addon.pending.end()) return;  // rejected already, when its device was disposed
  Pending pending = std::move(found->second);
  addon.pending.erase(found);
  DeviceHandle& handle = *settled.handle;
  if (--handle.n_pending == 0 && handle.device) {
    napi_unref_threadsafe_function(env, handle.settle);
    handle.external.Unref();
  }
  if (settled.error)
    pending.deferred.Reject(to_js(env, *settled.error));
  else
    pending.deferred.Resolve(pending.result.IsEmpty() ? env.Undefined() : pending.result.Value());
}

// Node's side of it, which no exception may reach. There is one as soon as a worker thread was told
// to end: from then on all that asks for JavaScript fails.
void settle_from_node(napi_env env, napi_value, void*, void* data) {
  const std::shared_ptr<Settled> settled = std::move(static_cast<Settled*>(data)->held);
  if (!env) return;  // the environment is going away
  Napi::HandleScope scope(env);
  try {
    settle(env, *settled);
  } catch (const Napi::Error& e) {
    e.ThrowAsJavaScriptException();
  }
}

// Ends the device's threads; what was queued is dropped. Runs on the environment's thread,
// idempotent.
void stop(DeviceHandle& handle) {
  if (!handle.device) return;
  handle.device->stop();
  handle.device.reset();
  handle.external.Reset();
  if (handle.settle) napi_release_threadsafe_function(handle.settle, napi_tsfn_abort);
  handle.settle = nullptr;
}

void stop_at_exit(void* data) { stop(*static_cast<DeviceHandle*>(data)); }

// ---- devices ----

// Runs work on a thread of the environment's pool and resolves to what it gives.
template <typename Result>
class InBackground final : public Napi::AsyncWorker {
 public:
  static Napi::Value run(Napi::Env env, std::function<Result()> work,
                         Napi::Value (*convert)(Napi::Env, const Result&)) {
    auto* worker = new InBackground(env, std::move(work), convert);  // deletes itself
    const Napi::Promise promise = worker->deferred_.Promise();
    worker->Queue();
    return promise;
  }

 private:
  InBackground(Napi::Env env, std::function<Result()> work,
               Napi::Value (*convert)(Napi::Env, const Result&))
      : AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        convert_(convert) {}
  void Execute() override {
    try {
      result_ = work_();
    } catch (...) {
      error_ = current_error();
    }
  }
  void OnOK() override {
    if (error_)
      deferred_.Reject(to_js(Env(), *error_));
    else
      deferred_.Resolve(convert_(Env(), result_));
  }

  Napi::Promise::Deferred deferred_;
  std::function<Result()> work_;
  Napi::Value (*convert_)(Napi::Env, const Result&);
  Result result_{};
  std::optional<Error> error_;
};

Napi::Value devices_to_js(Napi::Env env, const std::vector<ListedDevice>& devices) {
  Napi::Array result = Napi::Array::New(env, devices.size());
  for (uint32_t i = 0; i < devices.size(); ++i) {
    const ListedDevice& device = devices[i];
    Napi::Object object = Napi::Object::New(env);
    object.Set("name", device.name);
    object.Set("reason", device.reason);
    object.Set("isa", device.isa);
    object.Set("model", std::string(device.facts.name));
    object.Set("memoryBytes", static_cast<double>(device.facts.memory_bytes));
    object.Set("nMultiprocessors", device.facts.n_multiprocessors);
    object.Set("driverVersion", device.facts.driver_version);
    object.Set("runtimeVersion", device.facts.runtime_version);
    result.Set(i, object);
  }
  return result;
}

// listDevices(kind, pluginFolder) -> Promise<{ name, reason, isa, model, … }[]>
Napi::Value list_devices_js(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return InBackground<std::vector<ListedDevice>>::run(
        info.Env(),
        [kind = text_of(info[0], "kind"), folder = text_of(info[1], "pluginFolder")] {
          return list_devices(kind, folder);
        },
        devices_to_js);
  });
}

// prepareDevice(name, pluginFolder) -> Promise<void>: what would keep openDevice waiting
Napi::Value prepare_device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::optional<PluginName> plugin = parse_plugin_name(text_of(info[0], "device"));
    const std::string folder = text_of(info[1], "pluginFolder");
    return InBackground<bool>::run(
        info.Env(),
        [plugin, folder] {
          if (plugin) prepare_plugin(*plugin, folder);
          return true;
        },
        [](Napi::Env env, const bool&) { return env.Undefined(); });
  });
}

// openDevice(name, nThreads, pluginFolder) -> handle
Napi::Value open_device(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto handle = std::make_shared<DeviceHandle>();
    handle->device = std::make_shared<Device>(text_of(info[0], "device"),
                                              info[1].As<Napi::Number>().Int32Value(),
                                              text_of(info[2], "pluginFolder"));
    // First, since its finalizer undoes the rest; where it cannot be made, nothing else is there.
    auto external = wrap(env, &kDeviceTag, DevicePtr(handle), [](Napi::Env e, DevicePtr* held) {
      napi_remove_env_cleanup_hook(e, stop_at_exit, held->get());
      stop(**held);
      delete held;
    });
    const napi_status status = napi_create_threadsafe_function(
        env, nullptr, nullptr, Napi::String::New(env, "zipcache stream"), 0, 1, nullptr, nullptr,
        nullptr, settle_from_node, &handle->settle);
    ZC_CHECK(status == napi_ok, ErrorCode::kInternal, "device: no threadsafe function");
    napi_unref_threadsafe_function(env, handle->settle);
    // After the threadsafe function: hooks run last to first, so the stream's thread ends before
    // its road back closes.
    napi_add_env_cleanup_hook(env, stop_at_exit, handle.get());
    handle->external = Napi::Reference<Napi::Value>::New(external, 0);
    return external;
  });
}

Napi::Value dispose_device(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    DevicePtr& handle = unwrap<DevicePtr>(info[0], &kDeviceTag, "device", "device");
    if (!handle->device) return env.Undefined();
    const Device* device = handle->device.get();
    stop(*handle);
    AddonState& addon = state(env);
    for (auto it = addon.pending.begin(); it != addon.pending.end();) {
      if (it->second.device != device) {
        ++it;
        continue;
      }
      it->second.deferred.Reject(
          to_js(env, Error(ErrorCode::kHandle, "device: it was disposed", "", "device")));
      it = addon.pending.erase(it);
    }
    return env.Undefined();
  });
}

// deviceInfo(device) -> { name, kind, isa, nThreads }
Napi::Value device_info(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const Device& device = *device_of(info[0], "device")->device;
    Napi::Object result = Napi::Object::New(env);
    result.Set("name", device.name());
    result.Set("kind", device.is_gpu() ? "gpu" : "cpu");
    result.Set("isa", device.isa());
    result.Set("nThreads", device.n_threads());
    return result;
  });
}

// deviceMemory(device) -> { current, peak, total, free }, in bytes
Napi::Value device_memory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    DeviceMemory& memory = *device_of(info[0], "device")->device->memory();
    Napi::Object result = Napi::Object::New(env);
    result.Set("current", static_cast<double>(memory.account().current.load()));
    result.Set("peak", static_cast<double>(memory.account().peak.load()));
    result.Set("total", static_cast<double>(memory.total_bytes()));
    result.Set("free", static_cast<double>(memory.free_bytes()));
    return result;
  });
}

// unrecordedRuns(device) -> how many there were
Napi::Value unrecorded_runs(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::shared_ptr<PluginDevice>& plugin = device_of(info[0], "device")->device->plugin();
    const int64_t n = plugin ? plugin->n_unrecorded() : 0;
    return Napi::Number::New(info.Env(), static_cast<double>(n));
  });
}

Napi::Value sync(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DevicePtr& handle = device_of(info[0], "device");
    refuse_while_recording(*handle);
    return promise_at_marker(info.Env(), handle, {}, Napi::Value());
  });
}

// ---- tensors ----

// The shape as an array of whole numbers, and the dtype, of arguments `at` and `at + 1`.
TensorView read_view(const Napi::CallbackInfo& info, size_t at) {
  TensorView view;
  const int32_t dtype = info[at].As<Napi::Number>().Int32Value();
  if (dtype < 0 || dtype >= kDTypeCount)
    throw Error(ErrorCode::kDtype, "dtype: unknown", "", "dtype");
  view.dtype = static_cast<DType>(dtype);
  if (!info[at + 1].IsArray())
    throw Error(ErrorCode::kShape, "shape: is not an array", "", "shape");
  const auto shape = info[at + 1].As<Napi::Array>();
  if (shape.Length() < 1 || shape.Length() > kMaxRank)
    throw Error(ErrorCode::kShape,
                format("shape: has %u axes, expected 1 to %d", shape.Length(), kMaxRank), "",
                "shape");
  view.rank = static_cast<int>(shape.Length());
  view.shape.fill(1);
  int64_t bytes = static_cast<int64_t>(dtype_size(view.dtype));
  for (uint32_t i = 0; i < shape.Length(); ++i) {
    const double size = number_or_nan(shape.Get(i));
    if (!(size >= 0.0) || size != std::floor(size))
      throw Error(ErrorCode::kShape,
                  format("shape: axis %u is %g, expected a whole number", i, size), "", "shape");
    if (size > kMaxSafeInteger)
      throw Error(ErrorCode::kOutOfMemory, "shape: more bytes than can be addressed", "", "shape");
    view.shape[i] = static_cast<int64_t>(size);
    if (__builtin_mul_overflow(bytes, view.shape[i], &bytes))
      throw Error(ErrorCode::kOutOfMemory, "shape: more bytes than can be addressed", "", "shape");
  }
  return view;
}

Napi::Value make_tensor(Napi::Env env, std::shared_ptr<Storage> storage, TensorView view,
                        const DevicePtr& device) {
  return wrap(env, &kTensorTag, TensorHandle{std::move(storage), view, device});
}

// createTensor(device, dtype, shape) -> handle
Napi::Value create_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DevicePtr& device = device_of(info[0], "device");
    TensorView view = read_view(info, 1);
    auto storage = Storage::allocate(device->device->memory(), view.size_bytes());
    view.data = storage->data();
    return make_tensor(info.Env(), std::move(storage), view, device);
  });
}

// reserveTensor(device, dtype, shape) -> handle of a tensor that holds zeros and costs memory only
// where it was written, if the device can do that
Napi::Value reserve_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DevicePtr& device = device_of(info[0], "device");
    TensorView view = read_view(info, 1);
    if (view.length() == 0)
      throw Error(ErrorCode::kShape, "shape: is empty, expected elements", "", "shape");
    auto storage = Storage::reserve(device->device->memory(), view.size_bytes());
    view.data = storage->data();
    return make_tensor(info.Env(), std::move(storage), view, device);
  });
}

// discardBytes(tensor, offset, bytes): enqueued; pages of a reservation hold zeros again
Napi::Value discard_bytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    TensorHandle& tensor = tensor_of(info[0], "tensor");
    const double offset_value = number_or_nan(info[1]);
    const double bytes_value = number_or_nan(info[2]);
    ZC_CHECK(tensor.storage->reserved() && is_size(offset_value) && is_size(bytes_value) &&
                 offset_value + bytes_value <= static_cast<double>(tensor.storage->bytes()),
             ErrorCode::kArgument, "discard: bytes %g to %g are not within a reservation",
             offset_value, offset_value + bytes_value);
    const auto offset = static_cast<int64_t>(offset_value);
    const auto bytes = static_cast<int64_t>(bytes_value);
    // The system takes whole pages: a part of one would stay, or take its neighbours along.
    const int64_t page = sysconf(_SC_PAGESIZE);
    const bool whole = bytes % page == 0 || offset + bytes == tensor.storage->bytes();
    ZC_CHECK(offset % page == 0 && whole, ErrorCode::kArgument,
             "discard: bytes %lld to %lld are not whole pages of %lld",
             static_cast<long long>(offset), static_cast<long long>(offset + bytes),
             static_cast<long long>(page));
    const DevicePtr device = device_of(tensor, "tensor");
    refuse_while_recording(*device);
    device->device->stream().enqueue(
        [storage = tensor.storage, offset, bytes] { storage->discard(offset, bytes); });
    return info.Env().Undefined();
  });
}

// viewTensor(tensor, dtype, shape, byteOffset) -> handle that shares the storage
Napi::Value view_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    TensorHandle& tensor = tensor_of(info[0], "tensor");
    TensorView view = read_view(info, 1);
    const double offset = number_or_nan(info[3]);
    check_offset(offset, view.dtype);
    const auto available = static_cast<double>(tensor.view.size_bytes());
    if (offset + static_cast<double>(view.size_bytes()) > available)
      throw Error(ErrorCode::kShape,
                  format("shape: %s at byte %.0f reaches beyond the tensor's %.0f bytes",
                         shape_text(view).c_str(), offset, available),
                  "", "shape");
    view.data = tensor.view.as<char>() + static_cast<int64_t>(offset);
    return make_tensor(info.Env(), tensor.storage, view, device_of(tensor, "tensor"));
  });
}

Napi::Value dispose_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    TensorHandle& tensor = unwrap<TensorHandle>(info[0], &kTensorTag, "tensor", "tensor");
    tensor.storage.reset();  // queued commands hold their own reference
    return info.Env().Undefined();
  });
}

// Bytes of a typed array that are to be stored in a tensor, copied: JavaScript may change them at
// once.
struct StagedWrite {
  std::vector<char> bytes;
  std::shared_ptr<Storage> storage;
  char* to;
  void operator()(DeviceMemory& memory) const {
    memory.write(to, bytes.data(), static_cast<int64_t>(bytes.size()));
  }
};

StagedWrite stage_write(TensorHandle& tensor, const Napi::Value& values, double offset_value) {
  if (tensor.storage->read_only())
    throw Error(ErrorCode::kArgument, "tensor: is a file's, which cannot be written", "", "tensor");
  if (!values.IsTypedArray())
    throw Error(ErrorCode::kDtype, "values: is not a typed array", "", "values");
  const auto array = values.As<Napi::TypedArray>();
  check_offset(offset_value, tensor.view.dtype);
  const auto offset = static_cast<int64_t>(offset_value);
  const auto bytes = static_cast<int64_t>(array.ByteLength());
  if (offset > tensor.view.size_bytes() - bytes)
    throw Error(ErrorCode::kShape,
                format("values: %lld bytes at byte %lld, expected to fit into %lld",
                       static_cast<long long>(bytes), static_cast<long long>(offset),
                       static_cast<long long>(tensor.view.size_bytes())),
                "", "values");
  const auto* from = static_cast<const char*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  return {std::vector<char>(from, from + bytes), tensor.storage, tensor.view.as<char>() + offset};
}

// writeTensor(tensor, typedArray, byteOffset): copied now, stored in stream order
Napi::Value write_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    TensorHandle& tensor = tensor_of(info[0], "tensor");
    const DevicePtr device = device_of(tensor, "tensor");
    refuse_while_recording(*device);
    device->device->stream().enqueue([write = stage_write(tensor, info[1], number_or_nan(info[2])),
                                      memory = device->device->memory()] { write(*memory); });
    return info.Env().Undefined();
  });
}

// N-API's own function ends the process when there is no memory; JavaScript's constructor throws.
Napi::ArrayBuffer new_array_buffer(Napi::Env env, size_t bytes) {
  static const int64_t usable = usable_memory_bytes();
  try {
    if (static_cast<int64_t>(bytes) <= usable)
      return env.Global()
          .Get("ArrayBuffer")
          .As<Napi::Function>()
          .New({Napi::Number::New(env, static_cast<double>(bytes))})
          .As<Napi::ArrayBuffer>();
  } catch (const Napi::Error&) {
  }
  throw Error(ErrorCode::kOutOfMemory,
              format("tensor: %zu bytes do not fit into JavaScript's memory", bytes), "", "tensor");
}

// A tensor's bytes on their way into an ArrayBuffer. The stream copies straight into JavaScript's
// memory, which the pending promise holds until then.
struct StagedRead {
  Stream::Read read;
  Napi::ArrayBuffer buffer;
};

StagedRead stage_read(Napi::Env env, const TensorHandle& tensor) {
  const int64_t bytes = tensor.view.size_bytes();
  Napi::ArrayBuffer buffer = new_array_buffer(env, static_cast<size_t>(bytes));
  return {{tensor.storage, buffer.Data(), tensor.view.data, bytes}, buffer};
}

// readTensor(tensor) -> Promise<ArrayBuffer>
Napi::Value read_tensor(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    TensorHandle& tensor = tensor_of(info[0], "tensor");
    const DevicePtr device = device_of(tensor, "tensor");
    refuse_while_recording(*device);
    const StagedRead staged = stage_read(env, tensor);
    return promise_at_marker(env, device, staged.read, staged.buffer);
  });
}

// ---- programs ----

// beginRecording(device): ops go to a program until endRecording
Napi::Value begin_recording(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DevicePtr& device = device_of(info[0], "device");
    refuse_while_recording(*device);
    device->recording = std::make_shared<Program>(device->device->plugin());
    return info.Env().Undefined();
  });
}

// endRecording(device) -> handle of the program
Napi::Value end_recording(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DevicePtr& device = device_of(info[0], "device");
    ZC_CHECK(device->recording, ErrorCode::kArgument, "device: is not recording");
    return wrap(info.Env(), &kProgramTag, ProgramHandle{std::move(device->recording), device});
  });
}

// A tensor of the program's own device.
TensorHandle& tensor_on(const DevicePtr& device, const Napi::Value& value, const char* argument) {
  TensorHandle& tensor = tensor_of(value, argument);
  if (device_of(tensor, argument) != device)
    throw Error(ErrorCode::kDevice,
                std::string(argument) + ": lives on another device than the program", "", argument);
  return tensor;
}

// runProgram(program, input, values, output) -> Promise<ArrayBuffer>: stores the values in `input`,
// runs, reads `output`; one command of the stream for all three
Napi::Value run_program(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    ProgramHandle& handle = unwrap<ProgramHandle>(info[0], &kProgramTag, "program", "program");
    DevicePtr device = handle.device.lock();
    if (!handle.program || !device || !device->device)
      throw Error(ErrorCode::kHandle, "program: it or its device was disposed", "", "program");
    refuse_while_recording(*device);
    TensorHandle& input = tensor_on(device, info[1], "input");
    TensorHandle& output = tensor_on(device, info[3], "output");
    StagedWrite write = stage_write(input, info[2], 0);
    const StagedRead staged = stage_read(env, output);  // a run whose result has no room is none
    return promise_at_marker(
        env, device, staged.read, staged.buffer,
        [write = std::move(write), program = handle.program, memory = device->device->memory()] {
          write(*memory);
          program->run();
        });
  });
}

// disposeProgram(program): idempotent; queued runs hold their own reference
Napi::Value dispose_program(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    unwrap<ProgramHandle>(info[0], &kProgramTag, "program", "program").program.reset();
    return info.Env().Undefined();
  });
}

// ---- mapped files ----

// mapFile(path) -> handle
Napi::Value map_file(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return wrap(info.Env(), &kFileTag, std::make_shared<MappedFile>(text_of(info[0], "path")));
  });
}

// tensorFromFile(device, file, byteOffset, dtype, shape) -> read-only handle; a copy where the file
// is not aligned, or the device cannot use the host's memory
Napi::Value tensor_from_file(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DevicePtr& device = device_of(info[0], "device");
    std::shared_ptr<MappedFile>& file = file_of(info[1], "file");
    const double offset_value = number_or_nan(info[2]);
    if (!is_size(offset_value))
      throw Error(ErrorCode::kCheckpoint,
                  format("offset: is %g, expected a whole number", offset_value), "", "offset");
    const auto offset = static_cast<int64_t>(offset_value);
    TensorView view = read_view(info, 3);
    ZC_CHECK(offset <= file->bytes() - view.size_bytes(), ErrorCode::kCheckpoint,
             "file: %lld bytes at %lld reach beyond its end at %lld",
             static_cast<long long>(view.size_bytes()), static_cast<long long>(offset),
             static_cast<long long>(file->bytes()));
    const int64_t bytes = view.size_bytes();
    auto range = std::make_shared<const MappedRange>(file, offset, bytes);
    char* from = const_cast<char*>(range->data());
    const std::shared_ptr<DeviceMemory>& memory = device->device->memory();
    std::shared_ptr<Storage> storage;
    if (memory->is_host() && reinterpret_cast<uintptr_t>(from) % dtype_size(view.dtype) == 0) {
      storage = Storage::borrow(std::move(range), from, bytes);
    } else {
      refuse_while_recording(*device);
      storage = Storage::allocate(memory, bytes);
      storage->make_read_only();
      device->device->stream().enqueue([memory, storage, range = std::move(range), bytes] {
        memory->write(storage->data(), range->data(), bytes);
      });
    }
    view.data = storage->data();
    return make_tensor(info.Env(), std::move(storage), view, device);
  });
}

}  // namespace

std::shared_ptr<DeviceHandle>& device_of(const Napi::Value& value, const char* argument) {
  DevicePtr& handle = unwrap<DevicePtr>(value, &kDeviceTag, argument, "device");
  if (!handle->device)
    throw Error(ErrorCode::kHandle, std::string(argument) + ": it was disposed", "", argument);
  return handle;
}

TensorHandle& tensor_of(const Napi::Value& value, const char* argument) {
  TensorHandle& tensor = unwrap<TensorHandle>(value, &kTensorTag, argument, "tensor");
  if (!tensor.storage)
    throw Error(ErrorCode::kHandle, std::string(argument) + ": it was disposed", "", argument);
  return tensor;
}

std::shared_ptr<DeviceHandle> device_of(const TensorHandle& tensor, const char* argument) {
  DevicePtr handle = tensor.device.lock();
  if (!handle || !handle->device)
    throw Error(ErrorCode::kHandle, std::string(argument) + ": its device was disposed", "",
                argument);
  return handle;
}

std::shared_ptr<MappedFile>& file_of(const Napi::Value& value, const char* argument) {
  return unwrap<std::shared_ptr<MappedFile>>(value, &kFileTag, argument, "mapped file");
}

void refuse_while_recording(const DeviceHandle& handle) {
  ZC_CHECK(!handle.recording, ErrorCode::kArgument,
           "device: is recording a program, which holds ops alone");
}

Napi::Value promise_at_marker(Napi::Env env, const std::shared_ptr<DeviceHandle>& handle,
                              Stream::Read read, Napi::Value result,
                              std::function<void()> command) {
  AddonState& addon = state(env);
  const uint64_t id = addon.next_pending++;
  Pending pending{Napi::Promise::Deferred::New(env), {}, handle->device.get()};
  if (!result.IsEmpty()) pending.result = Napi::Reference<Napi::Value>::New(result, 1);
  const Napi::Value promise = pending.deferred.Promise();
  auto settled = std::make_shared<Settled>(Settled{id, handle, {}, nullptr});
  auto reached = [settled](std::optional<Error> error) {
    settled->error = std::move(error);
    settled->held = settled;
    if (napi_call_threadsafe_function(settled->handle->settle, settled.get(),
                                      napi_tsfn_nonblocking) != napi_ok)
      settled->held.reset();
  };
  const auto kept = addon.pending.emplace(id, std::move(pending)).first;
  try {
    handle->device->stream().enqueue_marker(std::move(read), std::move(reached),
                                            std::move(command));
  } catch (...) {
    addon.pending.erase(kept);
    throw;
  }
  if (handle->n_pending++ == 0) {
    napi_ref_threadsafe_function(env, handle->settle);
    handle->external.Ref();
  }
  return promise;
}

void register_handles(Napi::Object exports) {
  define<list_devices_js>(exports, "listDevices");
  define<prepare_device>(exports, "prepareDevice");
  define<open_device>(exports, "openDevice");
  define<dispose_device>(exports, "disposeDevice");
  define<device_info>(exports, "deviceInfo");
  define<device_memory>(exports, "deviceMemory");
  define<unrecorded_runs>(exports, "unrecordedRuns");
  define<sync>(exports, "sync");
  define<create_tensor>(exports, "createTensor");
  define<reserve_tensor>(exports, "reserveTensor");
  define<discard_bytes>(exports, "discardBytes");
  define<view_tensor>(exports, "viewTensor");
  define<dispose_tensor>(exports, "disposeTensor");
  define<write_tensor>(exports, "writeTensor");
  define<read_tensor>(exports, "readTensor");
  define<begin_recording>(exports, "beginRecording");
  define<end_recording>(exports, "endRecording");
  define<run_program>(exports, "runProgram");
  define<dispose_program>(exports, "disposeProgram");
  define<map_file>(exports, "mapFile");
  define<tensor_from_file>(exports, "tensorFromFile");
}

}  // namespace zc::napi
