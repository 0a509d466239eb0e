// Ops whose kernels are still to be written.
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

#define ZC_UNSUPPORTED(op, Args)                                                    \
  void op(Context&, const Args&) {                                                  \
    throw Error(ErrorCode::kUnsupported, "device: " #op " has no CUDA kernel yet"); \
  }
ZC_UNSUPPORTED(quantize, QuantizeArgs)
ZC_UNSUPPORTED(dequantize, DequantizeArgs)
#undef ZC_UNSUPPORTED

}  // namespace zc::cuda
