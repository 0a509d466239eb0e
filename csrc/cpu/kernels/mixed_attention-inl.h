namespace zc::cpu {
namespace ZC_ISA {

// Keys between two updates of the running softmax, and keys whose weights are rounded to integers
// together, to multiples of 2^-15 of the largest: even if all but one lie just below half of that,
// rounding loses less than 2^-10 of it. Blocks begin at multiples of these slots whatever a row
// sees, so that its sums are the same whichever rows are computed with it.
inline constexpr int kSoftmaxKeys = 256;
inline constexpr int kWeightKeys = 64;

// Below this a row's largest factor is as good as none (and its inverse would overflow).
inline constexpr float kTinyFactor = 1e-30f;

// Pages lie anywhere in the pool, and no hardware follows a page table: the first lines of a part
// (K or V) are asked for kAheadBytes before it is read, and the rest of it is a stream that
// hardware sees. Asking for every line made float16 a third slower, asking for none u4 by as much.
inline constexpr int64_t kAheadBytes = 4096;
inline constexpr int64_t kPrefetchBytes = 256;

// Prefetches the parts of n_pages pages, kAheadBytes beyond first_page. Always inlined: GCC takes a
// function that only prefetches for one without effect, and drops the calls.
template <Format F, typename Part>
__attribute__((always_inline)) inline void prefetch_parts(const SegmentView& view,
                                                          int64_t first_page, int n_pages,
                                                          const Part& part) {
  const int64_t bytes = part_bytes(F, view.head_dim);
  const int64_t first = first_page + std::max<int64_t>(1, kAheadBytes / bytes);
  const int64_t end = std::min<int64_t>(first + n_pages, view.n_pages());
  for (int64_t page = first; page < end; ++page)
    for (int64_t at = 0; at < std::min(bytes, kPrefetchBytes); at += 64)
      __builtin_prefetch(part(page) + at);
}

// Squares that R rows are multiplied with at once: their sums have to fit the registers, and should
// be enough chains to hide the latency of FMA.
template <Format F, int R>
inline constexpr int kSquaresTogether = std::max(1, (is_quantized(F) ? 4 : 8) / (R * kSquareVecs));

// Calls f(first row, std::integral_constant<int, R>) for 4, 2 or 1 rows at a time.
template <typename F>
inline void each_rows(int rows, const F& f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) f(r, std::integral_constant<int, 4>{});
  for (; r + 2 <= rows; r += 2) f(r, std::integral_constant<int, 2>{});
  if (r < rows) f(r, std::integral_constant<int, 1>{});
}

// What a segment makes of the query rows: factors of its codes, q_c a_c (a: K's channel scale) in
// multiples of `step`, and `beta`, what no code takes part in.
struct KeyFactors {
  const float* floats;      // (rows, head_dim): q itself, when K is not quantized
  const int16_t* integers;  // (rows, head_dim)
  float step[kBlockRows];
  float beta[kBlockRows];
};

// The middle of the codes: what rounding leaves of their factors is not lost, but multiplied by it.
inline float middle_code(Format f) { return 0.5f * static_cast<float>((1 << format_bits(f)) - 1); }

inline KeyFactors fold_keys(const SegmentView& view, const float* q, int rows) {
  KeyFactors keys{};
  keys.floats = q;
  if (!view.k_quantized()) return keys;
  const int d = view.head_dim;
  float channel_scale[256];
  float channel_zero[256];
  widen(view.channel_params(0), channel_scale, d);
  widen(view.channel_params(1), channel_zero, d);
  int16_t* integers = reinterpret_cast<int16_t*>(
      thread_scratch(5, static_cast<size_t>(kBlockRows) * static_cast<size_t>(d) / 2));
  keys.integers = integers;
  for (int r = 0; r < rows; ++r) {
    float folded[256];
    VecF beta{};
    for (int c = 0; c < d; c += kLanes) {
      const VecF x = load(q + int64_t{r} * d + c);
      store(folded + c, x * load(channel_scale + c));
      beta = fma(x, load(channel_zero + c), beta);
    }
    keys.beta[r] = sum(beta);
    const float largest = max_abs(folded, d);
    if (largest <= kTinyFactor) {
      std::memset(integers + int64_t{r} * d, 0, static_cast<size_t>(d) * sizeof(int16_t));
      continue;
    }
    keys.step[r] = largest / kMaxFactor;
    keys.beta[r] += middle_code(view.segment.k_format) *
                    round_to_factors(folded, d, keys.step[r], integers + int64_t{r} * d);
  }
  return keys;
}

template <Format F>
inline const Factor<F>* factors_of(const KeyFactors& keys) {
  if constexpr (is_quantized(F))
    return keys.integers;
  else
    return keys.floats;
}

// scores (R, kSoftmaxKeys) = q K^T of rows r0 .. r0 + R - 1 over P pages.
template <Format F, int R, int P>
inline void score_pages(const SegmentView& view, int64_t first_page, const KeyFactors& keys, int r0,
                        float* scores) {
  const int d = view.head_dim;
  const Factor<F>* factors = factors_of<F>(keys) + int64_t{r0} * d;
  Sums<F> sums[P][R][kSquareVecs];
  clear(sums);
  const uint8_t* squares[P];
  for (int p = 0; p < P; ++p) squares[p] = view.k_part(first_page + p);
  for (int c = 0; c < d; c += kPageTokens) {
    add_squares<F, R, P>(squares, factors + c, d, sums);
    for (int p = 0; p < P; ++p) squares[p] += square_bytes(F);
  }
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) {
        float* to = scores + r * kSoftmaxKeys + p * kPageTokens + i * kLanes;
        if constexpr (is_quantized(F))
          store(to, fma(__builtin_convertvector(sums[p][r][i], VecF), broadcast(keys.step[r0 + r]),
                        broadcast(keys.beta[r0 + r])));
        else
          store(to, sums[p][r][i]);
      }
}

template <Format F, int R>
inline void score_rows(const SegmentView& view, int64_t first_page, int n_pages,
                       const KeyFactors& keys, int r0, float* scores) {
  constexpr int kTogether = kSquaresTogether<F, R>;
  for (int page = 0; page < n_pages;) {
    prefetch_parts<F>(view, first_page + page, kTogether,
                      [&](int64_t next) { return view.k_part(next); });
    float* to = scores + page * kPageTokens;
    if (page + kTogether <= n_pages) {
      score_pages<F, R, kTogether>(view, first_page + page, keys, r0, to);
      page += kTogether;
    } else {
      score_pages<F, R, 1>(view, first_page + page, keys, r0, to);
      ++page;
    }
  }
}

// The running softmax of a row (FlashAttention-2, arXiv 2307.08691, Alg. 1; natural log).
struct SoftmaxRow {
  float max = -INFINITY;
  float sum = 0.0f;

  float lse() const { return sum == 0.0f ? -INFINITY : max + std::log(sum); }

  // Turns scores (n, a multiple of kPageTokens) into exp(score - max), zero outside [first, last),
  // and adds them to the sum. Returns the factor by which what was accumulated before must be
  // multiplied.
  float update(float* scores, int n, int first, int last) {
    for (int j = 0; j < first; ++j) scores[j] = -INFINITY;
    for (int j = last; j < n; ++j) scores[j] = -INFINITY;
    VecF best[2] = {broadcast(-INFINITY), broadcast(-INFINITY)};
    for (int j = 0; j < n; j += kPageTokens)
      for (int i = 0; i < kSquareVecs; ++i)
        best[i % 2] = vmax(load(scores + j + i * kLanes), best[i % 2]);
    best[0] = vmax(best[0], best[1]);
    float block_max = -INFINITY;
    for (int i = 0; i < kLanes; ++i) block_max = best[0][i] > block_max ? best[0][i] : block_max;
    if (block_max == -INFINITY) {  // nothing visible, or nothing but -inf and NaN
      for (int j = first; j < last; ++j)
        if (scores[j] != scores[j]) sum = NAN;
      std::fill(scores, scores + n, 0.0f);
      return 1.0f;
    }
    const float new_max = block_max > max ? block_max : max;
    const float correction = max == -INFINITY ? 0.0f : std::exp(max - new_max);
    VecF total{};
    for (int j = 0; j < n; j += kLanes) {
      const VecF p = exp(load(scores + j) - broadcast(new_max));
      store(scores + j, p);
      total += p;
    }
    sum = sum * correction + ZC_ISA::sum(total);
    max = new_max;
    return correction;
  }
};

// The weights of V's codes, p_j sigma_j (sigma: V's token scale), in multiples of a step for every
// kWeightKeys tokens: weights (n) and steps (n / kWeightKeys) of one row from p (n), which is
// overwritten. Returns what no code takes part in, sum_j p_j mu_j (mu: V's token zero), and what
// rounding left.
inline float fold_weights(const SegmentView& view, int64_t first_page, float* p, int n,
                          int16_t* weights, float* steps) {
  VecF rest{};
  float rounding = 0.0f;
  for (int j0 = 0; j0 < n; j0 += kWeightKeys) {
    const int j1 = std::min(n, j0 + kWeightKeys);
    VecF best{};
    for (int j = j0; j < j1; j += kPageTokens) {
      const f16* sigma = view.token_scale(first_page + j / kPageTokens);
      const f16* mu = view.token_zero(first_page + j / kPageTokens);
      for (int i = 0; i < kPageTokens; i += kLanes) {
        const VecF x = load(p + j + i);
        const VecF w = x * load(sigma + i);
        rest = fma(x, load(mu + i), rest);
        best = vmax(w, best);
        store(p + j + i, w);
      }
    }
    float largest = 0.0f;
    for (int i = 0; i < kLanes; ++i) largest = best[i] > largest ? best[i] : largest;
    float& step = steps[j0 / kWeightKeys];
    if (largest <= kTinyFactor) {
      step = 0.0f;
      std::memset(weights + j0, 0, static_cast<size_t>(j1 - j0) * sizeof(int16_t));
      continue;
    }
    step = largest / kMaxFactor;
    rounding += round_to_factors(p + j0, j1 - j0, step, weights + j0);
  }
  return sum(rest) + middle_code(view.segment.v_format) * rounding;
}

// o (R, head_dim) += weights (R, kSoftmaxKeys) V over at most kWeightKeys tokens, C squares of
// channels at a time.
template <Format F, int R, int C>
inline void weigh_codes(const SegmentView& view, int64_t first_page, int n_pages, int c0,
                        const int16_t* weights, const float* steps, float* o) {
  VecI sums[C][R][kSquareVecs];
  clear(sums);
  for (int page = 0; page < n_pages; ++page) {
    const uint8_t* squares[C];
    for (int s = 0; s < C; ++s) squares[s] = view.v_square(first_page + page, c0 + s * kPageTokens);
    add_squares<F, R, C>(squares, weights + page * kPageTokens, kSoftmaxKeys, sums);
  }
  for (int s = 0; s < C; ++s)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) {
        float* to = o + int64_t{r} * view.head_dim + c0 + s * kPageTokens + i * kLanes;
        const float step = steps[r * (kSoftmaxKeys / kWeightKeys)];
        store(to, fma(__builtin_convertvector(sums[s][r][i], VecF), broadcast(step), load(to)));
      }
}

// The same with float values, tokens [first, last) of the pages.
template <Format F, int R, int C>
inline void weigh_floats(const SegmentView& view, int64_t first_page, int first, int last, int c0,
                         const float* p, float* o) {
  const auto place = [&](int s, int r, int i) {
    return o + int64_t{r} * view.head_dim + c0 + s * kPageTokens + i * kLanes;
  };
  VecF sums[C][R][kSquareVecs];
  for (int s = 0; s < C; ++s)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) sums[s][r][i] = load(place(s, r, i));
  for (int j = first / kPageTokens * kPageTokens; j < last; j += kPageTokens) {
    const uint8_t* squares[C];
    for (int s = 0; s < C; ++s)
      squares[s] = view.v_square(first_page + j / kPageTokens, c0 + s * kPageTokens);
    add_squares<F, R, C>(squares, p + j, kSoftmaxKeys, sums, std::max(first - j, 0),
                         std::min(last - j, kPageTokens));
  }
  for (int s = 0; s < C; ++s)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) store(place(s, r, i), sums[s][r][i]);
}

// Calls f(first channel, std::integral_constant<int, C>) for all squares of channels.
template <Format F, int R, typename Body>
inline void each_squares(int head_dim, const Body& body) {
  constexpr int kTogether = kSquaresTogether<F, R>;
  int c = 0;
  for (; c + kTogether * kPageTokens <= head_dim; c += kTogether * kPageTokens)
    body(c, std::integral_constant<int, kTogether>{});
  for (; c < head_dim; c += kPageTokens) body(c, std::integral_constant<int, 1>{});
}

// The tokens of a block of keys that a row sees.
struct KeySpan {
  int first;
  int last;  // exclusive
};

// o (R, head_dim) += p (R, kSoftmaxKeys) V, float values. A row takes none but tokens that it sees:
// those that it does not see may be NaN.
template <Format F, int R>
inline void weigh_rows(const SegmentView& view, int64_t first_page, const KeySpan* seen,
                       const float* p, float* o) {
  const int d = view.head_dim;
  KeySpan common = seen[0];
  for (int r = 1; r < R; ++r)
    common = {std::max(common.first, seen[r].first), std::min(common.last, seen[r].last)};
  if (common.last < common.first) common.last = common.first;
  const auto alone = [&](int r, int first, int last) {
    if (first >= last) return;
    each_squares<F, 1>(d, [&](int c, auto n) {
      weigh_floats<F, 1, decltype(n)::value>(view, first_page, first, last, c, p + r * kSoftmaxKeys,
                                             o + int64_t{r} * d);
    });
  };
  for (int r = 0; r < R; ++r) alone(r, seen[r].first, std::min(common.first, seen[r].last));
  for (int first = common.first; first < common.last;) {  // in steps that prefetching likes
    const int last = std::min(common.last, (first / kWeightKeys + 1) * kWeightKeys);
    const int pages = (last - first + kPageTokens - 1) / kPageTokens;
    prefetch_parts<F>(view, first_page + first / kPageTokens, pages,
                      [&](int64_t next) { return view.v_part(next); });
    each_squares<F, R>(d, [&](int c, auto n) {
      weigh_floats<F, R, decltype(n)::value>(view, first_page, first, last, c, p, o);
    });
    first = last;
  }
  for (int r = 0; r < R; ++r) alone(r, std::max(common.last, seen[r].first), seen[r].last);
}

// o (R, head_dim) and t (R) += what R rows take from a block of keys with the weights p (R,
// kSoftmaxKeys), which are overwritten.
template <int R>
inline void add_values(const SegmentView& view, int64_t first_page, int n_pages,
                       const KeySpan* seen, float* p, float* o, float* t) {
  const int d = view.head_dim;
  alignas(64) int16_t weights[R * kSoftmaxKeys];
  constexpr int kSteps = kSoftmaxKeys / kWeightKeys;
  float steps[R * kSteps];
  if (view.v_quantized())
    for (int r = 0; r < R; ++r)
      t[r] += fold_weights(view, first_page, p + r * kSoftmaxKeys, n_pages * kPageTokens,
                           weights + r * kSoftmaxKeys, steps + r * kSteps);
  dispatch_format(view.segment.v_format, [&](auto format) {
    constexpr Format F = decltype(format)::value;
    if constexpr (is_quantized(F)) {
      constexpr int kPages = kWeightKeys / kPageTokens;
      for (int page = 0; page < n_pages; page += kPages) {
        const int together = std::min(kPages, n_pages - page);
        prefetch_parts<F>(view, first_page + page, together,
                          [&](int64_t next) { return view.v_part(next); });
        each_squares<F, R>(d, [&](int c, auto n) {
          weigh_codes<F, R, decltype(n)::value>(view, first_page + page, together, c,
                                                weights + page * kPageTokens, steps + page / kPages,
                                                o);
        });
      }
    } else {
      weigh_rows<F, R>(view, first_page, seen, p, o);
    }
  });
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
    const auto row_index = [&](int r) {
      return (cu[seq] + first_query + r / group) * n_heads + int64_t{kv_head} * group + r % group;
    };
    const size_t row_tile = static_cast<size_t>(kBlockRows) * static_cast<size_t>(d);
    float* q = thread_scratch(0, row_tile);          // scale * q
    float* o = thread_scratch(1, row_tile);          // finished segments
    float* o_segment = thread_scratch(2, row_tile);  // the running segment, in units of g_c
    float t_segment[kBlockRows];                     // what joins all channels of o_segment
    SoftmaxRow softmax[kBlockRows];
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

      // Slots that a row sees: all, but for the causal end of the tail and what a sliding window
      // has left behind.
      KeySpan visible[kBlockRows];  // by query
      KeySpan block{n, 0};
      for (int i = 0; i < n_queries; ++i) {
        const int64_t query = first_query + i;
        visible[i] = {0, n};
        if (index == 0 && a.causal)
          visible[i].last = static_cast<int>(std::max<int64_t>(0, n - (q_len - 1 - query)));
        if (a.sliding_window > 0)
          visible[i].first =
              view.slots_before(int64_t{positions[cu[seq] + query]} - a.sliding_window + 1);
        block.first = std::min(block.first, visible[i].first);
        block.last = std::max(block.last, visible[i].last);
      }
      if (block.first >= block.last) continue;

      const KeyFactors keys = fold_keys(view, q, rows);
      std::fill(o_segment, o_segment + int64_t{rows} * d, 0.0f);
      std::fill(t_segment, t_segment + rows, 0.0f);
      for (int key0 = block.first / kSoftmaxKeys * kSoftmaxKeys; key0 < block.last;
           key0 += kSoftmaxKeys) {
        const int64_t first_page = key0 / kPageTokens;
        const int n_pages = static_cast<int>(
            std::min<int64_t>(kSoftmaxKeys / kPageTokens, view.n_pages() - first_page));
        each_rows(rows, [&](int r0, auto n_rows) {
          constexpr int R = decltype(n_rows)::value;
          alignas(64) float scores[R * kSoftmaxKeys];
          KeySpan seen[R];
          for (int r = 0; r < R; ++r) {
            const KeySpan all = visible[(r0 + r) / group];
            seen[r].first = std::clamp(all.first - key0, 0, kSoftmaxKeys);
            seen[r].last = std::clamp(all.last - key0, seen[r].first, kSoftmaxKeys);
          }
          dispatch_format(view.segment.k_format, [&](auto format) {
            score_rows<decltype(format)::value, R>(view, first_page, n_pages, keys, r0, scores);
          });
          for (int r = 0; r < R; ++r) {
            const int64_t row = int64_t{r0 + r} * d;
            const float correction = softmax[r0 + r].update(
                scores + r * kSoftmaxKeys, n_pages * kPageTokens, seen[r].first, seen[r].last);
            scale_row(o + row, correction, d);
            scale_row(o_segment + row, correction, d);
            t_segment[r0 + r] *= correction;
          }
          add_values<R>(view, first_page, n_pages, seen, scores, o_segment + int64_t{r0} * d,
                        t_segment + r0);
        });
      }
      float channel[256];
      if (view.v_quantized()) widen(view.channel_params(2), channel, d);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < d; c += kLanes) {
          float* to = o + int64_t{r} * d + c;
          const VecF sums = load(o_segment + int64_t{r} * d + c);
          if (view.v_quantized())
            store(to, fma(load(channel + c), sums + broadcast(t_segment[r]), load(to)));
          else
            store(to, load(to) + sums);
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      float* row = o + int64_t{r} * d;
      scale_row(row, softmax[r].sum == 0.0f ? 0.0f : 1.0f / softmax[r].sum, d);
      narrow(row, a.out.as<T>() + row_index(r) * d, d);
      a.lse.as<float>()[row_index(r)] = softmax[r].lse();
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
