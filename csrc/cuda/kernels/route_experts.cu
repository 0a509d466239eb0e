#include "csrc/cuda/device/scan.h"
#include "csrc/cuda/device/sigmoid.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/expert_key.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRows = kThreads / 32;  // of a block, a warp each

ZC_DEVICE uint64_t largest_of_warp(uint64_t key) {
  ZC_UNROLL for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, key, step);
    key = other > key ? other : key;
  }
  return key;
}

ZC_DEVICE float sum_of_warp(float x) {
  ZC_UNROLL for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// How a row's experts are scored, as RouteExpertsArgs says it.
struct Scoring {
  const float* correction;
  const float* expert_scales;
  bool is_sigmoid;
  bool normalized;
  float least_sum;
  float scale;
};

// The first key behind the one before, of all lanes' ranks.
ZC_DEVICE uint64_t next_key(const float* ranks, int n_experts, int lane, uint64_t before) {
  uint64_t best = 0;
  for (int e = lane; e < n_experts; e += 32) {
    const uint64_t key = expert_key(ranks[e], e);
    if (key < before && key > best) best = key;
  }
  return largest_of_warp(best);
}

// weights, experts (n, n_chosen) = the largest of the scores of logits (n, n_experts), by a warp a
// row, which finds the first expert behind the one before, n_chosen times. A NaN among the logits
// makes all weights of its row NaN. Shared memory: 16 KB; bound by latency.
__global__ void __launch_bounds__(kThreads)
    route_rows_kernel(const float* logits, float* weights, int32_t* experts, int64_t n_rows,
                      int n_experts, int n_chosen, Scoring scoring) {
  ZC_SHARED(float, all, [kRows][kMaxExperts]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int64_t row = int64_t{blockIdx.x} * kRows + warp;
  if (row >= n_rows) return;
  float(&ranks)[kMaxExperts] = all[warp];  // a lane reads what it wrote itself
  logits += row * n_experts;
  weights += row * n_chosen;
  experts += row * n_chosen;
  for (int e = lane; e < n_experts; e += 32) ranks[e] = logits[e];

  uint64_t key = next_key(ranks, n_experts, lane, ~uint64_t{0});
  const float most = logits[expert_of(key)];
  const auto raw_score = [&](float logit) {
    return scoring.is_sigmoid ? sigmoid(logit) : expf(logit - most);
  };
  float total = 0.0f;
  for (int e = lane; e < n_experts; e += 32) total += raw_score(ranks[e]);
  total = sum_of_warp(total);
  if (scoring.is_sigmoid && total == total) total = 1.0f;  // it says only whether there is a NaN
  if (scoring.correction != nullptr) {
    for (int e = lane; e < n_experts; e += 32)
      ranks[e] = raw_score(ranks[e]) / total + scoring.correction[e];
    key = next_key(ranks, n_experts, lane, ~uint64_t{0});
  }

  float chosen = 0.0f;
  for (int i = 0; i < n_chosen; ++i) {
    if (i > 0) key = next_key(ranks, n_experts, lane, key);
    const int expert = expert_of(key);
    const float weight = raw_score(logits[expert]) / total;
    chosen += weight;
    if (lane == 0) {
      experts[i] = expert;
      weights[i] = weight;
    }
  }
  if (lane != 0) return;
  const float least = scoring.least_sum;
  const float divisor = !scoring.normalized ? 1.0f : chosen < least ? least : chosen;
  for (int i = 0; i < n_chosen; ++i) {
    const float weight = weights[i] / divisor * scoring.scale;
    const bool is_scaled = scoring.expert_scales != nullptr;
    weights[i] = is_scaled ? weight * scoring.expert_scales[experts[i]] : weight;
  }
}

// Where an expert's pairs begin, and which they are, in order: a block owns an expert and looks at
// every pair, twice, so that its shape does not depend on what the router chose. Bound by L2.
__global__ void __launch_bounds__(kThreads)
    order_pairs_kernel(const int32_t* experts, int32_t* pairs, int32_t* offsets, int n_pairs) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int own = static_cast<int>(blockIdx.x);
  const int n_experts = static_cast<int>(gridDim.x);
  int smaller = 0;
  for (int pair = static_cast<int>(threadIdx.x); pair < n_pairs; pair += kThreads)
    smaller += experts[pair] < own;
  int begin = block_scan<kThreads>(smaller).total;
  if (threadIdx.x == 0) {
    offsets[own] = begin;
    if (own == n_experts - 1) offsets[n_experts] = n_pairs;
  }
  for (int first = 0; first < n_pairs; first += kThreads) {
    const int pair = first + static_cast<int>(threadIdx.x);
    const int is_own = pair < n_pairs && experts[pair] == own;
    const Scanned place = block_scan<kThreads>(is_own);
    if (is_own) pairs[begin + place.before] = pair;
    begin += place.total;
  }
}

}  // namespace

void route_experts(Context& context, const RouteExpertsArgs& a) {
  const int64_t n_rows = a.logits.size(0);
  const int n_experts = static_cast<int>(a.logits.size(1));
  const int64_t n_pairs = a.pairs.size(0);
  ZC_CHECK(n_pairs <= INT32_MAX - kThreads, ErrorCode::kUnsupported, "pairs: %lld of them",
           static_cast<long long>(n_pairs));
  const float* correction = a.correction.defined() ? a.correction.as<float>() : nullptr;
  const float* scales = a.expert_scales.defined() ? a.expert_scales.as<float>() : nullptr;
  const Scoring scoring{correction, scales, a.sigmoid, a.normalized, a.least_sum, a.scale};
  launch_early(context, &route_rows_kernel, blocks_for(n_rows, kRows), kThreads, 0,
               a.logits.as<float>(), a.weights.as<float>(), a.experts.as<int32_t>(), n_rows,
               n_experts, static_cast<int>(a.weights.size(1)), scoring);
  launch_early(context, &order_pairs_kernel, static_cast<unsigned>(n_experts), kThreads, 0,
               a.experts.as<int32_t>(), a.pairs.as<int32_t>(), a.offsets.as<int32_t>(),
               static_cast<int>(n_pairs));
}

}  // namespace zc::cuda
