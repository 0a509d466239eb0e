#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "csrc/runtime/plugin_device.h"

namespace zc {

// Ops recorded once, with their arguments checked, to be run again and again as one command of the
// stream. What changes between runs is data in the tensors that the ops read. The ops hold
// references to their tensors' storage, so a program keeps what it uses.
//
// On a plugin's device the first run enqueues op by op, which loads the kernels and finds out how
// much scratch memory they take; the second makes a graph of them, which later runs launch. Where
// there is no memory for a graph, runs go on op by op, and it is tried again after a while.
class Program {
 public:
  // plugin: of a device that has one; null: the CPU.
  explicit Program(std::shared_ptr<PluginDevice> plugin) : plugin_(std::move(plugin)) {}
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void add(std::function<void()> op) { ops_.push_back(std::move(op)); }

  // Runs all ops in order, on the stream's thread. Throws what the first failing op throws; those
  // after it are not run.
  void run();

 private:
  void run_ops() const {
    for (const auto& op : ops_) op();
  }
  // Whether it has launched the graph. Nothing has run if not.
  bool launch();

  // Making a graph takes longer than running one op by op.
  static constexpr int kRunsBeforeNextTry = 64;

  std::shared_ptr<PluginDevice> plugin_;
  std::vector<std::function<void()>> ops_;
  bool has_run_ = false;
  DeviceGraph* graph_ = nullptr;
  int n_until_try_ = 0;
};

}  // namespace zc
