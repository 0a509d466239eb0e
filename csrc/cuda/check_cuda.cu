// What CUDA reports, as errors of ours.
#include "csrc/cuda/kernel.h"

namespace zc::cuda {

namespace {

// After these every call fails until the process is started again.
bool is_lost(cudaError_t status) {
  switch (status) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorUnknown:
#if defined(__CUDACC__)  // the emulator has none of these
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorContextIsDestroyed:
#endif
      return true;
    default:
      return false;
  }
}

ErrorCode code_of(cudaError_t status) {
  if (is_lost(status)) return ErrorCode::kDeviceLost;
  switch (status) {
    case cudaErrorMemoryAllocation:
      return ErrorCode::kOutOfMemory;
    case cudaErrorInitializationError:
    case cudaErrorStubLibrary:
    case cudaErrorInsufficientDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return ErrorCode::kDevice;
    default:
      return ErrorCode::kInternal;
  }
}

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // CUDA would report it once more with the next launch
  const ErrorCode code = code_of(status);
  const char* text = cudaGetErrorString(status);
  if (code == ErrorCode::kDeviceLost)
    throw Error(code, format("device: it was lost, start the process again: %s", text));
  throw Error(code, format("device: %s: %s (%s)", call, text, cudaGetErrorName(status)));
}

}  // namespace zc::cuda
