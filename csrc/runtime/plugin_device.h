#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "csrc/ops/plugin.h"
#include "csrc/runtime/memory.h"

namespace zc {

// Throws what a status reports; a message begins with the argument that is wrong, and a colon. `op`
// is the op that was called, "" for none: a status may name another.
void check_status(const OpStatus& status, const char* op = "");

// The device that a name like "cuda", "cuda:1" or "cuda-emu" means.
struct PluginName {
  std::string kind;     // "cuda"
  int32_t ordinal = 0;  // from 0
};

// Null for a name of no plugin's. Throws kDevice for a number that is none.
std::optional<PluginName> parse_plugin_name(const std::string& name);

// The table of a plugin, a shared library named zipcache-<kind>.so, which stays loaded from then
// on. Throws kDevice with the reason when there is no such library or when it was built for another
// version of the addon.
const Plugin* load_plugin(const std::string& kind, const std::string& folder);

// Does the slow part of opening, on any thread: it can take a second. Throws nothing: opening will.
void prepare_plugin(const PluginName& name, const std::string& folder);

// A device of a plugin.
class PluginDevice final : public DeviceMemory {
 public:
  // folder: where the library lies. Throws kDevice with the reason when the device cannot be used.
  PluginDevice(const PluginName& name, const std::string& folder);
  ~PluginDevice() override;
  PluginDevice(const PluginDevice&) = delete;
  PluginDevice& operator=(const PluginDevice&) = delete;

  const Backend& backend() const { return *plugin_->backend; }
  DeviceContext* context() const { return context_; }
  const DeviceFacts& facts() const { return facts_; }

  // Runs `enqueue_ops` with the device recording instead of running; throws what it throws.
  DeviceGraph* record(const std::function<void()>& enqueue_ops);
  void launch(DeviceGraph* graph);
  void release(DeviceGraph* graph) { plugin_->release_graph(context_, graph); }

  // Runs of programs op by op because there was no memory for their graph.
  void count_unrecorded() { n_unrecorded_++; }
  int64_t n_unrecorded() const { return n_unrecorded_; }

  void* allocate(int64_t bytes) override;
  void* reserve(int64_t bytes) override;
  void release(void* data, int64_t bytes, bool reserved) override;
  int64_t total_bytes() const override { return facts_.memory_bytes; }
  int64_t free_bytes() const override;
  void discard(void* data, int64_t bytes) override;
  void write(void* to, const void* from, int64_t bytes) override;
  std::unique_ptr<Pending> read(void* to, const void* from, int64_t bytes) override;
  bool is_host() const override { return false; }

 private:
  const Plugin* plugin_;
  DeviceContext* context_;
  DeviceFacts facts_{};
  std::atomic<int64_t> n_unrecorded_{0};
};

}  // namespace zc
