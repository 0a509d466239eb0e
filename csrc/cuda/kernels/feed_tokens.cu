#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// The tokens of the next step: out[r] = sampled[source[r]], or given[r] where source[r] is -1. A
// row whose logits were broken (-1) goes on with token 0: its neighbours must not fail with it. A
// source that does not exist is a fault, and the row goes on with token 0 too. A thread owns a row.
__global__ void __launch_bounds__(kThreads)
    feed_tokens_kernel(FaultSink faults, const int32_t* sampled, const int32_t* source,
                       const int32_t* given, int32_t* out, int64_t n_sampled, int64_t n) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= n) return;
  const int64_t from = source[r];
  int32_t token = 0;
  if (from == -1)
    token = given[r];
  else if (check_data(faults, from >= 0 && from < n_sampled, FaultReason::kTokenSource, from,
                      n_sampled - 1))
    token = max(0, sampled[from]);
  out[r] = token;
}

}  // namespace

void feed_tokens(Context& context, const FeedTokensArgs& a) {
  const int64_t n = a.source.size(0);
  launch_early(context, &feed_tokens_kernel, blocks_for(n, kThreads), kThreads, 0, context.faults(),
               a.sampled.as<int32_t>(), a.source.as<int32_t>(), a.given.as<int32_t>(),
               a.out.as<int32_t>(), a.sampled.size(0), n);
}

}  // namespace zc::cuda
