#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// out[i] = x[rows[i]], rows of `row_words` words. A block owns one row; bound by memory. A row that
// x does not have is a fault and is left as it was.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(FaultSink faults, const Word* x, const int32_t* rows, Word* out,
                       int64_t n_rows, int64_t row_words) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t from = rows[blockIdx.x];
  if (from < 0 || from >= n_rows) {
    if (threadIdx.x == 0) check_data(faults, false, FaultReason::kGatherRow, from, n_rows - 1);
    return;
  }
  for (int64_t i = threadIdx.x; i < row_words; i += kThreads)
    out[int64_t{blockIdx.x} * row_words + i] = x[from * row_words + i];
}

}  // namespace

void gather_rows(Context& context, const GatherRowsArgs& a) {
  const int64_t row_bytes = a.x.size(1) * static_cast<int64_t>(dtype_size(a.x.dtype));
  const uint64_t bits =
      address_bits(a.x.data) | address_bits(a.out.data) | static_cast<uint64_t>(row_bytes);
  dispatch_word(bits, [&](auto type) {
    using Word = typename decltype(type)::type;
    launch_early(context, &gather_rows_kernel<Word>, blocks_for(a.rows.size(0), 1), kThreads, 0,
                 context.faults(), a.x.as<Word>(), a.rows.as<int32_t>(), a.out.as<Word>(),
                 a.x.size(0), row_bytes / int64_t{sizeof(Word)});
  });
}

}  // namespace zc::cuda
