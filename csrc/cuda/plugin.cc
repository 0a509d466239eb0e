// The plugin's table: every op's launcher behind a function that does not throw.
#include "csrc/ops/plugin.h"

#include "csrc/cuda/kernel.h"
#include "csrc/cuda/launchers.h"
#include "csrc/cuda/platform.h"

namespace zc::cuda {

namespace {

// Index of an op in op_list.def, as faults name it.
enum OpIndex : int32_t {
#define ZC_OP(op, Args) kOp_##op,
#include "csrc/ops/op_list.def"
#undef ZC_OP
};

const char* const kOpNames[] = {
#define ZC_OP(op, Args) #op,
#include "csrc/ops/op_list.def"
#undef ZC_OP
};

template <typename Args, void (*Launcher)(Context&, const Args&), int32_t kIndex>
void run_op(const OpContext* context, const Args* args, OpStatus* status) {
  guarded(status, [&] {
    Context& device = context_of(context->device);
    device.op = kIndex;
    Launcher(device, *args);
  });
}

}  // namespace

const char* op_name(int32_t index) { return kOpNames[index]; }

const Backend kBackend = {
    kBackendVersion,
    ZC_PLUGIN_NAME,
#define ZC_OP(op, Args) &run_op<Args, &op, kOp_##op>,
#include "csrc/ops/op_list.def"
#undef ZC_OP
};

}  // namespace zc::cuda
