#include "csrc/runtime/program.h"

namespace zc {

Program::~Program() {
  if (graph_) plugin_->release(graph_);
}

void Program::run() {
  if (ops_.empty()) return;  // a graph of nothing is none
  if (!plugin_ || !has_run_) {
    run_ops();
    has_run_ = true;
    return;
  }
  if (!graph_) graph_ = plugin_->record([this] { run_ops(); });
  plugin_->launch(graph_);
}

}  // namespace zc
