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

// Picks the next token of each row: repetition penalty, temperature, top-k, top-p, min-p, one
// uniform number of the row's seed and step. lib/reference/sample.ts says the same in double
// precision. A row with NaN or +inf gives id -1.
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

    float* value = thread_scratch(0, static_cast<size_t>(vocab_size));
    bool broken = false;
    int64_t best = 0;
    for (int64_t i = 0; i < vocab_size; ++i) {
      float x = logits[i];
      if (seen && seen[i] && penalty != 1.0f) x = x > 0.0f ? x / penalty : x * penalty;
      // After the penalty, which may be anything: sorting a NaN would be undefined.
      broken = broken || x != x || x == INFINITY;
      value[i] = x;
      if (x > value[best]) best = i;
    }
    if (broken || value[best] == -INFINITY) {
      a.ids.as<int32_t>()[row] = -1;
      a.logprobs.as<float>()[row] = NAN;
      return;
    }
    // Weights relative to the likeliest token, whose own is 1.
    const double divisor = temperature > 0.0f ? temperature : 1.0;
    const auto log_weight = [&](float x) { return (double{x} - value[best]) / divisor; };
    double total = 0.0;
    for (int64_t i = 0; i < vocab_size; ++i) total += std::exp(log_weight(value[i]));

    int64_t chosen = best;
    if (temperature > 0.0f) {
      auto* kept =
          reinterpret_cast<Candidate*>(thread_scratch(1, static_cast<size_t>(vocab_size) * 2));
      int64_t n = 0;
      for (int64_t i = 0; i < vocab_size; ++i) kept[n++] = {value[i], static_cast<int32_t>(i)};
      const auto weight = [&](int64_t i) { return std::exp(log_weight(kept[i].logit)); };
      const float top_p = params[kSampleTopP];
      const bool cut_by_rank = top_k > 0 && top_k < n;
      if (cut_by_rank || top_p < 1.0f) std::sort(kept, kept + n, ranks_before);
      if (cut_by_rank) n = top_k;
      if (top_p < 1.0f) {
        double mass = 0.0;
        for (int64_t i = 0; i < n; ++i) mass += weight(i);
        double reached = 0.0;
        int64_t i = 0;
        do {
          reached += weight(i++);
        } while (i < n && reached < double{top_p} * mass);
        n = i;
      }
      const double least = params[kSampleMinP];
      int64_t left = 0;
      for (int64_t i = 0; i < n; ++i)
        if (weight(i) >= least) kept[left++] = kept[i];
      n = left;
      std::sort(kept, kept + n, [](const Candidate& x, const Candidate& y) { return x.id < y.id; });
      double mass = 0.0;
      for (int64_t i = 0; i < n; ++i) mass += weight(i);
      const double target = uniform(seed, float_to_bits(params[kSampleStep])) * mass;
      double reached = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        reached += weight(i);
        if (target < reached) {
          chosen = kept[i].id;
          break;
        }
      }
    }
    a.ids.as<int32_t>()[row] = static_cast<int32_t>(chosen);
    a.logprobs.as<float>()[row] = static_cast<float>(log_weight(value[chosen]) - std::log(total));
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
