// Races between CUDA threads that only ThreadSanitizer sees, and orders that it must accept.
#include <vector>

#include "csrc/emu/simt.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

// The last block to finish sums what all have written.
enum class Ticket { kRight, kNoFenceBefore, kNoFenceBehind, kNoFences, kNoAtomic };
__global__ void last_block_kernel(Ticket ticket, int* partial, unsigned* counter, int* sum) {
  ZC_SHARED(bool, is_last, [1]);
  partial[blockIdx.x * 32 + threadIdx.x] = static_cast<int>(blockIdx.x + threadIdx.x);
  const bool all = ticket == Ticket::kRight || ticket == Ticket::kNoAtomic;
  if (all || ticket == Ticket::kNoFenceBehind) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    is_last[0] = ticket == Ticket::kNoAtomic ? blockIdx.x == gridDim.x - 1
                                             : atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!is_last[0]) return;
  if (all || ticket == Ticket::kNoFenceBefore) __threadfence();
  int own = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) own += partial[b * 32 + (threadIdx.x ^ 1)];
  sum[threadIdx.x ^ 1] = own;
}
void run_last_block(Ticket ticket) {
  std::vector<int> partial(5 * 32, -1), sum(32, -1);
  unsigned counter = 0;
  simt::launch(&last_block_kernel, 5, 32, 0, ticket, partial.data(), &counter, sum.data());
  ZC_EXPECT(counter == 0);
  for (int i = 0; i < 32; ++i) ZC_EXPECT(sum[i] == 10 + 5 * i);
}
ZC_TEST(races_last_block) {
  each_mode([] { run_last_block(Ticket::kRight); });
}

// Neighbouring blocks that meet at an element, each with a barrier of its own.
__global__ void overlap_kernel(int* out, int stride) {
  __syncthreads();
  out[blockIdx.x * stride + threadIdx.x] = static_cast<int>(blockIdx.x);
  __syncthreads();
}
ZC_TEST(races_disjoint_blocks) {
  std::vector<int> out(4 * 64, -1);
  simt::launch(&overlap_kernel, 4, 64, 0, out.data(), 64);
  simt::launch(&overlap_kernel, 4, 64, 0, out.data(), 64);  // launches are ordered
  for (int i = 0; i < 4 * 64; ++i) ZC_EXPECT(out[i] == i / 64);
}

// A warp's lanes exchange values through shared memory.
enum class Exchange { kSyncwarp, kShuffle, kNothing };
__global__ void exchange_kernel(Exchange exchange, int* out) {
  ZC_SHARED(int, value, [32]);
  value[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (exchange == Exchange::kSyncwarp) __syncwarp();
  if (exchange == Exchange::kShuffle) __shfl_xor_sync(~0u, 0, 1);  // orders nothing
  out[threadIdx.x] = value[threadIdx.x ^ 1];
}
ZC_TEST(races_syncwarp) {
  each_mode([] {
    int out[32];
    simt::launch(&exchange_kernel, 1, 32, 0, Exchange::kSyncwarp, out);
    for (int i = 0; i < 32; ++i) ZC_EXPECT(out[i] == (i ^ 1));
  });
}

// A stage that is filled again while slow warps may still read it: without the second barrier a
// fast warp, already behind the next round's first, overwrites.
__global__ void stage_kernel(bool second_barrier, int* out) {
  ZC_SHARED(int, stage, [64]);
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    stage[threadIdx.x] = round;
    __syncthreads();
    sum += stage[63 - threadIdx.x];
    if (second_barrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
ZC_TEST(races_stage) {
  each_mode([] {
    int out[64];
    simt::launch(&stage_kernel, 1, 64, 0, true, out);
    for (const int sum : out) ZC_EXPECT(sum == 6);
  });
}

// Memory that all threads of all blocks write, even with one value, is a race in CUDA too.
__global__ void same_value_kernel(int* flag) { *flag = 1; }

bool add_race(const char* name, std::function<void()> body) {
  return kBuild != Build::kTsan || add_defect(name, "ThreadSanitizer: data race", std::move(body));
}
const bool added_races[] = {
    add_race("defect_fence_before_ticket", [] { run_last_block(Ticket::kNoFenceBefore); }),
    add_race("defect_fence_behind_ticket", [] { run_last_block(Ticket::kNoFenceBehind); }),
    add_race("defect_no_atomic", [] { run_last_block(Ticket::kNoAtomic); }),
    add_race("defect_no_fences", [] { run_last_block(Ticket::kNoFences); }),
    add_race("defect_blocks_overlap",
             [] {
               std::vector<int> out(4 * 64 + 64, -1);
               simt::launch(&overlap_kernel, 4, 64, 0, out.data(), 63);
             }),
    add_race("defect_shuffle_is_no_barrier",
             [] {
               int out[32];
               simt::launch(&exchange_kernel, 1, 32, 0, Exchange::kShuffle, out);
             }),
    add_race("defect_no_syncwarp",
             [] {
               int out[32];
               simt::launch(&exchange_kernel, 1, 32, 0, Exchange::kNothing, out);
             }),
    add_race("defect_stage_without_second_barrier",
             [] {
               int out[64];
               simt::launch(&stage_kernel, 1, 64, 0, false, out);
             }),
    add_race("defect_same_value",
             [] {
               int flag = 0;
               simt::launch(&same_value_kernel, 1, 32, 0, &flag);
             }),
};

}  // namespace

}  // namespace zc::test
