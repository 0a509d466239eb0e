#pragma once

#include <cstdint>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/cuda/device/fault.h"
#include "csrc/cuda/device/simt.h"
#include "csrc/cuda/runtime_api.h"
#include "csrc/math/dispatch.h"
#include "csrc/ops/op_args.h"

// What every file of csrc/cuda/kernels includes: a kernel and its launcher.
namespace zc::cuda {

// What CUDA says of a kernel's code on a device, and was told of it.
struct KernelCode {
  int architecture;  // it was compiled for
  int static_bytes;  // shared memory of its own arrays
  bool may_be_large = false;
};

// A device as launchers see it. One thread at a time launches on it.
class Context {
 public:
  virtual ~Context() = default;

  int n_multiprocessors = 1;
  int architecture = 80;                   // 10 major + minor
  int shared_bytes_per_block = 99 * 1024;  // dynamic shared memory that a kernel may ask for
  cudaStream_t stream = nullptr;           // or the one that is being recorded

  // Device memory for intermediate results, valid until the next op on this stream. It never moves
  // under a recorded program. Throws kOutOfMemory.
  virtual void* scratch(int64_t bytes) = 0;
  // Zeroed when it was first given, and left zeroed by every kernel that used it: counters.
  virtual int32_t* counters(int64_t n) = 0;
  // Copies on the device, in stream order.
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void fill(void* to, int byte, int64_t bytes) = 0;

  // Where the kernels of the running op report bad data.
  FaultSink faults() const { return {fault, op}; }
  Fault* fault = nullptr;  // in device memory
  int32_t op = 0;          // index in op_list.def

  // Of those launched so far: CUDA takes as long to be asked as it does to launch.
  mutable std::unordered_map<const void*, KernelCode> kernels;
};

// Throws what a call of CUDA's runtime answered; a name of the call for the message.
void check_cuda(cudaError_t status, const char* call);

// Throws kUnsupported when a block cannot have so many bytes of dynamic shared memory.
inline void check_shared_bytes(const Context& context, size_t bytes) {
  ZC_CHECK(bytes <= static_cast<size_t>(context.shared_bytes_per_block), ErrorCode::kUnsupported,
           "a kernel needs %zu bytes of shared memory, this GPU has %d a block", bytes,
           context.shared_bytes_per_block);
}

#if defined(__CUDACC__)
inline KernelCode& code_of(const Context& context, const void* kernel) {
  const auto known = context.kernels.find(kernel);
  if (known != context.kernels.end()) return known->second;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  const KernelCode code{attributes.ptxVersion, static_cast<int>(attributes.sharedSizeBytes)};
  return context.kernels.emplace(kernel, code).first->second;
}

// Lets blocks of a kernel have more than the 48 KB of shared memory that CUDA gives unasked, in
// which the kernel's own arrays count. CUDA keeps the limit for a kernel on a device and not for a
// launch. So it is set once and to the most: set to what each launch needs, one of fewer bytes
// would take it from a recorded program, or from another context of the process on the same device.
// And the multiprocessor is asked for all it can have as shared memory instead of L1, which is a
// choice of the driver's where nothing is said: two blocks that fit are to be there at once.
inline void allow_shared_bytes(const Context& context, const void* kernel, size_t bytes) {
  if (bytes <= 32 * 1024) return;
  KernelCode& code = code_of(context, kernel);
  if (code.may_be_large) return;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check_cuda(cudaFuncSetAttribute(kernel, attribute, value), "cudaFuncSetAttribute");
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize,
      context.shared_bytes_per_block - code.static_bytes);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  code.may_be_large = true;
}
#endif

// Runs kernel<<<grid, block, shared_bytes>>>(args...) on the context's stream. An empty grid
// launches nothing. Throws what the launch itself reports; what goes wrong while it runs is
// reported by the wait.
template <typename... Params, typename... Args>
void launch(Context& context, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check_shared_bytes(context, shared_bytes);
#if defined(__CUDACC__)
  allow_shared_bytes(context, reinterpret_cast<const void*>(kernel), shared_bytes);
  kernel<<<grid, block, shared_bytes, context.stream>>>(static_cast<Params>(args)...);
  check_cuda(cudaGetLastError(), "the launch of a kernel");
#else
  check_cuda(
      emu::launch(context.stream, kernel, grid, block, shared_bytes, std::forward<Args>(args)...),
      "the launch of a kernel");
#endif
}

// The architecture whose code of this kernel the device runs: its own, or an older one of whose PTX
// the driver has made machine code.
template <typename... Params>
int code_architecture([[maybe_unused]] const Context& context,
                      [[maybe_unused]] void (*kernel)(Params...)) {
#if defined(__CUDACC__)
  return code_of(context, reinterpret_cast<const void*>(kernel)).architecture;
#else
  return context.architecture;
#endif
}

// Whether a device has the instructions of sm_90a, and this kernel code with them. A build without
// such code runs there too, by PTX of an older architecture, in which such a kernel is empty. Plain
// sm_90 is never built (CMakeLists.txt).
template <typename... Params>
bool runs_sm_90a(const Context& context, void (*kernel)(Params...)) {
  return context.architecture == 90 && code_architecture(context, kernel) == 90;
}

// Like launch, of a kernel that may begin, from sm_90 on, while kernels before it still run: when
// each block of the one in front of it has called simt::let_next_begin or ended (programmatic
// dependent launch). Every thread of it calls simt::wait_for_kernels_before, before it touches what
// any kernel before it touched, and before it ends.
//
// That is enough for kernels further in front, too. A wait ends when the kernel in front has ended
// and what it wrote is seen; that one has waited in turn, so that all before it had ended. Nothing
// follows of let_next_begin, which says when blocks may begin and never what they may read: two
// kernels back may still run. A kernel that ended without a wait would break the chain for those
// behind it. csrc/emu begins such kernels as early as it may, and reports a thread that never
// waits.
template <typename... Params, typename... Args>
void launch_early(Context& context, void (*kernel)(Params...), dim3 grid, dim3 block,
                  size_t shared_bytes, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (code_architecture(context, kernel) < 90) {  // older code does not wait
    launch(context, kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
    return;
  }
  check_shared_bytes(context, shared_bytes);
#if defined(__CUDACC__)
  allow_shared_bytes(context, reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...),
             "the launch of a kernel");
#else
  check_cuda(emu::launch_early(context.stream, kernel, grid, block, shared_bytes,
                               std::forward<Args>(args)...),
             "the launch of a kernel");
#endif
}

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  ZC_CHECK(blocks <= 0x7fffffff, ErrorCode::kUnsupported, "%lld blocks in one launch",
           static_cast<long long>(blocks));
  return static_cast<unsigned>(blocks);
}

}  // namespace zc::cuda
