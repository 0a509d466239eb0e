// Blocks: their indices, barriers, shared memory and ends.
#include <cmath>
#include <memory>
#include <stdexcept>
#include <vector>

#include "csrc/emu/simt.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

struct Indices {
  unsigned thread_x, thread_y, thread_z, block_x, block_y, block_z;
};
__global__ void index_kernel(Indices* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = {
      threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z};
}
ZC_TEST(blocks_indices) {
  each_mode([] {
    const dim3 grid(3, 2, 5), block(7, 3, 2);
    const unsigned n = 3 * 2 * 5 * 7 * 3 * 2;
    std::vector<Indices> found(n, Indices{99, 99, 99, 99, 99, 99});
    simt::launch(&index_kernel, grid, block, 0, found.data());
    for (unsigned i = 0; i < n; ++i) {
      const unsigned t = i % 42;
      const unsigned b = i / 42;
      const Indices& f = found[i];
      ZC_EXPECT(f.thread_x == t % 7 && f.thread_y == t / 7 % 3 && f.thread_z == t / 21);
      ZC_EXPECT(f.block_x == b % 3 && f.block_y == b / 3 % 2 && f.block_z == b / 6);
    }
  });
}

// ---- barriers ----

// Each thread hands its number to its neighbour, again and again.
__global__ void pass_on_kernel(int* out) {
  ZC_SHARED(int, value, [256]);
  const unsigned i = threadIdx.x;
  const unsigned n = blockDim.x;
  value[i] = static_cast<int>(i);
  for (int round = 0; round < 9; ++round) {
    __syncthreads();
    const int next = value[(i + 1) % n];
    __syncthreads();
    value[i] = next;
  }
  out[i] = value[i];
}
ZC_TEST(blocks_syncthreads) {
  each_mode([] {
    for (const unsigned n : {1u, 31u, 32u, 33u, 256u}) {
      std::vector<int> out(n, -1);
      simt::launch(&pass_on_kernel, 1, n, 0, out.data());
      for (unsigned i = 0; i < n; ++i) ZC_EXPECT(out[i] == static_cast<int>((i + 9) % n));
    }
  });
}

// Warps 0 and 1 produce for warps 2 and 3, which they meet at two named barriers.
__global__ void named_barriers_kernel(int* sum) {
  ZC_SHARED(int, slot, [64]);
  const unsigned i = threadIdx.x;
  for (int round = 0; round < 6; ++round) {
    if (i < 64) {
      if (round > 0) simt::bar_sync(2, 128);
      slot[i] = round * 100 + static_cast<int>(i);
      simt::bar_arrive(1, 128);
    } else {
      simt::bar_sync(1, 128);
      if (slot[i - 64] == round * 100 + static_cast<int>(i - 64)) atomicAdd(sum, 1);
      if (round < 5) simt::bar_arrive(2, 128);
    }
  }
}
ZC_TEST(blocks_named_barriers) {
  each_mode([] {
    int sum = 0;
    simt::launch(&named_barriers_kernel, 1, 128, 0, &sum);
    ZC_EXPECT(sum == 6 * 64);
  });
}

__global__ void exits_kernel(int* n) {
  if (threadIdx.x >= 96) return;
  __syncthreads();
  atomicAdd(n, 1);
}
ZC_TEST(blocks_barrier_of_those_left) {
  each_mode([] {
    int n = 0;
    simt::launch(&exits_kernel, 1, 128, 0, &n);
    ZC_EXPECT(n == 96);
  });
}

__global__ void syncwarp_kernel(int* n_wrong) {
  ZC_SHARED(int, value, [64]);
  const unsigned i = threadIdx.x;
  const unsigned lane = i % 32;
  for (int round = 0; round < 5; ++round) {
    value[i] = round + static_cast<int>(lane);
    __syncwarp();
    if (value[i ^ 1] != round + static_cast<int>(lane ^ 1)) atomicAdd(n_wrong, 1);
    // Some lanes meet more often than others.
    if (lane < 2) __syncwarp(3u);
    if (lane < 2 && round % 2) __syncwarp(3u);
    __syncwarp();
  }
}
ZC_TEST(blocks_syncwarp) {
  each_mode([] {
    int n_wrong = 0;
    simt::launch(&syncwarp_kernel, 2, 64, 0, &n_wrong);
    ZC_EXPECT(n_wrong == 0);
  });
}

__global__ void deadlock_kernel() {
  if (threadIdx.x < 64)
    simt::bar_sync(1, 128);
  else
    __shfl_xor_sync(~0u, 1, 1);
}
__global__ void other_line_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void other_count_kernel() { simt::bar_sync(3, threadIdx.x < 32 ? 64 : 128); }
__global__ void odd_count_kernel() { simt::bar_sync(3, 33); }
__global__ void lonely_arrival_kernel() {
  if (threadIdx.x < 32) simt::bar_arrive(4, 64);
}
ZC_TEST(blocks_barrier_misuse) {
  each_mode([] {
    expect_error("threads 0-63 wait at barrier 1 (64 of 128 arrived)",
                 [] { simt::launch(&deadlock_kernel, 1, 128, 0); });
    expect_error("divergent __syncthreads", [] { simt::launch(&other_line_kernel, 1, 64, 0); });
    expect_error("barrier 3 for", [] { simt::launch(&other_count_kernel, 1, 128, 0); });
    expect_error("expected a multiple of 32", [] { simt::launch(&odd_count_kernel, 1, 64, 0); });
    expect_error("32 of 64 threads had arrived when the block ended",
                 [] { simt::launch(&lonely_arrival_kernel, 1, 64, 0); });
  });
}

// ---- shared memory ----

__global__ void two_arrays_kernel(float* out, int index) {
  ZC_SHARED(float, a, [8]);
  ZC_SHARED(float, b, [4][8]);
  if (threadIdx.x == 0) {
    a[index] = 1.0f;
    if (blockIdx.x == 0) b[3][7] = 5.0f;
    out[2 * blockIdx.x] = b[0][0];
    out[2 * blockIdx.x + 1] = b[3][7];
  }
}
template <int kLength>
__global__ void array_of_template_kernel(int* n_wrong) {
  ZC_SHARED(int, a, [kLength]);
  if (threadIdx.x < kLength) a[threadIdx.x] = kLength;
  __syncthreads();
  if (a[threadIdx.x % kLength] != kLength) atomicAdd(n_wrong, 1);
}
ZC_TEST(blocks_shared_arrays) {
  each_mode([] {
    // What an earlier block wrote is gone: it is NaN, as all that was never written.
    float out[6] = {};
    simt::launch(&two_arrays_kernel, 3, 32, 100, out, 7);
    // By the order of blocks, but each sees its own memory alone.
    ZC_EXPECT(out[1] == 5.0f);
    for (const int i : {0, 2, 3, 4, 5}) ZC_EXPECT(std::isnan(out[i]));
    int n_wrong = 0;
    simt::launch(&array_of_template_kernel<8>, 2, 64, 0, &n_wrong);
    simt::launch(&array_of_template_kernel<16>, 2, 64, 0, &n_wrong);
    ZC_EXPECT(n_wrong == 0);
  });
}
const bool added_margin =
    kBuild == Build::kTsan ||
    add_defect("defect_shared_array_overrun",
               kBuild == Build::kAsan ? "out of bounds" : "wrote past the end of shared memory",
               [] {
                 float out[6] = {};
                 simt::launch(&two_arrays_kernel, 1, 32, 100, out, 8);
               });

__global__ void dynamic_kernel(int index, int* n_nan) {
  ZC_DYNAMIC_SHARED(memory);
  float* f = reinterpret_cast<float*>(memory);
  if (isnan(f[threadIdx.x])) atomicAdd(n_nan, 1);
  __syncthreads();
  if (threadIdx.x == 0) f[index] = 1.0f;
}
ZC_TEST(blocks_dynamic_shared) {
  each_mode([] {
    int n_nan = 0;
    simt::launch(&dynamic_kernel, 3, 32, 128, 31, &n_nan);
    ZC_EXPECT(n_nan == 96);
  });
}
const bool added_dynamic =
    kBuild == Build::kTsan ||
    add_defect("defect_dynamic_shared_overrun",
               kBuild == Build::kAsan ? "use-after-poison" : "behind the dynamic bytes", [] {
                 int n_nan = 0;
                 simt::launch(&dynamic_kernel, 1, 32, 128, 32, &n_nan);
               });

__global__ void outside_kernel(uint32_t offset) {
  ZC_DYNAMIC_SHARED(memory);
  uint32_t r[4];
  simt::ldmatrix_x4(r, simt::smem_u32(memory) + offset + 16 * threadIdx.x);
}
__global__ void foreign_pointer_kernel(int* p) { simt::smem_u32(p); }
ZC_TEST(blocks_shared_bounds) {
  simt::launch(&outside_kernel, 1, 32, 512, 0u);
  expect_error("outside of the 512 dynamic bytes",
               [] { simt::launch(&outside_kernel, 1, 32, 512, 16u); });
  expect_error("is not a multiple of 16", [] { simt::launch(&outside_kernel, 1, 32, 1024, 8u); });
  expect_error("dynamic shared memory",
               [] { simt::launch(&outside_kernel, 1, 32, 228 * 1024, 0u); });
  int i = 0;
  expect_error("not a pointer into", [&] { simt::launch(&foreign_pointer_kernel, 1, 32, 64, &i); });
}

// Rows of 128 bytes: a column of 16-byte chunks lies in one group of banks unless it is swizzled.
__global__ void bank_kernel(bool swizzles) {
  ZC_DYNAMIC_SHARED(memory);
  const unsigned row = threadIdx.x;
  const unsigned chunk = swizzles ? row % 8 : 0;
  uint4* to = reinterpret_cast<uint4*>(memory + row * 128 + chunk * 16);
  simt::shared_store(to, make_uint4(row, row, row, row));
  __syncwarp();
  uint32_t r[4];
  simt::ldmatrix_x4(r, simt::smem_u32(to));
  // One word for all is one access.
  simt::shared_load(reinterpret_cast<uint32_t*>(memory));
}
ZC_TEST(blocks_bank_conflicts) {
  emu::settings().counts_bank_conflicts = true;
  emu::take_stats();
  simt::launch(&bank_kernel, 1, 32, 4096, true);
  emu::Stats stats = emu::take_stats();
  ZC_EXPECT(stats.ldmatrix_conflicts == 0 && stats.shared_conflicts == 0);
  ZC_EXPECT(emu::take_conflict_sites().empty());
  simt::launch(&bank_kernel, 1, 32, 4096, false);
  stats = emu::take_stats();
  ZC_EXPECT(stats.ldmatrix_conflicts == 28 && stats.shared_conflicts == 28);
  const std::vector<std::string> sites = emu::take_conflict_sites();
  ZC_EXPECT(sites.size() == 1 && sites[0].find("blocks_test.cc") != std::string::npos &&
            sites[0].find(": 28 cycles") != std::string::npos);
}

// ---- ends ----

struct CountsEnds {
  int* n;
  ~CountsEnds() { ++*n; }
};
__global__ void throw_kernel(int* n_ends) {
  const CountsEnds counts{n_ends};
  __syncthreads();
  if (threadIdx.x == 7) throw std::logic_error("from a kernel");
  __syncthreads();
}
__global__ void count_kernel(int* n) { atomicAdd(n, 1); }
ZC_TEST(blocks_exceptions) {
  each_mode([] {
    int n_ends = 0;
    expect_error("from a kernel", [&] { simt::launch(&throw_kernel, 2, 64, 0, &n_ends); });
    ZC_EXPECT(n_ends == 1);  // the others are abandoned
    int n = 0;
    simt::launch(&count_kernel, 2, 64, 0, &n);
    ZC_EXPECT(n == 128);
  });
}

__global__ void trap_kernel() {
  if (threadIdx.x == 3) __trap();
}
__global__ void spin_kernel(int* flag) {
  if (threadIdx.x == 0)
    while (atomicAdd(flag, 0) == 0) __nanosleep(20);
  if (threadIdx.x == 33) atomicExch(flag, 1);
}
__global__ void endless_kernel(int* flag) {
  while (atomicAdd(flag, 0) == 0) __nanosleep(20);
}
ZC_TEST(blocks_spinning) {
  each_mode([] {
    int flag = 0;
    simt::launch(&spin_kernel, 1, 64, 0, &flag);
    ZC_EXPECT(flag == 1);
    expect_error("__trap [block (0,0,0) thread 3]", [] { simt::launch(&trap_kernel, 1, 32, 0); });
  });
  if (kBuild == Build::kPlain) {
    int flag = 0;
    expect_error("livelock", [&] { simt::launch(&endless_kernel, 1, 1, 0, &flag); });
  }
}

// ---- words that blocks leave for each other ----

// Each block leaves a word of each thread; the last adds them all. patient: until they are there.
__global__ void leave_words_kernel(uint4* words, int* arrivals, unsigned* sum, bool patient) {
  ZC_SHARED(int, is_last, [1]);
  const unsigned n = blockDim.x;
  const unsigned own = blockIdx.x * n + threadIdx.x;
  simt::store_whole(words + own, make_uint4(own, 2 * own, 3 * own, 1));
  __syncthreads();
  if (threadIdx.x == 0) is_last[0] = atomicAdd(arrivals, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (is_last[0] == 0) return;
  for (unsigned b = 0; b < gridDim.x; ++b) {
    uint4 x;
    do {
      x = simt::load_whole(words + b * n + threadIdx.x);
    } while (patient && x.w == 0);
    atomicAdd(sum, x.x + x.y + x.z);
  }
}
void add_words(bool patient) {
  std::vector<uint4> words(5 * 64, uint4{});
  int arrivals = 0;
  unsigned sum = 0;
  simt::launch(&leave_words_kernel, 5, 64, 0, words.data(), &arrivals, &sum, patient);
  ZC_EXPECT(sum == 6 * (319 * 320 / 2));
}
ZC_TEST(blocks_whole_words) {
  each_mode([] { add_words(true); });
}
const bool added_impatient = add_defect("defect_word_not_waited_for", "sum == 6",
                                        [] { each_mode([] { add_words(false); }); });

__global__ void nothing_kernel() {}
ZC_TEST(blocks_launch_limits) {
  const auto launches = [](dim3 grid, dim3 block) {
    return [=] { simt::launch(&nothing_kernel, grid, block, 0); };
  };
  launches(2, 1024)();
  expect_error("expected 1 to 1024", launches(1, 1025));
  expect_error("expected 1 to 1024", launches(1, dim3(1, 1, 65)));
  expect_error("a launch of", launches(dim3(1, 65536), 1));
  expect_error("a launch of", launches(0, 1));
}

__global__ void host_threads_kernel(int* sums) {
  ZC_SHARED(int, total, [1]);
  if (threadIdx.x == 0) total[0] = 0;
  __syncthreads();
  atomicAdd(&total[0], static_cast<int>(threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = total[0];
}
ZC_TEST(blocks_host_threads) {
  emu::settings().n_host_threads = 3;
  for (int round = 0; round < 20; ++round) {
    std::vector<int> sums(37, -1);
    simt::launch(&host_threads_kernel, 37, 64, 0, sums.data());
    for (const int sum : sums) ZC_EXPECT(sum == 63 * 32);
    int n_ends = 0;
    if (kBuild != Build::kTsan)  // its destructors race
      expect_error("from a kernel", [&] { simt::launch(&throw_kernel, 1, 64, 0, &n_ends); });
  }
  ZC_EXPECT(emu::take_stats().blocks >= 20 * 37);
}

}  // namespace

}  // namespace zc::test
