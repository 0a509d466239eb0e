#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

#include "csrc/emu/simt.h"

// The functions of CUDA's runtime that csrc/cuda/*.cu use, over host memory, with CUDA's names and
// contracts. A stream does nothing until somebody waits for it: the longest delay that CUDA allows,
// so that whoever reuses host memory too early or forgets to wait gets wrong results here. Streams,
// events and memory may be used on any thread.
//
// Tests set in the environment: ZC_EMU_MEMORY, the device's bytes; ZC_EMU_DRIVER, the driver's
// version, 0 for none; ZC_EMU_ARCHITECTURE, 75 for sm_75; ZC_EMU_FAULT=n, the n-th piece of work of
// a stream fails as a kernel that reads where it may not; ZC_EMU_POOLS=0, the device has no pools
// of memory.

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorStubLibrary = 34,
  cudaErrorInsufficientDriver = 35,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNvlinkUncorrectable = 220,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorSystemDriverMismatch = 803,
  cudaErrorCompatNotSupportedOnDevice = 804,
  cudaErrorUnknown = 999,
};

inline constexpr int CUDART_VERSION = 13000;

struct EmuStream;
struct EmuEvent;
struct EmuPool;
struct EmuGraph;
using cudaStream_t = EmuStream*;
using cudaEvent_t = EmuEvent*;
using cudaMemPool_t = EmuPool*;
using cudaGraph_t = EmuGraph*;
using cudaGraphExec_t = EmuGraph*;

inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr {
  cudaMemPoolAttrReleaseThreshold = 4,
  cudaMemPoolAttrReservedMemCurrent = 5,
  cudaMemPoolAttrUsedMemCurrent = 7,
};
struct cudaMemLocation {
  cudaMemLocationType type;
  int id;
};
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  cudaMemLocation location;
};
struct cudaDeviceProp {
  char name[256];
  int major, minor;
  int multiProcessorCount;
  size_t totalGlobalMem;
  size_t sharedMemPerBlockOptin;
};

const char* cudaGetErrorName(cudaError_t);
// Of a kernel that failed: what the emulator found.
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();

cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaRuntimeGetVersion(int*);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int device);
cudaError_t cudaSetDevice(int);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);

cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
// Runs what is before the event: somebody waits for it.
cudaError_t cudaEventQuery(cudaEvent_t);
cudaError_t cudaEventDestroy(cudaEvent_t);

cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);

cudaError_t cudaMemPoolCreate(cudaMemPool_t*, const cudaMemPoolProps*);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t);
cudaError_t cudaMemPoolDestroy(cudaMemPool_t);
// Exactly so many bytes, so that AddressSanitizer sees the end of each; 0xff, NaN in every float
// type, where they are few.
cudaError_t cudaMallocFromPoolAsync(void**, size_t, cudaMemPool_t, cudaStream_t);
cudaError_t cudaFreeAsync(void*, cudaStream_t);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);  // waits for all streams
cudaError_t cudaHostAlloc(void**, size_t, unsigned);
cudaError_t cudaFreeHost(void*);
// The host's side has to be of cudaHostAlloc: a copy of other memory would not be asynchronous.
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t);

namespace zc::emu {

// Appends work to a stream, or to the graph that it is recording. What it throws is the stream's
// error from then on, as of a kernel that failed.
cudaError_t enqueue(cudaStream_t stream, Work work);
inline cudaError_t enqueue(cudaStream_t stream, std::function<void()> run) {
  return enqueue(stream, Work{std::move(run), {}});
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...)
template <typename... Params, typename... Args>
cudaError_t launch(cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block,
                   size_t shared_bytes, Args&&... args) {
  return enqueue(stream, [=, values = std::tuple<Params...>(static_cast<Params>(args)...)] {
    std::apply(
        [&](const Params&... each) { simt::launch(kernel, grid, block, shared_bytes, each...); },
        values);
  });
}

// The same by cudaLaunchKernelEx with programmatic stream serialization.
template <typename... Params, typename... Args>
cudaError_t launch_early(cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block,
                         size_t shared_bytes, Args&&... args) {
  return enqueue(stream,
                 early_work(kernel, grid, block, shared_bytes, std::forward<Args>(args)...));
}

}  // namespace zc::emu
