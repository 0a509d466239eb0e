#include "csrc/runtime/plugin_device.h"

#include <dlfcn.h>

#include "csrc/core/error.h"

namespace zc {

namespace {

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

}  // namespace

void check_status(const OpStatus& status, const char* op) {
  if (status.code == 0) return;
  const std::string message = status.message;
  const size_t colon = message.find(':');
  throw Error(static_cast<ErrorCode>(status.code - 1), message, status.op[0] ? status.op : op,
              colon == std::string::npos ? "" : message.substr(0, colon));
}

PluginDevice::PluginDevice(const std::string& kind, int32_t ordinal, const std::string& folder)
    : plugin_(load_plugin(kind, folder)), ordinal_(ordinal) {
  OpStatus status;
  const int32_t count = plugin_->device_count(&status);
  check_status(status);
  ZC_CHECK(ordinal < count, ErrorCode::kDevice, "device: is %s:%d, expected less than %d",
           kind.c_str(), ordinal, count);
  context_ = plugin_->open(ordinal, &status);
  check_status(status);
}

PluginDevice::~PluginDevice() { plugin_->close(context_); }

std::string PluginDevice::architecture() const {
  OpStatus status;
  DeviceFacts facts;
  plugin_->device_facts(ordinal_, &facts, &status);
  check_status(status);
  return facts.architecture;
}

void PluginDevice::synchronize() {
  OpStatus status;
  plugin_->synchronize(context_, &status);
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

void PluginDevice::read(void* to, const void* from, int64_t bytes) {
  OpStatus status;
  if (bytes > 0) plugin_->read(context_, to, from, bytes, &status);
  check_status(status);
}

}  // namespace zc
