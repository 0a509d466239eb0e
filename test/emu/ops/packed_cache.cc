#include "test/emu/ops/packed_cache.h"

#include <algorithm>
#include <numeric>

namespace zc::test {

PackedCache::PackedCache(OpRun& run, CacheShape shape, int64_t pool_bytes)
    : shape_(shape),
      pool_(run.pool(pool_bytes)),
      top_(static_cast<int32_t>(pool_bytes / kPageUnitBytes)) {}

// From the bottom and from the top in turn, a unit left free beside each.
int32_t PackedCache::allocate(int64_t bytes) {
  const int32_t units = static_cast<int32_t>((bytes + kPageUnitBytes - 1) / kPageUnitBytes) + 1;
  ZC_CHECK(bottom_ + units <= top_, ErrorCode::kInternal, "the pool of this test is too small");
  from_top_ = !from_top_;
  if (from_top_) return top_ -= units;
  bottom_ += units;
  return bottom_ - units;
}

std::vector<int32_t> PackedCache::table(const TailPlan& tail,
                                        const std::vector<SegmentPlan>& segments) {
  const int32_t n_entries = shape_.n_layers * shape_.n_kv_heads;
  const int32_t max_segments = static_cast<int32_t>(segments.size()) + 1;
  const int32_t entry_words = kEntryHeader + max_segments * kSegmentWords;
  const int32_t pages_at = kTableHeader + n_entries * entry_words;
  std::vector<int32_t> words(static_cast<size_t>(pages_at), -1);
  words[kTableTailLength] = tail.n_tokens;
  words[kTableTailStart] = tail.start;
  words[kTableLayers] = shape_.n_layers;
  words[kTableKvHeads] = shape_.n_kv_heads;
  words[kTableMaxSegments] = max_segments;

  std::vector<SegmentPlan> plans = {{tail.format, tail.format, tail.n_tokens, tail.start}};
  plans.insert(plans.end(), segments.begin(), segments.end());
  for (int32_t entry = 0; entry < n_entries; ++entry) {
    const int32_t entry_at = kTableHeader + entry * entry_words;
    words[entry_at] = max_segments;
    int32_t bitmap = -1;
    for (size_t i = 0; i < plans.size(); ++i) {
      const SegmentPlan& plan = plans[i];
      const int32_t pages_begin = static_cast<int32_t>(words.size());
      for (int32_t p = 0; p * kPageTokens < plan.n_tokens; ++p)
        words.push_back(allocate(page_bytes(plan.k_format, plan.v_format, shape_.head_dim)));
      if (plan.span > 0) bitmap = allocate((plan.span + 7) / 8);
      const bool has_params = format_quantized(plan.k_format) || format_quantized(plan.v_format);
      const int32_t params = has_params ? allocate(params_bytes(shape_.head_dim)) : -1;
      int32_t* w = &words[entry_at + kEntryHeader + i * kSegmentWords];
      w[0] = static_cast<int32_t>(plan.k_format);
      w[1] = static_cast<int32_t>(plan.v_format);
      w[2] = plan.n_tokens;
      w[3] = pages_begin;
      w[4] = params;
      w[5] = plan.span == 0 ? -1 : bitmap;
      w[6] = plan.start;
      w[7] = plan.span;
    }
  }
  return words;
}

Selection select(OpRun& run, int32_t n_kv_heads, int32_t n, int32_t count) {
  Selection selection;
  for (int32_t head = 0; head < n_kv_heads; ++head) {
    std::vector<int32_t> rows(n);
    std::iota(rows.begin(), rows.end(), 0);
    for (int32_t i = 0; i < count; ++i)
      std::swap(rows[i], rows[i + run.random().below(static_cast<uint32_t>(n - i))]);
    std::sort(rows.begin(), rows.begin() + count);
    std::sort(rows.begin() + count, rows.end());
    selection.salient.insert(selection.salient.end(), rows.begin(), rows.begin() + count);
    selection.regular.insert(selection.regular.end(), rows.begin() + count, rows.end());
  }
  return selection;
}

std::vector<int32_t> pack_sequence(OpRun& run, PackedCache& cache, const SequencePlan& plan,
                                   DType dtype) {
  const auto [n_kv_heads, head_dim, n_layers] = cache.shape();
  std::vector<SegmentPlan> segments;
  int32_t start = 0;
  for (const BlockPlan& b : plan.blocks) {
    const bool all = b.n_salient == b.n_tokens;
    segments.push_back({b.salient_k, b.salient_v, b.n_salient, start, all ? 0 : b.n_tokens});
    if (!all)
      segments.push_back({b.regular_k, b.regular_v, b.n_tokens - b.n_salient, start, -b.n_tokens});
    start += b.n_tokens;
  }
  const std::vector<int32_t> table = cache.table({plan.tail_format, plan.n_tail, start}, segments);
  const TensorView words = run.ints(table);

  // Channels of different size, as keys have them.
  const auto rows = [&](int32_t n) {
    return run.floats(dtype, {n, n_kv_heads, head_dim}, [&, d = head_dim](int64_t i) {
      return run.normal() * (i % d % 7 == 0 ? 4.0f : 1.0f);
    });
  };
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    int32_t segment = 1;
    for (const BlockPlan& b : plan.blocks) {
      const TensorView k = rows(b.n_tokens);
      const TensorView v = rows(b.n_tokens);
      const Selection chosen = select(run, n_kv_heads, b.n_tokens, b.n_salient);
      const TensorView salient = run.ints(chosen.salient, {n_kv_heads, b.n_salient});
      const int32_t first = segment++;
      if (b.n_salient == b.n_tokens) {
        run.op(&Backend::pack_segment,
               PackSegmentArgs{k, v, salient, cache.pool(), words, layer, first, b.norm, b.norm});
        continue;
      }
      // Of two classes, V's ranges of the first alone are searched.
      const TensorView regular = run.ints(chosen.regular, {n_kv_heads, b.n_tokens - b.n_salient});
      run.op(&Backend::pack_segments,
             PackSegmentsArgs{k,
                              v,
                              cache.pool(),
                              words,
                              layer,
                              {{salient, first, b.norm, b.norm}, {regular, segment++, b.norm, 0}},
                              2});
    }
    run.op(&Backend::append_kv,
           AppendKvArgs{rows(plan.n_tail), rows(plan.n_tail), cache.pool(), words, run.ints({0}),
                        run.ints({0, plan.n_tail}), layer});
  }
  return table;
}

StackedTables stack_tables(const std::vector<std::vector<int32_t>>& tables) {
  constexpr int32_t kGap = 3;
  StackedTables stacked;
  for (const std::vector<int32_t>& table : tables) {
    stacked.words.insert(stacked.words.end(), kGap, -1);
    stacked.starts.push_back(static_cast<int32_t>(stacked.words.size()));
    stacked.words.insert(stacked.words.end(), table.begin(), table.end());
  }
  return stacked;
}

}  // namespace zc::test
