#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/fault.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// A page's address must lie in the pool; one that does not is a fault, and nothing is copied then.
// *good (1) int32 out. One block, its threads stride over the addresses.
__global__ void check_pages_kernel(FaultSink faults, const int32_t* from, const int32_t* to, int n,
                                   int32_t page_bytes, int64_t pool_bytes, int32_t* good) {
  ZC_SHARED(int32_t, bad, [1]);
  if (threadIdx.x == 0) bad[0] = 0;
  __syncthreads();
  const auto inside = [&](int64_t unit) {
    return unit >= 0 && unit * kPageUnitBytes + page_bytes <= pool_bytes;
  };
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const bool all = check_data(faults, inside(from[i]), FaultReason::kFromPage, from[i]) &&
                     check_data(faults, inside(to[i]), FaultReason::kToPage, to[i]);
    if (!all) atomicExch(&bad[0], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) *good = 1 - bad[0];
}

// Copies pages within the pool, as words of type Word. A block owns one page; its source and its
// target are the same page or do not overlap. Bound by memory.
template <typename Word>
__global__ void copy_pages_kernel(const int32_t* good, uint8_t* pool, const int32_t* from,
                                  const int32_t* to, int n_words) {
  if (*good == 0) return;
  const auto page = [&](const int32_t* units) {
    return reinterpret_cast<Word*>(pool + int64_t{units[blockIdx.x]} * kPageUnitBytes);
  };
  const Word* source = page(from);
  Word* target = page(to);
  for (int i = threadIdx.x; i < n_words; i += kThreads) target[i] = source[i];
}

}  // namespace

void copy_pages(Context& context, const CopyPagesArgs& a) {
  const int64_t n = a.from.size(0);
  if (n == 0) return;
  auto* pool = a.pool.as<uint8_t>();
  auto* good = static_cast<int32_t*>(context.scratch(sizeof(int32_t)));
  const auto* from = a.from.as<int32_t>();
  const auto* to = a.to.as<int32_t>();
  launch(context, &check_pages_kernel, 1, kThreads, 0, context.faults(), from, to, n, a.page_bytes,
         a.pool.size(0), good);
  const auto copy = [&](auto word) {
    using Word = decltype(word);
    launch(context, &copy_pages_kernel<Word>, blocks_for(n, 1), kThreads, 0, good, pool, from, to,
           a.page_bytes / static_cast<int32_t>(sizeof(Word)));
  };
  if (is_aligned(pool, sizeof(uint4)) && a.page_bytes % sizeof(uint4) == 0)
    copy(uint4{});
  else
    copy(uint8_t{});
}

}  // namespace zc::cuda
