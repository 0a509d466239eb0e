namespace zc::cpu {
namespace ZC_ISA {

// Saliency of every key from the probe rows (ZipCache, arXiv 2405.14256, Eqs. 7 to 9): with the LSE
// at hand one pass over Q K^T gives the attention probabilities, so memory is O(kv_len). One task
// is a block of keys of one KV head of one layer; its sums run over the probes in their order, so
// they do not depend on the number of threads.
template <typename T>
void probe_attention_typed(const OpContext& ctx, const ProbeAttentionArgs& a) {
  const int64_t n_heads = a.n_heads();
  const int64_t kv_len = a.k.size(0);
  const int64_t n_kv_heads = a.k.size(1);  // of all layers
  const int group = static_cast<int>(a.group());
  const int d = static_cast<int>(a.head_dim());
  const int64_t n_probes = a.rows.size(0);
  const int32_t* probe_rows = a.rows.as<int32_t>();
  const int32_t* positions = a.positions.as<int32_t>();
  for (int64_t p = 0; p < n_probes; ++p)
    ZC_CHECK(probe_rows[p] >= 0 && probe_rows[p] < a.n_rows(), ErrorCode::kArgument,
             "rows: probe %lld is row %d, expected 0 to %lld", static_cast<long long>(p),
             probe_rows[p], static_cast<long long>(a.n_rows() - 1));

  const int64_t n_blocks = (kv_len + kBlockKeys - 1) / kBlockKeys;
  const int probes_per_tile = std::max(1, kBlockRows / group);
  ctx.threads->parallel_for(n_blocks * n_kv_heads, [&](int64_t task) {
    const int64_t kv_head = task % n_kv_heads;
    const int64_t key0 = task / n_kv_heads * kBlockKeys;
    const int n_keys = static_cast<int>(std::min<int64_t>(kBlockKeys, kv_len - key0));
    const int64_t first_head = kv_head * group;  // of all layers
    const int64_t layer = first_head / n_heads;
    // Where the group begins in a probe's row of q and lse, in heads.
    const auto heads_of = [&](int64_t probe) {
      return (layer * a.n_rows() + probe_rows[probe]) * n_heads + first_head % n_heads;
    };
    const int tile_rows = probes_per_tile * group;
    float* q = thread_scratch(0, static_cast<size_t>(tile_rows) * d);
    float* k = thread_scratch(1, static_cast<size_t>(kBlockKeys) * d);  // strips of keys
    float* scores = thread_scratch(4, static_cast<size_t>(tile_rows) * kBlockKeys);
    float totals[kBlockKeys] = {};
    int64_t n_seen[kBlockKeys] = {};

    load_keys(a.k.as<T>() + (key0 * n_kv_heads + kv_head) * d, n_kv_heads * d, n_keys, d, k);
    for (int64_t probe0 = 0; probe0 < n_probes; probe0 += probes_per_tile) {
      const int n_tile = static_cast<int>(std::min<int64_t>(probes_per_tile, n_probes - probe0));
      const auto seen = [&](int64_t p) {
        return visible_keys(positions[p], kv_len, true, a.sliding_window);
      };
      bool any = false;
      for (int p = 0; p < n_tile; ++p) {
        const KeyRange range = seen(probe0 + p);
        any = any || (range.first < key0 + n_keys && range.last > key0);
      }
      if (!any) continue;
      const int rows = n_tile * group;
      for (int r = 0; r < rows; ++r) {
        const int64_t at = heads_of(probe0 + r / group) + r % group;
        widen(a.q.as<T>() + at * d, q + static_cast<int64_t>(r) * d, d);
      }
      std::fill(scores, scores + static_cast<int64_t>(rows) * kBlockKeys, 0.0f);
      for (int j = 0; j < n_keys; j += kStrip)
        tile_multiply(q, d, k + int64_t{j} * d, kStrip, scores + j, kBlockKeys, rows, kStrip, d);
      for (int p = 0; p < n_tile; ++p) {
        const KeyRange range = seen(probe0 + p);
        const int first = static_cast<int>(std::clamp<int64_t>(range.first - key0, 0, n_keys));
        const int last = static_cast<int>(std::clamp<int64_t>(range.last - key0, first, n_keys));
        for (int j = first; j < last; ++j) ++n_seen[j];
        for (int g = 0; g < group; ++g) {
          const int r = p * group + g;
          const float lse = a.lse.as<float>()[heads_of(probe0 + p) + g];
          float* row = scores + static_cast<int64_t>(r) * kBlockKeys;
          for (int j = 0; j < kBlockKeys; j += kLanes)
            store(row + j, exp(load(row + j) * broadcast(a.scale) - broadcast(lse)));
          for (int j = first; j < last; ++j) totals[j] += row[j];
        }
      }
    }
    float* out = a.scores.as<float>() + kv_head * kv_len + key0;
    for (int j = 0; j < n_keys; ++j)
      out[j] =
          a.normalized && n_seen[j] > 0 ? totals[j] / static_cast<float>(n_seen[j]) : totals[j];
  });
}

void probe_attention(const OpContext& ctx, const ProbeAttentionArgs& a) {
  dispatch_float(a.q.dtype,
                 [&](auto type) { probe_attention_typed<typename decltype(type)::type>(ctx, a); });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
