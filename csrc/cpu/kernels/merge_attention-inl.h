namespace zc::cpu {
namespace ZC_ISA {

// Joins two attention results over disjoint sets of keys by their log-sum-exps. One task is a row.
template <typename T>
void merge_attention_typed(const OpContext& ctx, const MergeAttentionArgs& a) {
  const int64_t n_heads = a.out.size(1);
  const int64_t d = a.out.size(2);
  ctx.threads->parallel_for(a.out.size(0), [&](int64_t row) {
    for (int64_t i = row * n_heads; i < (row + 1) * n_heads; ++i) {
      const MergeWeights w = merge_weights(a.lse_a.as<float>()[i], a.lse_b.as<float>()[i]);
      // A side that saw no key takes no part, not even with a NaN.
      for (int64_t c = i * d; c < (i + 1) * d; ++c) {
        const float x = w.a == 0.0f ? 0.0f : w.a * to_float(a.out_a.as<T>()[c]);
        const float y = w.b == 0.0f ? 0.0f : w.b * to_float(a.out_b.as<T>()[c]);
        a.out.as<T>()[c] = from_float<T>(x + y);
      }
      a.lse.as<float>()[i] = w.lse;
    }
  });
}

void merge_attention(const OpContext& ctx, const MergeAttentionArgs& a) {
  dispatch_float(a.out.dtype,
                 [&](auto type) { merge_attention_typed<typename decltype(type)::type>(ctx, a); });
}

// A sink is a side whose attention is 0. One task is a row.
template <typename T>
void attention_sinks_typed(const OpContext& ctx, const AttentionSinksArgs& a) {
  const int64_t n_heads = a.out.size(1);
  const int64_t d = a.out.size(2);
  ctx.threads->parallel_for(a.out.size(0), [&](int64_t row) {
    for (int64_t head = 0; head < n_heads; ++head) {
      const int64_t i = row * n_heads + head;
      const MergeWeights w = merge_weights(a.lse.as<float>()[i], a.sinks.as<float>()[head]);
      // What saw no key is 0, whatever it holds.
      for (int64_t c = i * d; c < (i + 1) * d; ++c)
        a.out.as<T>()[c] = from_float<T>(w.a == 0.0f ? 0.0f : w.a * to_float(a.out.as<T>()[c]));
      a.lse.as<float>()[i] = w.lse;
    }
  });
}

void attention_sinks(const OpContext& ctx, const AttentionSinksArgs& a) {
  dispatch_float(a.out.dtype,
                 [&](auto type) { attention_sinks_typed<typename decltype(type)::type>(ctx, a); });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
