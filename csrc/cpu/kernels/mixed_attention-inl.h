namespace zc::cpu {
namespace ZC_ISA {

// ---- few rows: codes go from the page through registers into the sums ----

inline constexpr int kFusedRows = 8;  // beyond, unpacking a block once for all rows is cheaper

// What the upper vectors of a unit accumulate is 1 / upper_scale too large (page-inl.h); sums start
// from what they are added to, brought to that scale, and so are the same bits as those of the tile
// path: powers of two are exact.
template <Format F>
inline VecF load_sum(const float* from, int vec) {
  return is_upper(vec) ? load(from) * broadcast(1.0f / upper_scale<F>) : load(from);
}

template <Format F>
inline void store_sum(float* to, int vec, VecF sum) {
  store(to, is_upper(vec) ? sum * broadcast(upper_scale<F>) : sum);
}

// scores (R, kBlockKeys) += q (R, head_dim) K^T over P pages. P * R * kUnitVecs chains of FMA hide
// its latency.
template <Format F, int R, int P>
inline void score_pages(const SegmentView& view, int64_t first_page, const float* q,
                        float* scores) {
  const int d = view.head_dim;
  const uint8_t* parts[P];
  for (int p = 0; p < P; ++p) parts[p] = view.k_part(first_page + p);
  VecF acc[P][R][kUnitVecs];
  const auto place = [&](int p, int r, int i) {
    return scores + r * kBlockKeys + p * kPageTokens + i * kLanes;
  };
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kUnitVecs; ++i) acc[p][r][i] = load_sum<F>(place(p, r, i), i);
  for (int c = 0; c < d; c += 2)
    for (int p = 0; p < P; ++p) {
      const UnitPair k = load_pair<F>(parts[p], d, c / 2);
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < kUnitVecs; ++i) {
          acc[p][r][i] = fma(broadcast(q[r * d + c]), k.even.v[i], acc[p][r][i]);
          acc[p][r][i] = fma(broadcast(q[r * d + c + 1]), k.odd.v[i], acc[p][r][i]);
        }
    }
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kUnitVecs; ++i) store_sum<F>(place(p, r, i), i, acc[p][r][i]);
}

// o (R, head_dim) += p (R, kBlockKeys) V over the first n_keys tokens of the block, C units of
// channels at a time.
template <Format F, int R, int C>
inline void weigh_units(const SegmentView& view, int64_t first_page, int n_keys, const float* p,
                        float* o, int unit0) {
  const int d = view.head_dim;
  VecF acc[C][R][kUnitVecs];
  const auto place = [&](int j, int r, int i) {
    return o + int64_t{r} * d + (unit0 + j) * 16 + i * kLanes;
  };
  for (int j = 0; j < C; ++j)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kUnitVecs; ++i) acc[j][r][i] = load_sum<F>(place(j, r, i), i);
  for (int t0 = 0; t0 < n_keys; t0 += kPageTokens) {
    const uint8_t* part = view.v_part(first_page + t0 / kPageTokens);
    const int n = std::min(kPageTokens, n_keys - t0);
    for (int t = 0; t < n; t += 2)
      for (int j = 0; j < C; ++j) {
        const UnitPair v = load_pair<F>(part, d, ((unit0 + j) * kPageTokens + t) / 2);
        for (int r = 0; r < R; ++r)
          for (int i = 0; i < kUnitVecs; ++i) {
            const float* at = p + r * kBlockKeys + t0 + t;
            acc[j][r][i] = fma(broadcast(at[0]), v.even.v[i], acc[j][r][i]);
            // The slot after the last may never have been written.
            if (t + 1 < n) acc[j][r][i] = fma(broadcast(at[1]), v.odd.v[i], acc[j][r][i]);
          }
      }
  }
  for (int j = 0; j < C; ++j)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kUnitVecs; ++i) store_sum<F>(place(j, r, i), i, acc[j][r][i]);
}

template <Format F, int R>
inline void fused_scores(const SegmentView& view, int64_t first_page, int n_pages, const float* q,
                         float* scores) {
  constexpr int kTogether = R >= 3 ? 1 : R == 2 ? 2 : 4;
  int page = 0;
  for (; page + kTogether <= n_pages; page += kTogether)
    score_pages<F, R, kTogether>(view, first_page + page, q, scores + page * kPageTokens);
  for (; page < n_pages; ++page)
    score_pages<F, R, 1>(view, first_page + page, q, scores + page * kPageTokens);
}

template <Format F, int R>
inline void fused_weigh(const SegmentView& view, int64_t first_page, int n_keys, const float* p,
                        float* o) {
  constexpr int kTogether = R >= 3 ? 1 : R == 2 ? 2 : 4;
  const int n_units = view.head_dim / 16;
  int unit = 0;
  for (; unit + kTogether <= n_units; unit += kTogether)
    weigh_units<F, R, kTogether>(view, first_page, n_keys, p, o, unit);
  for (; unit < n_units; ++unit) weigh_units<F, R, 1>(view, first_page, n_keys, p, o, unit);
}

// Calls f(first row, std::integral_constant<int, R>) for up to four rows at a time.
template <typename F>
inline void each_rows(int rows, const F& f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) f(r, std::integral_constant<int, 4>{});
  switch (rows - r) {
    case 3:
      return f(r, std::integral_constant<int, 3>{});
    case 2:
      return f(r, std::integral_constant<int, 2>{});
    case 1:
      return f(r, std::integral_constant<int, 1>{});
    default:
      return;
  }
}

// ---- many rows: a block is unpacked once and multiplied as a matrix ----

// Codes (or values) of the block's n_keys tokens to k_t (head_dim, kBlockKeys) and v (kBlockKeys,
// head_dim); zero beyond.
inline void unpack_block(const SegmentView& view, int64_t first_page, int n_keys, float* k_t,
                         float* v) {
  const int d = view.head_dim;
  for (int t = 0; t < kBlockKeys; t += kPageTokens) {
    if (t >= n_keys) {  // scores there are masked, but V must not be NaN
      for (int c = 0; c < d; ++c)
        std::memset(k_t + int64_t{c} * kBlockKeys + t, 0, kPageTokens * sizeof(float));
      continue;
    }
    unpack_keys(view.segment.k_format, view.k_part(first_page + t / kPageTokens), d, k_t + t,
                kBlockKeys);
    unpack_values(view.segment.v_format, view.v_part(first_page + t / kPageTokens), d,
                  v + int64_t{t} * d);
  }
  // Slots beyond the segment were never written in a tail.
  std::memset(v + int64_t{n_keys} * d, 0,
              static_cast<size_t>(kBlockKeys - n_keys) * d * sizeof(float));
}

// Attention straight over the packed cache. With K channelwise and V channel-separable tokenwise no
// element is ever dequantized; scales move to where there are fewer numbers:
//   s_j = sum_c (scale q_c a_c) code_jc + scale sum_c q_c b_c          (a, b: K's channel scale and zero)
//   o_c = g_c (sum_j (p_j sigma_j) code_jc + sum_j p_j mu_j)           (sigma, mu: V's token scale and zero; g: channel)
// One softmax state runs through all segments and the tail. One task is a block of query rows of
// one (sequence, KV head).
template <typename T>
void mixed_attention_typed(const OpContext& ctx, const MixedAttentionArgs& a) {
  const int64_t n_heads = a.q.size(1);
  const int d = static_cast<int>(a.q.size(2));
  const int64_t n_seqs = a.starts.size(0);
  const int32_t* cu = a.cu_seqlens.as<int32_t>();
  const int32_t* positions = a.positions.as<int32_t>();
  check_cu_seqlens("cuSeqlens", a.cu_seqlens, a.q.size(0));
  int64_t n_kv_heads = 0;  // the same in all tables
  for (int64_t s = 0; s < n_seqs; ++s) {
    const auto [table, table_words] = sequence_table(a.tables, a.starts, s);
    if (!table) {
      const int64_t first = cu[s] * n_heads;
      const int64_t rows = (cu[s + 1] - cu[s]) * n_heads;
      std::fill_n(a.out.as<T>() + first * d, rows * d, from_float<T>(0.0f));
      std::fill_n(a.lse.as<float>() + first, rows, -INFINITY);
      continue;
    }
    if (n_kv_heads == 0) n_kv_heads = table[kTableKvHeads];
    ZC_CHECK(n_kv_heads >= 1 && n_heads % n_kv_heads == 0, ErrorCode::kArgument,
             "tables: %lld kv heads, expected a divisor of n_heads, %lld",
             static_cast<long long>(n_kv_heads), static_cast<long long>(n_heads));
    check_table(table, table_words, a.layer, n_kv_heads);
  }
  if (n_kv_heads == 0) return;
  const int group = static_cast<int>(n_heads / n_kv_heads);
  ZC_CHECK(group <= kBlockRows, ErrorCode::kUnsupported,
           "q: %d query heads share a kv head, expected at most %d", group, kBlockRows);
  const int queries_per_block = kBlockRows / group;
  int64_t n_blocks = 0;
  for (int64_t s = 0; s < n_seqs; ++s)
    n_blocks += (cu[s + 1] - cu[s] + queries_per_block - 1) / queries_per_block;

  const auto run_block = [&](int64_t seq, int64_t block, int kv_head) {
    const auto [table, table_words] = sequence_table(a.tables, a.starts, seq);
    if (!table) return;
    const int64_t q_len = cu[seq + 1] - cu[seq];
    const int64_t first_query = block * queries_per_block;
    const int n_queries =
        static_cast<int>(std::min<int64_t>(queries_per_block, q_len - first_query));
    const int rows = n_queries * group;  // row = query * group + head
    const bool fused = rows <= kFusedRows;
    const auto row_index = [&](int r) {
      return (cu[seq] + first_query + r / group) * n_heads + int64_t{kv_head} * group + r % group;
    };
    const size_t row_tile = static_cast<size_t>(kBlockRows) * static_cast<size_t>(d);
    float* q = thread_scratch(0, row_tile);  // scale * q
    float* k_t =
        thread_scratch(1, static_cast<size_t>(kBlockKeys) * d);  // (head_dim, kBlockKeys) codes
    float* v =
        thread_scratch(2, static_cast<size_t>(kBlockKeys) * d);  // (kBlockKeys, head_dim) codes
    float* o = thread_scratch(3, row_tile);                      // finished segments
    float* scores = thread_scratch(4, static_cast<size_t>(kBlockRows) * kBlockKeys);
    float* folded = thread_scratch(5, row_tile);     // q times the segment's K scale
    float* o_segment = thread_scratch(6, row_tile);  // the running segment, in units of g_c
    float beta[kBlockRows];                          // scale * q . K zero
    float t_segment[kBlockRows];                     // sum of p mu
    SoftmaxRows softmax;
    softmax.reset(rows);
    for (int r = 0; r < rows; ++r) {
      widen(a.q.as<T>() + row_index(r) * d, q + int64_t{r} * d, d);
      for (int c = 0; c < d; ++c) q[int64_t{r} * d + c] *= a.scale;
    }
    std::fill(o, o + int64_t{rows} * d, 0.0f);

    const int n_segments = checked_segment_count(table, a.layer, kv_head);
    for (int index = a.tail ? 0 : 1; index < n_segments; ++index) {
      const SegmentView view = view_segment(table, table_words, a.pool, a.layer, kv_head, index, d);
      const int n = view.n_tokens();
      if (n == 0) continue;
      const bool v_quantized = view.v_quantized();
      // What pages leave in the codes of odd units (page-inl.h) goes into what multiplies them.
      const float k_odd_scale = fused ? odd_scale(view.segment.k_format) : 1.0f;
      const float v_odd_scale = fused ? odd_scale(view.segment.v_format) : 1.0f;
      for (int r = 0; r < rows; ++r) {
        const float* from = q + int64_t{r} * d;
        float* to = folded + int64_t{r} * d;
        beta[r] = 0.0f;
        t_segment[r] = 0.0f;
        if (view.k_quantized()) {
          for (int c = 0; c < d; ++c) {
            to[c] = from[c] * to_float(view.channel_params(0)[c]) * (c % 2 ? k_odd_scale : 1.0f);
            beta[r] += from[c] * to_float(view.channel_params(1)[c]);
          }
        } else {
          std::memcpy(to, from, static_cast<size_t>(d) * sizeof(float));
        }
      }
      std::fill(o_segment, o_segment + int64_t{rows} * d, 0.0f);

      // Slots that a row sees: all, but for the causal end of the tail and what a sliding window
      // has left behind.
      int first_slot[kBlockRows];
      int last_slot[kBlockRows];
      int block_first = n;
      int block_last = 0;
      for (int i = 0; i < n_queries; ++i) {
        const int64_t query = first_query + i;
        first_slot[i] = 0;
        last_slot[i] = n;
        if (index == 0 && a.causal)
          last_slot[i] = static_cast<int>(std::max<int64_t>(0, n - (q_len - 1 - query)));
        if (a.sliding_window > 0)
          first_slot[i] =
              view.slots_before(int64_t{positions[cu[seq] + query]} - a.sliding_window + 1);
        block_first = std::min(block_first, first_slot[i]);
        block_last = std::max(block_last, last_slot[i]);
      }

      for (int key0 = block_first / kBlockKeys * kBlockKeys; key0 < block_last;
           key0 += kBlockKeys) {
        const int n_keys = std::min(kBlockKeys, n - key0);
        const int64_t first_page = key0 / kPageTokens;
        const int n_pages = (n_keys + kPageTokens - 1) / kPageTokens;
        for (int r = 0; r < rows; ++r)
          std::fill(scores + int64_t{r} * kBlockKeys, scores + int64_t{r + 1} * kBlockKeys,
                    beta[r]);
        if (fused) {
          dispatch_format(view.segment.k_format, [&](auto format) {
            each_rows(rows, [&](int r, auto n) {
              fused_scores<decltype(format)::value, decltype(n)::value>(
                  view, first_page, n_pages, folded + int64_t{r} * d,
                  scores + int64_t{r} * kBlockKeys);
            });
          });
        } else {
          unpack_block(view, first_page, n_keys, k_t, v);
          tile_multiply(folded, d, k_t, kBlockKeys, scores, kBlockKeys, rows, kBlockKeys, d);
        }
        float sigma[kBlockKeys] = {};
        float mu[kBlockKeys] = {};
        for (int page = 0; v_quantized && page < n_pages; ++page) {
          widen(view.token_scale(first_page + page), sigma + page * kPageTokens, kPageTokens);
          widen(view.token_zero(first_page + page), mu + page * kPageTokens, kPageTokens);
        }
        for (int j = 1; v_odd_scale != 1.0f && j < kBlockKeys; j += 2) sigma[j] *= v_odd_scale;
        for (int r = 0; r < rows; ++r) {
          float* p = scores + int64_t{r} * kBlockKeys;
          const int first = std::clamp(first_slot[r / group] - key0, 0, kBlockKeys);
          const int last = std::clamp(last_slot[r / group] - key0, first, kBlockKeys);
          const float correction = softmax.update(r, p, first, last);
          scale_row(o + int64_t{r} * d, correction, d);
          scale_row(o_segment + int64_t{r} * d, correction, d);
          if (v_quantized) {
            VecF t{};
            for (int j = 0; j < kBlockKeys; j += kLanes) {
              t = fma(load(p + j), load(mu + j), t);
              store(p + j, load(p + j) * load(sigma + j));
            }
            t_segment[r] = t_segment[r] * correction + sum(t);
          }
        }
        if (fused) {
          dispatch_format(view.segment.v_format, [&](auto format) {
            each_rows(rows, [&](int r, auto n) {
              fused_weigh<decltype(format)::value, decltype(n)::value>(
                  view, first_page, n_keys, scores + int64_t{r} * kBlockKeys,
                  o_segment + int64_t{r} * d);
            });
          });
        } else {
          tile_multiply(scores, kBlockKeys, v, d, o_segment, d, rows, d, kBlockKeys);
        }
      }
      for (int r = 0; r < rows; ++r) {
        const float* from = o_segment + int64_t{r} * d;
        float* to = o + int64_t{r} * d;
        for (int c = 0; c < d; ++c)
          to[c] += v_quantized ? to_float(view.channel_params(2)[c]) * (from[c] + t_segment[r])
                               : from[c];
      }
    }
    for (int r = 0; r < rows; ++r) {
      float* row = o + int64_t{r} * d;
      scale_row(row, softmax.sum[r] == 0.0f ? 0.0f : 1.0f / softmax.sum[r], d);
      narrow(row, a.out.as<T>() + row_index(r) * d, d);
      a.lse.as<float>()[row_index(r)] = softmax.lse(r);
    }
  };

  ctx.threads->parallel_for(n_blocks * n_kv_heads, [&](int64_t task) {
    int64_t block = task / n_kv_heads;
    int64_t seq = 0;
    for (;; ++seq) {
      const int64_t n = (cu[seq + 1] - cu[seq] + queries_per_block - 1) / queries_per_block;
      if (block < n) break;
      block -= n;
    }
    run_block(seq, block, static_cast<int>(task % n_kv_heads));
  });
}

void mixed_attention(const OpContext& ctx, const MixedAttentionArgs& a) {
  dispatch_float(a.q.dtype,
                 [&](auto type) { mixed_attention_typed<typename decltype(type)::type>(ctx, a); });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
