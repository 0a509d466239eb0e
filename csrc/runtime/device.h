#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "csrc/core/thread_pool.h"
#include "csrc/ops/backend.h"
#include "csrc/runtime/memory.h"
#include "csrc/runtime/plugin_device.h"
#include "csrc/runtime/stream.h"

namespace zc {

// A backend together with its queue and its memory. Each environment opens devices of its own.
class Device {
 public:
  // name: "cpu", or "cpu:baseline", "cpu:avx2" … to pin an instruction set; "cuda", "cuda:N" or
  // "cuda-emu", whose libraries lie in plugin_folder. n_threads, of the CPU, 0 takes
  // usable_processors(). Throws kDevice when there is no such device on this machine.
  Device(const std::string& name, int n_threads, const std::string& plugin_folder);

  const std::string& name() const { return name_; }
  // Whether it is a plugin's: a GPU, or the emulator of one.
  bool is_gpu() const { return plugin_ != nullptr; }
  // The instruction set, or what a plugin calls its architecture.
  const std::string& isa() const { return isa_; }
  int n_threads() const { return threads_.n_threads(); }
  const Backend& backend() const { return *backend_; }
  Stream& stream() { return stream_; }
  const OpContext& context() const { return context_; }
  const std::shared_ptr<DeviceMemory>& memory() const { return memory_; }
  const std::shared_ptr<PluginDevice>& plugin() const { return plugin_; }

  // Drops queued work, gives up running loops and ends the threads. Idempotent.
  void stop();

 private:
  std::string name_;
  std::shared_ptr<PluginDevice> plugin_;  // null: the CPU
  std::string isa_;
  const Backend* backend_;
  std::shared_ptr<DeviceMemory> memory_;
  ThreadPool threads_;
  OpContext context_;
  Stream stream_;  // last: its thread uses all of the above
};

}  // namespace zc
