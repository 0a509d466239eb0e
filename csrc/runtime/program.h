#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace zc {

// Ops recorded once, with their arguments checked, to be run again and again as one command of the
// stream. What changes between runs is data in the tensors that the ops read. The ops hold
// references to their tensors' storage, so a program keeps what it uses.
class Program {
 public:
  void add(std::function<void()> op) { ops_.push_back(std::move(op)); }

  // Runs all ops in order, on the stream's thread. Throws what the first failing op throws; those
  // after it are not run.
  void run() const {
    for (const auto& op : ops_) op();
  }

 private:
  std::vector<std::function<void()>> ops_;
};

}  // namespace zc
