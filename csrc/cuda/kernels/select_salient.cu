#include "csrc/cuda/device/order_key.h"
#include "csrc/cuda/device/scan.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 8;
constexpr int kBuckets = 2048;                      // of a histogram, two a thread
constexpr int64_t kOwnBytes = 4 * kBuckets + 1024;  // at least what the static arrays take

// A key whose unsigned order is the order of the scores; NaN ranks below everything, and -0 beside
// 0.
ZC_DEVICE uint32_t score_key(float score) { return score != score ? 0u : order_key(score + 0.0f); }

// Keys from least to greatest: the last ones selected lie among them.
struct KeyRange {
  uint32_t least;
  uint32_t greatest;
};

// Calls each(i, score) for the scores of a row, kUnroll of them under way in every thread.
template <typename Each>
ZC_DEVICE void each_score(const float* scores, int n, const Each& each) {
  for (int first = threadIdx.x; first < n; first += kUnroll * kThreads) {
    float x[kUnroll];
    ZC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * kThreads;
      x[u] = i < n ? scores[i] : 0.0f;
    }
    ZC_UNROLL
    for (int u = 0; u < kUnroll; ++u)
      if (first + u * kThreads < n) each(first + u * kThreads, x[u]);
  }
}

// The exact top `count` of each row (ZipCache, arXiv 2405.14256, 4.2), ties to the lowest index:
// scores (n_heads, n) to salient (n_heads, count) and regular (n_heads, n - count), both ascending.
//
// A block owns one row. It narrows the range of the least selected key by histograms over 2048
// equal parts of the range, at most three, since keys have 32 bits, and until all keys of the range
// are selected; beginning between the least and the greatest key spreads scores of a few magnitudes
// over many buckets. Then each warp, which owns a contiguous piece of the row, counts what it
// selects of it, and writes both lists in order. 8.3 KB of shared memory, and 4 n of dynamic shared
// memory where that is room enough for the row (`keeps`). Bound by the latency of one pass over the
// row in L2 and four to six in shared memory; of all in L2 where the row is too long.
__global__ void __launch_bounds__(kThreads)
    select_salient_kernel(const float* all_scores, int n, int count, bool keeps,
                          int32_t* all_salient, int32_t* all_regular) {
  ZC_DYNAMIC_SHARED(shared);
  ZC_SHARED(uint32_t, histogram, [kBuckets]);
  ZC_SHARED(uint32_t, bounds, [2]);
  // The bucket of the least selected key, selected keys of that bucket, and all of its keys.
  ZC_SHARED(int32_t, found, [3]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t row = blockIdx.x;
  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const float* scores = all_scores + row * n;
  int32_t* salient = all_salient + row * count;
  int32_t* regular = all_regular + row * (n - count);

  uint32_t threshold = 0;  // the least selected key
  int wanted = 0;          // how many keys equal to it are selected
  if (count > 0) {
    KeyRange range{~0u, 0u};
    float* const kept = reinterpret_cast<float*>(shared);
    each_score(scores, n, [&](int i, float score) {
      if (keeps) kept[i] = score;
      const uint32_t key = score_key(score);
      range.least = key < range.least ? key : range.least;
      range.greatest = key > range.greatest ? key : range.greatest;
    });
    if (thread == 0) {
      bounds[0] = ~0u;
      bounds[1] = 0;
    }
    __syncthreads();
    range.least = __reduce_min_sync(~0u, range.least);
    range.greatest = __reduce_max_sync(~0u, range.greatest);
    if (lane == 0) {
      atomicMin(&bounds[0], range.least);
      atomicMax(&bounds[1], range.greatest);
    }
    __syncthreads();
    range = {bounds[0], bounds[1]};
    wanted = count;
    if (keeps) scores = kept;

    while (range.least < range.greatest) {
      // The range's bits beyond the 11 of a bucket's number.
      const int beyond = 21 - __clz(static_cast<int>(range.greatest - range.least));
      const int shift = beyond > 0 ? beyond : 0;
      for (int i = thread; i < kBuckets; i += kThreads) histogram[i] = 0;
      __syncthreads();
      each_score(scores, n, [&](int, float score) {
        const uint32_t key = score_key(score);
        if (key >= range.least && key <= range.greatest)
          atomicAdd(&histogram[(key - range.least) >> shift], 1u);
      });
      __syncthreads();
      // From the greatest keys down: thread t has buckets 2047 - 2 t and 2046 - 2 t.
      const int upper = kBuckets - 1 - 2 * thread;
      const int in_upper = static_cast<int>(histogram[upper]);
      const int in_lower = static_cast<int>(histogram[upper - 1]);
      const int before = block_scan<kThreads>(in_upper + in_lower).before;
      if (before < wanted && wanted <= before + in_upper + in_lower) {
        const bool is_lower = wanted > before + in_upper;
        found[0] = is_lower ? upper - 1 : upper;
        found[1] = wanted - before - (is_lower ? in_upper : 0);
        found[2] = is_lower ? in_lower : in_upper;
      }
      __syncthreads();
      wanted = found[1];
      const uint32_t least = range.least + (static_cast<uint32_t>(found[0]) << shift);
      const uint32_t width = (1u << shift) - 1u;
      range = {least, range.greatest - least < width ? range.greatest : least + width};
      const bool takes_all = found[2] == wanted && least > 0;
      __syncthreads();
      if (takes_all) {  // as all that is greater than the key before
        range = {least - 1, least - 1};
        wanted = 0;
      }
    }
    threshold = range.least;
  }

  // A warp's piece of the row: [begin, end).
  const int piece = (n + kWarps - 1) / kWarps;
  const int begin = warp * piece < n ? warp * piece : n;
  const int end = n - begin < piece ? n : begin + piece;
  int greater = 0;
  int equal = 0;
  for (int first = begin; first < end; first += kUnroll * 32) {
    float x[kUnroll];
    ZC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * 32 + lane;
      x[u] = i < end ? scores[i] : 0.0f;
    }
    ZC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const bool inside = first + u * 32 + lane < end;
      const uint32_t key = score_key(x[u]);
      greater += __popc(__ballot_sync(~0u, inside && key > threshold));
      equal += __popc(__ballot_sync(~0u, inside && key == threshold));
    }
  }
  const int equal_before = block_scan<kThreads>(lane == 0 ? equal : 0).before;
  const int greater_before = block_scan<kThreads>(lane == 0 ? greater : 0).before;
  int n_equal = __shfl_sync(~0u, equal_before, 0);  // keys equal to the threshold so far
  int n_greater = __shfl_sync(~0u, greater_before, 0);
  if (count == 0) wanted = n_greater = 0;
  const uint32_t lower_lanes = (1u << lane) - 1u;
  for (int first = begin; first < end; first += kUnroll * 32) {
    float x[kUnroll];
    ZC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * 32 + lane;
      x[u] = i < end ? scores[i] : 0.0f;
    }
    ZC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * 32 + lane;
      const bool inside = i < end;
      const uint32_t key = score_key(x[u]);
      const uint32_t greater_lanes = __ballot_sync(~0u, inside && count > 0 && key > threshold);
      const uint32_t equal_lanes = __ballot_sync(~0u, inside && key == threshold);
      const int equal_rank = n_equal + __popc(equal_lanes & lower_lanes);
      const int taken = n_greater + __popc(greater_lanes & lower_lanes) +
                        (equal_rank < wanted ? equal_rank : wanted);
      const bool selected = (greater_lanes >> lane & 1u) != 0 ||
                            ((equal_lanes >> lane & 1u) != 0 && equal_rank < wanted);
      if (inside && selected) salient[taken] = i;
      if (inside && !selected) regular[i - taken] = i;
      n_greater += __popc(greater_lanes);
      n_equal += __popc(equal_lanes);
    }
  }
}

}  // namespace

void select_salient(Context& context, const SelectSalientArgs& a) {
  const int64_t n = a.scores.size(1);
  ZC_CHECK(n < int64_t{1} << 30, ErrorCode::kUnsupported,
           "scores: %lld tokens, expected below 2^30", static_cast<long long>(n));
  const int64_t count = a.salient.size(1);
  const int64_t row_bytes = n * static_cast<int64_t>(sizeof(float));
  const bool keeps = count > 0 && row_bytes + kOwnBytes <= context.shared_bytes_per_block;
  launch_early(context, &select_salient_kernel, blocks_for(a.scores.size(0), 1), kThreads,
               keeps ? static_cast<size_t>(row_bytes) : 0, a.scores.as<float>(), n, count, keeps,
               a.salient.as<int32_t>(), a.regular.as<int32_t>());
}

}  // namespace zc::cuda
