#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// Keeps q and LSE of the rows that are probes: probe_q[slots[r]] = q[r], and so its LSE. A block
// owns row r of one layer. Of rows that name the same slot the last one stays: a block whose slot
// comes again leaves it to the later row, so that what is kept does not depend on the order of
// blocks. A slot that does not exist is a fault and is skipped. Bound by memory.
template <typename Word>
__global__ void __launch_bounds__(kThreads, 1)
    store_probes_kernel(FaultSink faults, const Word* q, const float* lse, const int32_t* slots,
                        Word* probe_q, float* probe_lse, int64_t n_rows, int64_t n_slots,
                        int64_t row_words, int n_heads) {
  ZC_SHARED(int, comes_again, [kThreads / 32]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t row = blockIdx.x;
  const int64_t layer = blockIdx.y;
  const int64_t slot = slots[row];
  if (slot == -1) return;
  if (slot < 0 || slot >= n_slots) {
    if (threadIdx.x == 0) check_data(faults, false, FaultReason::kProbeSlot, slot, n_slots - 1);
    return;
  }

  bool again = false;
  for (int64_t r = row + 1 + threadIdx.x; r < n_rows; r += kThreads) again |= slots[r] == slot;
  const int any = __any_sync(0xffffffffu, again);
  if (threadIdx.x % 32 == 0) comes_again[threadIdx.x / 32] = any;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w)
    if (comes_again[w]) return;

  const int64_t from = layer * n_rows + row;
  const int64_t to = layer * n_slots + slot;
  constexpr int kUnroll = 4;
  for (int64_t first = threadIdx.x; first < row_words; first += kUnroll * kThreads) {
    Word words[kUnroll] = {};
    ZC_UNROLL for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kThreads;
      if (i < row_words) words[u] = q[from * row_words + i];
    }
    ZC_UNROLL for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kThreads;
      if (i < row_words) probe_q[to * row_words + i] = words[u];
    }
  }
  for (int h = static_cast<int>(threadIdx.x); h < n_heads; h += kThreads)
    probe_lse[to * n_heads + h] = lse[from * n_heads + h];
}

}  // namespace

void store_probes(Context& context, const StoreProbesArgs& a) {
  const int64_t rows = a.slots.size(0);
  const int64_t row_bytes =
      a.n_heads() * a.head_dim() * static_cast<int64_t>(dtype_size(a.q.dtype));
  const uint64_t bits =
      address_bits(a.q.data) | address_bits(a.probe_q.data) | static_cast<uint64_t>(row_bytes);
  dispatch_word(bits, [&](auto type) {
    using Word = typename decltype(type)::type;
    launch_early(context, &store_probes_kernel<Word>,
                 dim3(blocks_for(rows, 1), blocks_for(a.n_layers(), 1)), kThreads, 0,
                 context.faults(), a.q.as<Word>(), a.lse.as<float>(), a.slots.as<int32_t>(),
                 a.probe_q.as<Word>(), a.probe_lse.as<float>(), rows, a.capacity(),
                 row_bytes / int64_t{sizeof(Word)}, static_cast<int>(a.n_heads()));
  });
}

}  // namespace zc::cuda
