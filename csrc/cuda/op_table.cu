#include "csrc/cuda/op_table.h"

#include "csrc/cuda/guard.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

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
  DeviceContext* device = context->device;
  on_device(device, status, [&] {
    device->op = kIndex;
    Launcher(*device, *args);
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
