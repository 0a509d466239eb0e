#pragma once

#include <memory>
#include <string>

#include "csrc/ops/plugin.h"
#include "csrc/runtime/memory.h"

namespace zc {

// Throws what a status reports; messages begin with the argument that is wrong. `op` is the op that
// was called, "" for none: a status may name another.
void check_status(const OpStatus& status, const char* op = "");

// A device of a plugin: a shared library named zipcache-<kind>.so, which stays loaded once it was
// asked for.
class PluginDevice final : public DeviceMemory {
 public:
  // kind "cuda" or "cuda-emu"; folder: where the library lies. Throws kDevice with the reason when
  // there is no such library, when it was built for another version of the addon, or when its
  // device cannot be used.
  PluginDevice(const std::string& kind, int32_t ordinal, const std::string& folder);
  ~PluginDevice() override;
  PluginDevice(const PluginDevice&) = delete;
  PluginDevice& operator=(const PluginDevice&) = delete;

  const Backend& backend() const { return *plugin_->backend; }
  DeviceContext* context() const { return context_; }
  std::string architecture() const;

  // Waits for everything that was enqueued; throws the first thing that went wrong since the last
  // call.
  void synchronize();

  void* allocate(int64_t bytes) override;
  void* reserve(int64_t bytes) override;
  void release(void* data, int64_t bytes, bool reserved) override;
  void discard(void* data, int64_t bytes) override;
  void write(void* to, const void* from, int64_t bytes) override;
  void read(void* to, const void* from, int64_t bytes) override;
  bool is_host() const override { return false; }

 private:
  const Plugin* plugin_;
  DeviceContext* context_;
  int32_t ordinal_;
};

}  // namespace zc
