// Kernels that begin before those in front of them have ended (programmatic dependent launch).
#include <vector>

#include "csrc/emu/runtime.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

constexpr unsigned kBlocks = 5;
constexpr unsigned kThreads = 64;
constexpr int kElements = kBlocks * kThreads;

// Enqueues kernels on a stream, runs them, and fails where the stream does.
class Stream {
 public:
  Stream() { cudaStreamCreateWithFlags(&stream_, 0); }
  ~Stream() { cudaStreamDestroy(stream_); }
  template <typename... Params, typename... Args>
  void early(void (*kernel)(Params...), Args... args) {
    emu::launch_early(stream_, kernel, kBlocks, kThreads, 0, args...);
  }
  template <typename... Params, typename... Args>
  void plain(void (*kernel)(Params...), Args... args) {
    emu::launch(stream_, kernel, kBlocks, kThreads, 0, args...);
  }
  void run() {
    if (const cudaError_t status = cudaStreamSynchronize(stream_); status != cudaSuccess)
      throw Error(ErrorCode::kInternal, cudaGetErrorString(status));
  }
  // The same `times` over, as a graph.
  void run_graph(const std::function<void()>& record, int times) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed);
    record();
    cudaStreamEndCapture(stream_, &graph);
    cudaGraphInstantiate(&exec, graph, 0);
    for (int i = 0; i < times; ++i) cudaGraphLaunch(exec, stream_);
    run();
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }

 private:
  cudaStream_t stream_;
};

// Adds to x what the block's neighbour across a barrier holds in shared memory: what a thread did
// before its wait is there behind it.
__global__ void add_kernel(int* x, int addend) {
  ZC_SHARED(int, addends, [kThreads]);
  simt::let_next_begin();
  addends[threadIdx.x ^ 1] = addend;
  simt::wait_for_kernels_before();
  __syncthreads();
  x[blockIdx.x * kThreads + threadIdx.x] += addends[threadIdx.x];
}
// x[i] = x[n - 1 - i] of the kernels before.
__global__ void reverse_kernel(const int* x, int* out) {
  simt::wait_for_kernels_before();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  out[i] = x[kElements - 1 - i];
}
ZC_TEST(early_chain) {
  each_mode([] {
    std::vector<int> x(kElements), out(kElements, -1);
    for (int i = 0; i < kElements; ++i) x[static_cast<size_t>(i)] = i;
    Stream stream;
    const auto chain = [&] {
      stream.plain(&add_kernel, x.data(), 1);
      stream.early(&add_kernel, x.data(), 2);
      stream.early(&reverse_kernel, x.data(), out.data());
      stream.early(&add_kernel, x.data(), 3);  // reverse_kernel has read all of x by then
      stream.early(&add_kernel, x.data(), 4);
    };
    chain();
    stream.run();
    for (int i = 0; i < kElements; ++i) {
      ZC_EXPECT(x[static_cast<size_t>(i)] == i + 10);
      ZC_EXPECT(out[static_cast<size_t>(i)] == kElements - 1 - i + 3);
    }
    stream.run_graph(chain, 3);
    for (int i = 0; i < kElements; ++i) {
      ZC_EXPECT(x[static_cast<size_t>(i)] == i + 40);
      ZC_EXPECT(out[static_cast<size_t>(i)] == kElements - 1 - i + 33);
    }
  });
}

// What a kernel does too early.
enum class Early { kNothing, kReads, kWrites };
__global__ void too_early_kernel(Early early, const int* x, int* out, int value) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  int own = early == Early::kReads ? x[i] : 0;
  if (early == Early::kWrites) out[i] = value;
  simt::wait_for_kernels_before();
  if (early != Early::kReads) own = x[i];
  if (early != Early::kWrites) out[i] = own + value;
}
// Whether a kernel finds what `n_between` kernels further in front wrote, and leaves what those
// read.
void run_too_early(Early early, int n_between) {
  std::vector<int> x(kElements, 0), out(kElements, 0), copy(kElements, 0), other(kElements, 0);
  Stream stream;
  stream.plain(&add_kernel, x.data(), 1);
  stream.early(&too_early_kernel, Early::kNothing, out.data(), copy.data(), 0);  // reads out
  for (int i = 0; i < n_between; ++i) stream.early(&add_kernel, other.data(), 1);
  stream.early(&too_early_kernel, early, x.data(), out.data(), 7);
  stream.run();
  for (size_t i = 0; i < kElements; ++i) {
    ZC_EXPECT(out[i] == (early == Early::kWrites ? 7 : 8));
    ZC_EXPECT(copy[i] == 0);
  }
}
ZC_TEST(early_waits_first) {
  each_mode([] {
    for (const int n_between : {0, 1, 3}) run_too_early(Early::kNothing, n_between);
  });
}
// ThreadSanitizer sees the race whatever comes of it.
const char* const kReport = kBuild == Build::kTsan ? "data race" : "early_test.cc";
const bool added_defects[] = {
    add_defect("early_reads_before_it_waits", kReport, [] { run_too_early(Early::kReads, 0); }),
    add_defect("early_writes_before_it_waits", kReport, [] { run_too_early(Early::kWrites, 0); }),
    add_defect("early_writes_what_two_before_it_reads", kReport,
               [] { run_too_early(Early::kWrites, 1); }),
};

// A kernel that does not wait lets the next one overtake those before it.
__global__ void never_waits_kernel(int* x, unsigned first) {
  if (threadIdx.x < first) simt::wait_for_kernels_before();
  x[blockIdx.x * kThreads + threadIdx.x] = 1;
}
ZC_TEST(early_never_waits) {
  each_mode([] {
    for (const unsigned first : {0u, 63u}) {
      std::vector<int> x(kElements), y(kElements);
      expect_error("ended without waiting", [&] {
        Stream stream;
        stream.plain(&add_kernel, y.data(), 1);
        stream.early(&never_waits_kernel, x.data(), first);
        stream.early(&add_kernel, y.data(), 1);
        stream.run();
      });
      Stream plainly;
      plainly.plain(&never_waits_kernel, x.data(), first);
      plainly.run();
    }
  });
}

}  // namespace

}  // namespace zc::test
