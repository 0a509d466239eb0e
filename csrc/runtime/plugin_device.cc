#include "csrc/runtime/plugin_device.h"

#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "csrc/core/error.h"

namespace zc {

namespace {

// A place in the plugin's stream.
class PendingMark final : public Pending {
 public:
  // Before the mark is made: one that nobody holds is lost.
  PendingMark(const Plugin* plugin, DeviceContext* context, void* to)
      : plugin_(plugin), context_(context), to_(to) {}
  ~PendingMark() override {
    OpStatus ignored;  // nobody waits any more
    if (mark_) plugin_->wait(context_, mark_, nullptr, &ignored);
  }
  void make(const void* from, int64_t bytes) {
    OpStatus status;
    mark_ = plugin_->mark(context_, from, bytes, &status);
    check_status(status);
  }
  void wait() override {
    OpStatus status;
    plugin_->wait(context_, std::exchange(mark_, nullptr), to_, &status);
    check_status(status);
  }

 private:
  const Plugin* plugin_;
  DeviceContext* context_;
  DeviceMark* mark_ = nullptr;
  void* to_;
};

}  // namespace

void check_status(const OpStatus& status, const char* op) {
  if (status.code == 0) return;
  const std::string message = status.message;
  const size_t end = std::min(message.find_first_of(": "), message.size());
  const bool names_argument = end < message.size() && message[end] == ':';
  throw Error(static_cast<ErrorCode>(status.code - 1), message, status.op[0] ? status.op : op,
              names_argument ? message.substr(0, end) : "");
}

const Plugin* load_plugin(const std::string& kind, const std::string& folder) {
  const std::string file = folder + "/zipcache-" + kind + ".so";
  // Never unloaded: CUDA's runtime within it has threads and handlers of its own.
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* reason = dlerror();
    throw Error(ErrorCode::kDevice,
                "device: the library of '" + kind +
                    "' cannot be loaded: " + (reason ? reason : file.c_str()),
                "", "device");
  }
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(library, kPluginEntry));
  const Plugin* plugin = entry ? entry() : nullptr;
  ZC_CHECK(plugin, ErrorCode::kDevice, "device: %s is no plugin of zipcache", file.c_str());
  // Only after this may anything else in it be looked at.
  ZC_CHECK(plugin->version == kPluginVersion, ErrorCode::kDevice,
           "device: %s has version %u, expected %u: build it again", file.c_str(), plugin->version,
           kPluginVersion);
  ZC_CHECK(plugin->backend->version == kBackendVersion, ErrorCode::kDevice,
           "device: the ops of %s have version %u, expected %u: build it again", file.c_str(),
           plugin->backend->version, kBackendVersion);
  return plugin;
}

std::optional<PluginName> parse_plugin_name(const std::string& name) {
  PluginName parsed{name.substr(0, name.find(':'))};
  if (parsed.kind != "cuda" && parsed.kind != "cuda-emu") return std::nullopt;
  if (parsed.kind.size() == name.size()) return parsed;
  const char* begin = name.c_str() + parsed.kind.size() + 1;
  const char* end = name.c_str() + name.size();
  const auto [stop, fault] = std::from_chars(begin, end, parsed.ordinal);
  ZC_CHECK(fault == std::errc{} && stop == end && parsed.ordinal >= 0, ErrorCode::kDevice,
           "device: is '%s', expected a number after '%s:'", name.c_str(), parsed.kind.c_str());
  return parsed;
}

void prepare_plugin(const PluginName& name, const std::string& folder) {
  try {
    const Plugin* plugin = load_plugin(name.kind, folder);
    OpStatus status;
    const int32_t count = plugin->device_count(&status);
    if (status.code == 0 && name.ordinal < count) plugin->prepare(name.ordinal, &status);
  } catch (const Error&) {
  }
}

PluginDevice::PluginDevice(const PluginName& name, const std::string& folder)
    : plugin_(load_plugin(name.kind, folder)) {
  OpStatus status;
  const int32_t count = plugin_->device_count(&status);
  check_status(status);
  ZC_CHECK(name.ordinal < count, ErrorCode::kDevice,
           "device: is %s:%d, but there is no such device: expected less than %d",
           name.kind.c_str(), name.ordinal, count);
  plugin_->device_facts(name.ordinal, &facts_, &status);
  check_status(status);
  context_ = plugin_->open(name.ordinal, &status);
  check_status(status);
}

PluginDevice::~PluginDevice() { plugin_->close(context_); }

DeviceGraph* PluginDevice::record(const std::function<void()>& enqueue_ops) {
  OpStatus status;
  plugin_->begin_recording(context_, &status);
  check_status(status);
  try {
    enqueue_ops();
  } catch (...) {  // whatever it is: a stream that goes on recording runs nothing any more
    OpStatus ignored;
    release(plugin_->end_recording(context_, &ignored));
    throw;
  }
  DeviceGraph* graph = plugin_->end_recording(context_, &status);
  check_status(status);
  return graph;
}

void PluginDevice::launch(DeviceGraph* graph) {
  OpStatus status;
  plugin_->launch_graph(context_, graph, &status);
  check_status(status);
}

void* PluginDevice::allocate(int64_t bytes) {
  OpStatus status;
  void* data = plugin_->allocate(context_, bytes, &status);
  check_status(status);
  return data;
}

void* PluginDevice::reserve(int64_t bytes) {
  OpStatus status;
  void* data = plugin_->reserve(context_, bytes, &status);
  check_status(status);
  return data;
}

void PluginDevice::release(void* data, int64_t, bool) { plugin_->release(context_, data); }

void PluginDevice::discard(void* data, int64_t bytes) {
  OpStatus status;
  plugin_->fill(context_, data, 0, bytes, &status);
  check_status(status);
}

void PluginDevice::write(void* to, const void* from, int64_t bytes) {
  OpStatus status;
  if (bytes > 0) plugin_->write(context_, to, from, bytes, &status);
  check_status(status);
}

int64_t PluginDevice::free_bytes() const {
  OpStatus status;
  const int64_t bytes = plugin_->free_bytes(context_, &status);
  check_status(status);
  return bytes;
}

std::unique_ptr<Pending> PluginDevice::read(void* to, const void* from, int64_t bytes) {
  OpStatus status;
  const bool is_long = bytes > kMaxMarkBytes;
  auto pending = std::make_unique<PendingMark>(plugin_, context_, is_long ? nullptr : to);
  if (is_long) plugin_->read(context_, to, from, bytes, &status);
  check_status(status);
  pending->make(from, is_long ? 0 : bytes);
  return pending;
}

}  // namespace zc
