// Every CPU kernel, compiled once for each instruction set: the including file defines ZC_ISA (the
// namespace) and ZC_ISA_BACKEND (the table to fill), after switching the instruction set on.

// clang-format off: the order matters
#include "csrc/cpu/kernels/simd-inl.h"
#include "csrc/cpu/kernels/tile-inl.h"
#include "csrc/cpu/kernels/page-inl.h"
#include "csrc/cpu/kernels/flash_attention-inl.h"
#include "csrc/cpu/kernels/probe_attention-inl.h"
#include "csrc/cpu/kernels/select_salient-inl.h"
#include "csrc/cpu/kernels/range_search-inl.h"
#include "csrc/cpu/kernels/quantize-inl.h"
#include "csrc/cpu/kernels/segment-inl.h"
#include "csrc/cpu/kernels/page_dot-inl.h"
#include "csrc/cpu/kernels/mixed_attention-inl.h"
#include "csrc/cpu/kernels/merge_attention-inl.h"
#include "csrc/cpu/kernels/linear-inl.h"
#include "csrc/cpu/kernels/rounded_rows-inl.h"
#include "csrc/cpu/kernels/linear_i8-inl.h"
#include "csrc/cpu/kernels/linear_i4-inl.h"
#include "csrc/cpu/kernels/linear_ops-inl.h"
#include "csrc/cpu/kernels/model_ops-inl.h"
#include "csrc/cpu/kernels/state_page-inl.h"
#include "csrc/cpu/kernels/causal_conv-inl.h"
#include "csrc/cpu/kernels/head_state-inl.h"
#include "csrc/cpu/kernels/gated_delta-inl.h"
#include "csrc/cpu/kernels/selective_scan-inl.h"
#include "csrc/cpu/kernels/experts-inl.h"
#include "csrc/cpu/kernels/rope_append-inl.h"
#include "csrc/cpu/kernels/sample-inl.h"
#include "csrc/cpu/kernels/roofline-inl.h"
// clang-format on

namespace zc::cpu {
namespace ZC_ISA {

// Turns a kernel that throws into the table's function that does not.
template <typename Args, void (*Kernel)(const OpContext&, const Args&)>
void guarded(const OpContext* context, const Args* args, OpStatus* status) {
  try {
    Kernel(*context, *args);
  } catch (...) {
    const Error error = current_error();
    status->code = 1 + static_cast<int32_t>(error.code);
    std::snprintf(status->message, sizeof(status->message), "%s", error.what());
  }
}

}  // namespace ZC_ISA

#define ZC_STRING2(x) #x
#define ZC_STRING(x) ZC_STRING2(x)
const Backend ZC_ISA_BACKEND = {
    kBackendVersion,
    "cpu:" ZC_STRING(ZC_ISA),
#define ZC_OP(op, Args) &ZC_ISA::guarded<Args, &ZC_ISA::op>,
#include "csrc/ops/op_list.def"
#undef ZC_OP
};

}  // namespace zc::cpu
