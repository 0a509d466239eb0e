#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// Writes the tail length of each sequence into its table's header. A thread owns one sequence;
// where a table is named twice, the later length stays. Bound by its launch.
__global__ void set_tail_lengths_kernel(FaultSink faults, int32_t* tables, int64_t tables_words,
                                        const int32_t* starts, const int32_t* lengths, int n) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int seq = blockIdx.x * kThreads + threadIdx.x;
  if (seq >= n) return;
  const int64_t start = starts[seq];
  const int32_t length = lengths[seq];
  if (start == -1) return;
  if (!check_data(faults, start >= 0 && start + kTableHeader <= tables_words,
                  FaultReason::kTableStart, seq, start, tables_words))
    return;
  if (!check_data(faults, length >= 0, FaultReason::kTailLength, length)) return;
  bool last = true;
  for (int i = seq + 1; i < n; ++i) last = last && starts[i] != start;
  if (last) tables[start + kTableTailLength] = length;
}

}  // namespace

void set_tail_lengths(Context& context, const SetTailLengthsArgs& a) {
  const int64_t n = a.starts.size(0);
  launch_early(context, &set_tail_lengths_kernel, blocks_for(n, kThreads), kThreads, 0,
               context.faults(), a.tables.as<int32_t>(), a.tables.size(0), a.starts.as<int32_t>(),
               a.lengths.as<int32_t>(), n);
}

}  // namespace zc::cuda
