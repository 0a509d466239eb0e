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

// Picks the next token of each row: repetition penalty, temperature, top-k, top-p, min-p, one uniform number of the row's
// seed and step. lib/reference/sample.ts says the same in double precision. A row with NaN or +inf gives id -1.
void sample(const OpContext& ctx, const SampleArgs& a) {
  const int64_t vocab_size = a.logits.size(1);
  ctx.threads->parallel_for(a.logits.size(0), [&](int64_t row) {
    const float* logits = a.logits.as<float>() + row * vocab_size;
    const float* params = a.params.as<float>() + row * kSampleParams;
    uint8_t* seen = a.seen.as<uint8_t>() + row * vocab_size;
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
      broken = broken || x != x || x == INFINITY;
      if (seen[i] && penalty != 1.0f) x = x > 0.0f ? x / penalty : x * penalty;
      if (temperature > 0.0f) x = x / temperature;
      value[i] = x;
      if (x > value[best]) best = i;
    }
    if (broken || value[best] == -INFINITY) {
      a.ids.as<int32_t>()[row] = -1;
      a.logprobs.as<float>()[row] = NAN;
      return;
    }
    double total = 0.0;
    for (int64_t i = 0; i < vocab_size; ++i) total += std::exp(double{value[i]} - value[best]);

    int64_t chosen = best;
    if (temperature > 0.0f) {
      auto* kept = reinterpret_cast<Candidate*>(thread_scratch(1, static_cast<size_t>(vocab_size) * 2));
      int64_t n = 0;
      for (int64_t i = 0; i < vocab_size; ++i) kept[n++] = {value[i], static_cast<int32_t>(i)};
      const float top_p = params[kSampleTopP];
      if ((top_k > 0 && top_k < n) || top_p < 1.0f) std::sort(kept, kept + n, ranks_before);
      if (top_k > 0 && top_k < n) n = top_k;
      double mass = 0.0;
      for (int64_t i = 0; i < n; ++i) mass += std::exp(double{kept[i].logit} - value[best]);
      if (top_p < 1.0f) {
        double below = 0.0;
        int64_t i = 0;
        do {
          below += std::exp(double{kept[i].logit} - value[best]) / mass;
          ++i;
        } while (i < n && below < top_p);
        n = i;
      }
      // min-p is relative to the most likely token, whose weight is e^0 = 1.
      const double least = params[kSampleMinP];
      int64_t left = 0;
      for (int64_t i = 0; i < n; ++i)
        if (std::exp(double{kept[i].logit} - value[best]) >= least) kept[left++] = kept[i];
      n = left;
      std::sort(kept, kept + n, [](const Candidate& x, const Candidate& y) { return x.id < y.id; });
      mass = 0.0;
      for (int64_t i = 0; i < n; ++i) mass += std::exp(double{kept[i].logit} - value[best]);
      const double u = uniform(seed, float_to_bits(params[kSampleStep]));
      double below = 0.0;
      chosen = kept[n - 1].id;
      for (int64_t i = 0; i < n; ++i) {
        below += std::exp(double{kept[i].logit} - value[best]) / mass;
        if (u < below) {
          chosen = kept[i].id;
          break;
        }
      }
    }
    a.ids.as<int32_t>()[row] = static_cast<int32_t>(chosen);
    a.logprobs.as<float>()[row] = static_cast<float>(double{value[chosen]} - value[best] - std::log(total));
    seen[chosen] = 1;
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
