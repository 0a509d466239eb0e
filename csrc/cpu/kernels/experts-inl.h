// What a layer of experts adds to linear: who multiplies a row, the products of rows by experts,
// and their sum. A pair is a row and one of the experts it chose, numbered row * n_chosen + choice.
namespace zc::cpu {
namespace ZC_ISA {

// p (n) = e^(logits - most), and their sum, whose order is n's alone.
inline float exponentials(const float* logits, float most, int64_t n, float* p) {
  VecF lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VecF e = exp(load(logits + i) - broadcast(most));
    store(p + i, e);
    lanes += e;
  }
  float total = sum(lanes);
  for (; i < n; ++i) total += p[i] = exp(broadcast(logits[i] - most))[0];
  return total;
}

// p (n) = sigmoid(logits), and a sum that is NaN if one of them is, else 1.
inline float sigmoids(const float* logits, int64_t n, float* p) {
  float total = 0.0f;
  for (int64_t i = 0; i < n; ++i) total += p[i] = sigmoid(broadcast(logits[i]))[0];
  return total != total ? total : 1.0f;
}

// The first key behind the one before.
inline uint64_t next_key(const float* ranks, int64_t n_experts, uint64_t before) {
  uint64_t best = 0;
  for (int64_t e = 0; e < n_experts; ++e) {
    const uint64_t key = expert_key(ranks[e], static_cast<int32_t>(e));
    if (key < before && key > best) best = key;
  }
  return best;
}

// The n_chosen experts of a row, one after the other; a NaN among the logits makes all weights NaN.
inline void route_row(const RouteExpertsArgs& a, int64_t row) {
  const int64_t n_experts = a.logits.size(1);
  const int64_t n_chosen = a.weights.size(1);
  const float* logits = a.logits.as<float>() + row * n_experts;
  float* weights = a.weights.as<float>() + row * n_chosen;
  int32_t* experts = a.experts.as<int32_t>() + row * n_chosen;
  const auto room = static_cast<size_t>(n_experts);
  float* p = thread_scratch(0, room);
  const float most = logits[expert_of(next_key(logits, n_experts, UINT64_MAX))];
  const float total =
      a.sigmoid ? sigmoids(logits, n_experts, p) : exponentials(logits, most, n_experts, p);
  const float* ranks = logits;
  if (a.correction.defined()) {
    float* corrected = thread_scratch(1, room);
    for (int64_t e = 0; e < n_experts; ++e)
      corrected[e] = p[e] / total + a.correction.as<float>()[e];
    ranks = corrected;
  }
  uint64_t before = UINT64_MAX;
  float chosen = 0.0f;
  for (int64_t i = 0; i < n_chosen; ++i) {
    before = next_key(ranks, n_experts, before);
    experts[i] = expert_of(before);
    chosen += weights[i] = p[experts[i]] / total;
  }
  const float divisor = !a.normalized ? 1.0f : chosen < a.least_sum ? a.least_sum : chosen;
  for (int64_t i = 0; i < n_chosen; ++i) weights[i] = weights[i] / divisor * a.scale;
  if (!a.expert_scales.defined()) return;
  for (int64_t i = 0; i < n_chosen; ++i) weights[i] *= a.expert_scales.as<float>()[experts[i]];
}

// weights, experts = the largest of the scores, and the pairs ordered by expert.
void route_experts(const OpContext& ctx, const RouteExpertsArgs& a) {
  const int64_t n_experts = a.logits.size(1);
  parallel_rows(ctx, a.logits.size(0), [&](int64_t row) { route_row(a, row); });
  const int64_t n_pairs = a.pairs.size(0);
  const int32_t* experts = a.experts.as<int32_t>();
  int32_t* pairs = a.pairs.as<int32_t>();
  int32_t* offsets = a.offsets.as<int32_t>();
  int32_t next[kMaxExperts] = {};  // place of an expert's next pair
  for (int64_t pair = 0; pair < n_pairs; ++pair) ++next[experts[pair]];
  int32_t begin = 0;
  for (int64_t e = 0; e < n_experts; ++e) {
    offsets[e] = begin;
    begin += next[e];
    next[e] = offsets[e];
  }
  offsets[n_experts] = begin;
  for (int64_t pair = 0; pair < n_pairs; ++pair)
    pairs[next[experts[pair]]++] = static_cast<int32_t>(pair);
}

inline void check_pairs(const ExpertLinearArgs& a) {
  const int32_t* offsets = a.offsets.as<int32_t>();
  const int64_t n_experts = a.n_experts();
  const auto n_pairs = static_cast<long long>(a.n_pairs());
  bool good = offsets[0] == 0 && offsets[n_experts] == n_pairs;
  for (int64_t e = 0; e < n_experts; ++e) good = good && offsets[e] <= offsets[e + 1];
  ZC_CHECK(good, ErrorCode::kArgument, "offsets: must rise from 0 to the number of pairs, %lld",
           n_pairs);
  for (int64_t i = 0; i < n_pairs; ++i) {
    const int32_t pair = a.pairs.as<int32_t>()[i];
    ZC_CHECK(pair >= 0 && pair < n_pairs, ErrorCode::kArgument, "pairs: %d, expected 0 to %lld",
             pair, n_pairs - 1);
  }
}

// out[pair] = weight[expert] x[row], to the bit as `linear` gives it: a task is a tile of one
// expert's rows, of which a panel of its weight passes by all.
void expert_linear(const OpContext& ctx, const ExpertLinearArgs& a) {
  check_pairs(a);
  const int64_t n = a.weight.size(1);
  if (a.n_pairs() == 0 || n == 0) return;
  const int32_t* offsets = a.offsets.as<int32_t>();
  const auto blocks_of = [&](int64_t expert) {
    return (offsets[expert + 1] - offsets[expert] + kLinearRows - 1) / kLinearRows;
  };
  int64_t row_blocks = 0;
  for (int64_t e = 0; e < a.n_experts(); ++e) row_blocks += blocks_of(e);
  const int64_t block_rows = (a.n_pairs() + row_blocks - 1) / row_blocks;
  const int64_t columns = columns_of_task(ctx, n, a.x.size(1), row_blocks, block_rows);
  const int64_t column_blocks = (n + columns - 1) / columns;
  ctx.threads->parallel_for(row_blocks * column_blocks, [&](int64_t task) {
    int64_t expert = 0;
    int64_t block = task / column_blocks;
    for (; block >= blocks_of(expert); ++expert) block -= blocks_of(expert);
    const int64_t r0 = offsets[expert] + block * kLinearRows;
    const int64_t c0 = task % column_blocks * columns;
    linear_tile(a.product(expert),
                {r0, std::min<int64_t>(offsets[expert + 1], r0 + kLinearRows), c0,
                 std::min(n, c0 + columns), a.pairs.as<int32_t>(), a.pairs_per_row()});
  });
}

// out = sum over a row's choices, the first one first, of weight * x, plus out where it
// accumulates.
void add_experts(const OpContext& ctx, const AddExpertsArgs& a) {
  const int64_t width = a.out.size(1);
  const int64_t n_chosen = a.weights.size(1);
  parallel_rows(ctx, a.out.size(0), [&](int64_t row) {
    const float* weights = a.weights.as<float>() + row * n_chosen;
    const float* x = a.x.as<float>() + row * n_chosen * width;
    float* out = a.out.as<float>() + row * width;
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) {
      VecF total{};
      for (int64_t i = 0; i < n_chosen; ++i)
        total = fma(broadcast(weights[i]), load(x + i * width + c), total);
      store(out + c, a.accumulate ? load(out + c) + total : total);
    }
    for (; c < width; ++c) {
      VecF total{};  // of one lane: the same arithmetic as above
      for (int64_t i = 0; i < n_chosen; ++i)
        total = fma(broadcast(weights[i]), broadcast(x[i * width + c]), total);
      out[c] = a.accumulate ? out[c] + total[0] : total[0];
    }
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
