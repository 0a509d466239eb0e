namespace zc::cpu {
namespace ZC_ISA {

// A token that may still be drawn.
struct Candidate {
  float logit;
  int32_t id;
};

// Highest logit first, the lower id wins ties.
inline bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Keeps the n highest of `kept` in order, for as many as `enough` does not say are enough: sorting
// the rest of a vocabulary would take longer than a small model's decode step. `enough(i)` is asked
// once for each place, in order, when kept[i] is in its place. Returns how many are kept.
template <typename F>
inline int64_t keep_highest(Candidate* kept, int64_t n_candidates, int64_t n, const F& enough) {
  int64_t sorted = 0;
  for (int64_t chunk = 256; sorted < n; chunk *= 4) {
    const int64_t end = std::min(n, sorted + chunk);
    if (end < n_candidates)
      std::nth_element(kept + sorted, kept + end, kept + n_candidates, ranks_before);
    std::sort(kept + sorted, kept + end, ranks_before);
    for (; sorted < end; ++sorted)
      if (enough(sorted)) return sorted + 1;
  }
  return n;
}

// weight[i] = e^((value[i] - best) / divisor); returns their sum.
inline double exponentials(const float* value, int64_t n, float best, float divisor,
                           float* weight) {
  constexpr int64_t kChunk = 256;  // added up in float, chunks in double
  double total = 0.0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    VecF sums{};
    for (const int64_t end = std::min(n, i + kChunk); i + kLanes <= end; i += kLanes) {
      const VecF w = exp((load(value + i) - broadcast(best)) / broadcast(divisor));
      store(weight + i, w);
      sums += w;
    }
    total += double{sum(sums)};
  }
  for (; i < n; ++i) {
    weight[i] = exp(broadcast((value[i] - best) / divisor))[0];
    total += weight[i];
  }
  return total;
}

// Picks the next token of each row: repetition penalty, temperature, top-k, top-p, min-p, one
// uniform number of the row's seed and step. lib/reference/sample.ts says the same in double
// precision; here probabilities have float's. A row with NaN or +inf gives id -1.
void sample(const OpContext& ctx, const SampleArgs& a) {
  const int64_t vocab_size = a.logits.size(1);
  ctx.threads->parallel_for(a.logits.size(0), [&](int64_t row) {
    const float* logits = a.logits.as<float>() + row * vocab_size;
    const float* params = a.params.as<float>() + row * kSampleParams;
    const int32_t context = a.contexts.as<int32_t>()[row];
    ZC_CHECK(context >= -1 && context < a.seen.size(0), ErrorCode::kArgument,
             "contexts: %d, expected -1 to %lld", context,
             static_cast<long long>(a.seen.size(0) - 1));
    uint8_t* seen = context < 0 ? nullptr : a.seen.as<uint8_t>() + context * vocab_size;
    const float temperature = params[kSampleTemperature];
    const float penalty = params[kSampleRepetitionPenalty];
    const int32_t top_k = static_cast<int32_t>(float_to_bits(params[kSampleTopK]));
    const uint64_t seed = float_to_bits(params[kSampleSeedLow]) |
                          static_cast<uint64_t>(float_to_bits(params[kSampleSeedHigh])) << 32;

    const size_t scratch_size = static_cast<size_t>(vocab_size);
    float* value = thread_scratch(0, scratch_size);
    bool broken = false;
    const bool penalize = seen && penalty != 1.0f;
    float best_value = -INFINITY;
    for (int64_t i = 0; i < vocab_size; ++i) {
      float x = logits[i];
      if (penalize) x = !seen[i] ? x : x > 0.0f ? x / penalty : x * penalty;
      // After the penalty, which may be anything: sorting a NaN would be undefined.
      broken |= !(x < INFINITY);
      value[i] = x;
      best_value = x > best_value ? x : best_value;
    }
    if (broken || best_value == -INFINITY) {
      a.ids.as<int32_t>()[row] = -1;
      a.logprobs.as<float>()[row] = NAN;
      return;
    }
    int64_t best = 0;
    while (value[best] != best_value) ++best;
    // Weights relative to the likeliest token, whose own is 1.
    const float divisor = temperature > 0.0f ? temperature : 1.0f;
    float* weight = thread_scratch(1, scratch_size);
    const double total = exponentials(value, vocab_size, best_value, divisor, weight);

    int64_t chosen = best;
    if (temperature > 0.0f) {
      const float top_p = params[kSampleTopP];
      const float least = params[kSampleMinP];
      const double u = uniform(seed, float_to_bits(params[kSampleStep]));
      // The token that holds u's share of the mass of those that id(0) to id(n - 1) name.
      const auto draw = [&](int64_t n, const auto& id) {
        double mass = 0.0;
        for (int64_t i = 0; i < n; ++i)
          if (weight[id(i)] >= least) mass += weight[id(i)];
        double reached = 0.0;
        for (int64_t i = 0; i < n; ++i) {
          if (weight[id(i)] < least) continue;
          reached += weight[id(i)];
          if (u * mass < reached) return id(i);
        }
        return best;
      };
      const bool cut_by_rank = top_k > 0 && top_k < vocab_size;
      if (cut_by_rank || top_p < 1.0f) {
        auto* kept = reinterpret_cast<Candidate*>(thread_scratch(2, scratch_size * 2));
        for (int64_t i = 0; i < vocab_size; ++i) kept[i] = {value[i], static_cast<int32_t>(i)};
        int64_t n = vocab_size;
        double mass = total;
        if (cut_by_rank) {
          n = keep_highest(kept, n, top_k, [](int64_t) { return false; });
          mass = 0.0;
          for (int64_t i = 0; i < n; ++i) mass += weight[kept[i].id];
        }
        if (top_p < 1.0f) {
          double reached = 0.0;
          n = keep_highest(kept, n, n, [&](int64_t i) {
            reached += weight[kept[i].id];
            return reached >= double{top_p} * mass;
          });
        }
        std::sort(kept, kept + n,
                  [](const Candidate& x, const Candidate& y) { return x.id < y.id; });
        chosen = draw(n, [&](int64_t i) { return int64_t{kept[i].id}; });
      } else {
        chosen = draw(vocab_size, [](int64_t i) { return i; });
      }
    }
    a.ids.as<int32_t>()[row] = static_cast<int32_t>(chosen);
    a.logprobs.as<float>()[row] =
        static_cast<float>((double{value[chosen]} - best_value) / divisor - std::log(total));
    if (seen) seen[chosen] = 1;
  });
}

// The tokens of the next step: what was sampled, or what is given. A row whose logits were broken
// (-1) goes on with token 0, because its neighbours must not fail with it; who reads the ids sees
// the -1.
void feed_tokens(const OpContext&, const FeedTokensArgs& a) {
  for (int64_t r = 0; r < a.source.size(0); ++r) {
    const int32_t source = a.source.as<int32_t>()[r];
    ZC_CHECK(source >= -1 && source < a.sampled.size(0), ErrorCode::kArgument,
             "source: %d, expected -1 to %lld", source,
             static_cast<long long>(a.sampled.size(0) - 1));
    a.out.as<int32_t>()[r] =
        source < 0 ? a.given.as<int32_t>()[r] : std::max(0, a.sampled.as<int32_t>()[source]);
  }
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
