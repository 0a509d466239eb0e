#include "csrc/runtime/program.h"

#include <utility>

#include "csrc/core/error.h"

namespace zc {

Program::~Program() {
  if (graph_) plugin_->release(graph_);
}

void Program::run() {
  if (ops_.empty()) return;  // a graph of nothing is none
  if (plugin_ && has_run_) {
    if (launch()) return;
    plugin_->count_unrecorded();
  }
  run_ops();
  has_run_ = true;
}

bool Program::launch() {
  if (n_until_try_ > 0 && --n_until_try_ > 0) return false;
  try {
    if (!graph_) graph_ = plugin_->record([this] { run_ops(); });
    plugin_->launch(graph_);
    return true;
  } catch (const Error& e) {
    if (e.code != ErrorCode::kOutOfMemory) throw;
  }
  if (graph_) plugin_->release(std::exchange(graph_, nullptr));
  n_until_try_ = kRunsBeforeNextTry;
  return false;
}

}  // namespace zc
