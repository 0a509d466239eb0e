namespace zc::cpu {
namespace ZC_ISA {

// Keys between two updates of the running softmax, and keys whose weights are rounded to integers
// together, to multiples of 2^-15 of the largest: even if all but one lie just below half of that,
// rounding loses less than 2^-10 of it. Blocks begin at multiples of these slots whatever a row
// sees, so that its sums are the same whichever rows are computed with it.
inline constexpr int kSoftmaxKeys = 256;
inline constexpr int kWeightKeys = 64;
inline constexpr int kBlockPages = kSoftmaxKeys / kPageTokens;

// Below this a row's largest factor is as good as none (and its inverse would overflow).
inline constexpr float kTinyFactor = 1e-30f;

// Pages lie anywhere in the pool, and no hardware follows a page table: while a page is multiplied,
// the one that lies so many bytes of K or of V behind it is asked for, square by square. All lines
// at once would fill the buffers of the misses, and the loop would wait. Of floats the first lines
// are enough: the rest of a part is a stream that hardware sees, and is slower where it is asked
// for.
inline constexpr int64_t kAheadBytes = 8192;
inline constexpr int64_t kFloatAheadBytes = 4096;
inline constexpr int64_t kFirstBytes = 256;

// The pages of a segment that a block of keys lies in.
struct KeyBlock {
  const SegmentView& view;
  int64_t first_page;
  int n_pages;
  const uint8_t* ahead[kBlockPages];  // to ask for while a page is read

  // behind: the segment behind the next, if that is stored alike, or null. The two classes of a
  // window take turns, and windows are shorter than what is to be asked for ahead.
  KeyBlock(const SegmentView& segment, const SegmentView* behind, int64_t key0)
      : view(segment), first_page(key0 / kPageTokens) {
    const int64_t own_pages = view.n_pages();
    n_pages = static_cast<int>(std::min<int64_t>(kBlockPages, own_pages - first_page));
    const int64_t bytes = view.k_quantized() ? kAheadBytes : kFloatAheadBytes;
    const int64_t distance =
        std::max<int64_t>(1, bytes / part_bytes(view.segment.k_format, view.head_dim));
    const int64_t beyond = std::max<int64_t>(0, own_pages - distance);  // these have it in `behind`
    for (int p = 0; p < n_pages; ++p) {
      const int64_t page = first_page + p;
      if (page < beyond || !behind)
        ahead[p] = view.page(std::min(page + distance, own_pages - 1));
      else
        ahead[p] = behind->page(std::min<int64_t>(page - beyond, behind->n_pages() - 1));
    }
  }

  const uint8_t* k_square(int page, int c) const { return view.k_square(first_page + page, c); }
  const uint8_t* v_square(int page, int c) const { return view.v_square(first_page + page, c); }
};

// Asks for what is to be of the square of channels from c on of a part. Always inlined: GCC takes a
// function that only prefetches for one without effect, and drops the calls.
template <Format F>
__attribute__((always_inline)) inline void prefetch_square(const uint8_t* part, int c) {
  if constexpr (is_quantized(F)) {
    const uint8_t* square = part + c / kPageTokens * square_bytes(F);
    for (int64_t at = 0; at < square_bytes(F); at += 64) __builtin_prefetch(square + at);
  } else if (c == 0) {
    for (int64_t at = 0; at < kFirstBytes; at += 64) __builtin_prefetch(part + at);
  }
}

// Asks for the channel parameters of a segment.
__attribute__((always_inline)) inline void prefetch_params(const SegmentView& view) {
  if (!view.k_quantized() && !view.v_quantized()) return;
  const auto* params = reinterpret_cast<const uint8_t*>(view.channel_params(0));
  for (int64_t at = 0; at < params_bytes(view.head_dim); at += 64) __builtin_prefetch(params + at);
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
  const int16_t* integers;  // (rows, head_dim), null when it is not
  float step[kBlockRows];
  float beta[kBlockRows];
};

// The middle of the codes: what rounding leaves of their factors is not lost, but multiplied by it.
inline float middle_code(Format f) { return 0.5f * static_cast<float>((1 << format_bits(f)) - 1); }

inline KeyFactors fold_keys(const SegmentView& view, const float* q, int rows) {
  KeyFactors keys;
  keys.floats = q;
  keys.integers = nullptr;
  if (!view.k_quantized()) return keys;
  const int d = view.head_dim;
  float channel_scale[kMaxHeadDim];
  float channel_zero[kMaxHeadDim];
  widen(view.channel_params(0), channel_scale, d);
  widen(view.channel_params(1), channel_zero, d);
  int16_t* integers = reinterpret_cast<int16_t*>(
      thread_scratch(5, static_cast<size_t>(kBlockRows) * static_cast<size_t>(d) / 2));
  keys.integers = integers;
  for (int r = 0; r < rows; ++r) {
    float folded[kMaxHeadDim];
    VecF beta{};
    VecF best{};
    VecF poison{};  // NaN where a factor is not finite
    for (int c = 0; c < d; c += kLanes) {
      const VecF x = load(q + int64_t{r} * d + c);
      const VecF factor = x * load(channel_scale + c);
      store(folded + c, factor);
      beta = fma(x, load(channel_zero + c), beta);
      best = vmax(vmax(factor, -factor), best);
      poison += factor * broadcast(0.0f);
    }
    keys.beta[r] = sum(beta);
    const float largest = max_lane(best) + sum(poison);
    if (largest <= kTinyFactor) {
      keys.step[r] = 0.0f;
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
ZC_NOINLINE void score_pages(const KeyBlock& block, int page, const KeyFactors& keys, int r0,
                             float* scores) {
  const int d = block.view.head_dim;
  const Factor<F>* factors = factors_of<F>(keys) + int64_t{r0} * d;
  const uint8_t* squares[P];
  for (int p = 0; p < P; ++p) squares[p] = block.k_square(page + p, 0);
  const uint8_t* const* ahead = block.ahead + page;
  if (block.view.v_quantized())
    for (int p = 0; p < P; ++p) __builtin_prefetch(ahead[p] + block.view.params_offset);
  for (int c0 = 0; c0 < d; c0 += kSumTerms<F>) {
    Sums<F> sums[P][R][kSquareVecs];
    clear(sums);
    for (int c = c0; c < std::min(d, c0 + kSumTerms<F>); c += kPageTokens) {
      for (int p = 0; p < P; ++p) prefetch_square<F>(ahead[p], c);
      add_squares<F, R, P>(squares, factors + c, d, sums);
      for (int p = 0; p < P; ++p) squares[p] += square_bytes(F);
    }
    for (int p = 0; p < P; ++p)
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < kSquareVecs; ++i) {
          float* to = scores + r * kSoftmaxKeys + p * kPageTokens + i * kWideLanes;
          if constexpr (is_quantized(F))
            store(to, fma(__builtin_convertvector(sums[p][r][i], WideF),
                          broadcast_wide(keys.step[r0 + r]),
                          c0 == 0 ? broadcast_wide(keys.beta[r0 + r]) : load_wide(to)));
          else
            store(to, sums[p][r][i]);
        }
  }
}

template <Format F, int R>
inline void score_rows(const KeyBlock& block, const KeyFactors& keys, int r0, float* scores) {
  constexpr int kTogether = kSquaresTogether<F, R>;
  for (int page = 0; page < block.n_pages;) {
    float* to = scores + page * kPageTokens;
    if (page + kTogether <= block.n_pages) {
      score_pages<F, R, kTogether>(block, page, keys, r0, to);
      page += kTogether;
    } else {
      score_pages<F, R, 1>(block, page, keys, r0, to);
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
    for (int j = 0; j < n; j += 2 * kLanes)
      for (int i = 0; i < 2; ++i) best[i] = vmax(load(scores + j + i * kLanes), best[i]);
    best[0] = vmax(best[0], best[1]);
    const float block_max = max_lane(best[0]);
    if (block_max == -INFINITY) {  // nothing visible, or nothing but -inf and NaN
      for (int j = first; j < last; ++j)
        if (scores[j] != scores[j]) sum = NAN;
      std::fill(scores, scores + n, 0.0f);
      return 1.0f;
    }
    const float new_max = block_max > max ? block_max : max;
    const float correction =
        max == new_max ? 1.0f : (max == -INFINITY ? 0.0f : std::exp(max - new_max));
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

  // Joins a row over other keys. What was accumulated on either side must be multiplied by its
  // factor.
  struct Factors {
    float mine;
    float others;
  };
  Factors join(const SoftmaxRow& other) {
    const float new_max = other.max > max ? other.max : max;
    const auto factor = [&](float m) { return m == -INFINITY ? 0.0f : std::exp(m - new_max); };
    const Factors factors{factor(max), factor(other.max)};
    sum = sum * factors.mine + other.sum * factors.others;
    max = new_max;
    return factors;
  }
};

// The weights of V's codes, p_j sigma_j (sigma: V's token scale), in multiples of a step for every
// kWeightKeys tokens: weights (n) and steps (n / kWeightKeys) of one row from p (n), which is
// overwritten. Returns what no code takes part in, sum_j p_j mu_j (mu: V's token zero), and what
// rounding left.
inline float fold_weights(const KeyBlock& block, float* p, int16_t* weights, float* steps) {
  const SegmentView& view = block.view;
  const int n = block.n_pages * kPageTokens;
  VecF rest{};
  float rounding = 0.0f;
  for (int j0 = 0; j0 < n; j0 += kWeightKeys) {
    const int j1 = std::min(n, j0 + kWeightKeys);
    VecF best{};
    for (int j = j0; j < j1; j += kPageTokens) {
      const f16* sigma = view.token_scale(block.first_page + j / kPageTokens);
      const f16* mu = view.token_zero(block.first_page + j / kPageTokens);
      for (int i = 0; i < kPageTokens; i += kLanes) {
        const VecF x = load(p + j + i);
        const VecF w = x * load(sigma + i);
        rest = fma(x, load(mu + i), rest);
        best = vmax(w, best);
        store(p + j + i, w);
      }
    }
    const float largest = max_lane(best);
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
ZC_NOINLINE void weigh_codes(const KeyBlock& block, int first, int n_pages, int c0,
                             const int16_t* weights, const float* steps, float* o) {
  const int d = block.view.head_dim;
  WideI sums[C][R][kSquareVecs];
  clear(sums);
  for (int page = 0; page < n_pages; ++page) {
    const uint8_t* ahead = block.ahead[first + page] + block.view.v_offset;
    const uint8_t* squares[C];
    for (int s = 0; s < C; ++s) {
      squares[s] = block.v_square(first + page, c0 + s * kPageTokens);
      prefetch_square<F>(ahead, c0 + s * kPageTokens);
    }
    add_squares<F, R, C>(squares, weights + page * kPageTokens, kSoftmaxKeys, sums);
  }
  for (int s = 0; s < C; ++s)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) {
        float* to = o + int64_t{r} * d + c0 + s * kPageTokens + i * kWideLanes;
        const float step = steps[r * (kSoftmaxKeys / kWeightKeys)];
        store(to, fma(__builtin_convertvector(sums[s][r][i], WideF), broadcast_wide(step),
                      load_wide(to)));
      }
}

// The same with float values, tokens [first, last) of the pages.
template <Format F, int R, int C>
ZC_NOINLINE void weigh_floats(const KeyBlock& block, int first, int last, int c0, const float* p,
                              float* o) {
  const int d = block.view.head_dim;
  const auto place = [&](int s, int r, int i) {
    return o + int64_t{r} * d + c0 + s * kPageTokens + i * kWideLanes;
  };
  WideF sums[C][R][kSquareVecs];
  for (int s = 0; s < C; ++s)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSquareVecs; ++i) sums[s][r][i] = load_wide(place(s, r, i));
  for (int j = first / kPageTokens * kPageTokens; j < last; j += kPageTokens) {
    const int page = j / kPageTokens;
    const uint8_t* ahead = block.ahead[page] + block.view.v_offset;
    const uint8_t* squares[C];
    for (int s = 0; s < C; ++s) {
      squares[s] = block.v_square(page, c0 + s * kPageTokens);
      prefetch_square<F>(ahead, c0 + s * kPageTokens);
    }
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
inline void weigh_rows(const KeyBlock& block, const KeySpan* seen, const float* p, float* o) {
  const int d = block.view.head_dim;
  KeySpan common = seen[0];
  for (int r = 1; r < R; ++r)
    common = {std::max(common.first, seen[r].first), std::min(common.last, seen[r].last)};
  if (common.last < common.first) common.last = common.first;
  const auto alone = [&](int r, int first, int last) {
    if (first >= last) return;
    each_squares<F, 1>(d, [&](int c, auto n) {
      weigh_floats<F, 1, decltype(n)::value>(block, first, last, c, p + r * kSoftmaxKeys,
                                             o + int64_t{r} * d);
    });
  };
  for (int r = 0; r < R; ++r) alone(r, seen[r].first, std::min(common.first, seen[r].last));
  for (int first = common.first;
       first < common.last;) {  // in steps that stay in L1 for all channels
    const int last = std::min(common.last, (first / kWeightKeys + 1) * kWeightKeys);
    each_squares<F, R>(d, [&](int c, auto n) {
      weigh_floats<F, R, decltype(n)::value>(block, first, last, c, p, o);
    });
    first = last;
  }
  for (int r = 0; r < R; ++r) alone(r, std::max(common.last, seen[r].first), seen[r].last);
}

// o (R, head_dim) and t (R) += what R rows take from a block of keys with the weights p (R,
// kSoftmaxKeys), which are overwritten.
template <int R>
inline void add_values(const KeyBlock& block, const KeySpan* seen, float* p, float* o, float* t) {
  const SegmentView& view = block.view;
  const int d = view.head_dim;
  alignas(64) int16_t weights[R * kSoftmaxKeys];
  constexpr int kSteps = kSoftmaxKeys / kWeightKeys;
  float steps[R * kSteps];
  if (view.v_quantized())
    for (int r = 0; r < R; ++r)
      t[r] +=
          fold_weights(block, p + r * kSoftmaxKeys, weights + r * kSoftmaxKeys, steps + r * kSteps);
  dispatch_format(view.segment.v_format, [&](auto format) {
    constexpr Format F = decltype(format)::value;
    if constexpr (is_quantized(F)) {
      constexpr int kPages = kWeightKeys / kPageTokens;
      for (int page = 0; page < block.n_pages; page += kPages) {
        const int together = std::min(kPages, block.n_pages - page);
        each_squares<F, R>(d, [&](int c, auto n) {
          weigh_codes<F, R, decltype(n)::value>(
              block, page, together, c, weights + page * kPageTokens, steps + page / kPages, o);
        });
      }
    } else {
      weigh_rows<F, R>(block, seen, p, o);
    }
  });
}

// Keys that one thread takes in a row, in blocks of kSoftmaxKeys: a long cache has work for more
// threads than it has heads. Where a cache is cut depends on its segments alone, and what was made
// of the pieces is joined in their order: the same bits from one thread as from many. The tail is a
// piece, or pieces, of its own: how long it is moves no other cut.
inline constexpr int kSplitBlocks = 16;

// With as many tasks for each thread none stays idle for long, and splits need no planning.
inline constexpr int kTasksAThread = 8;

// A block of keys of a KV head's segments.
struct KeyPlace {
  int segment;
  int block;
};

struct Split {
  KeyPlace first;
  KeyPlace last;  // exclusive
};

// Query rows of one KV head that are computed together.
struct QueryRows {
  const int32_t* table;
  int64_t table_words;
  int64_t first_row;    // of the sequence, in q
  int64_t q_len;        // of the sequence
  int64_t first_query;  // of these, within the sequence
  int n_queries;
  int kv_head;
  int group;

  int n() const { return n_queries * group; }  // row = query * group + head
  int64_t index(int r, int64_t n_heads) const {
    return (first_row + first_query + r / group) * n_heads + int64_t{kv_head} * group + r % group;
  }
};

// Calls f(split) for the splits of a KV head, in order.
template <typename F>
inline void each_split(const MixedAttentionArgs& a, const QueryRows& rows, const F& f) {
  const int n_segments = checked_segment_count(rows.table, a.layer, rows.kv_head);
  const int d = static_cast<int>(a.q.size(2));
  Split split{};
  int n_blocks = 0;
  for (int index = a.tail ? 0 : 1; index < n_segments; ++index) {
    const int blocks =
        (view_header(rows.table, rows.table_words, a.pool, a.layer, rows.kv_head, index, d)
             .n_pages() +
         kBlockPages - 1) /
        kBlockPages;
    for (int block = 0; block < blocks;) {
      if (n_blocks == kSplitBlocks || (n_blocks > 0 && split.first.segment == 0 && index > 0)) {
        f(split);
        n_blocks = 0;
      }
      if (n_blocks == 0) split.first = {index, block};
      const int taken = std::min(blocks - block, kSplitBlocks - n_blocks);
      block += taken;
      n_blocks += taken;
      split.last = {index, block};
    }
  }
  if (n_blocks > 0) f(split);
}

// What rows take from the keys of a split: o (rows, head_dim), to be divided by the sums of softmax
// (rows).
//
// With K channelwise and V channel-separable tokenwise no element is ever dequantized; scales move
// to where there are fewer numbers:
//   s_j = sum_c (scale q_c a_c) code_jc + scale sum_c q_c b_c          (a, b: K's channel scale and zero)
//   o_c = g_c (sum_j (p_j sigma_j) code_jc + sum_j p_j mu_j)           (sigma, mu: V's token scale and zero; g: channel)
// One softmax state runs through all segments.
template <typename T>
void attend_split(const MixedAttentionArgs& a, const QueryRows& rows, const Split& split, float* o,
                  SoftmaxRow* softmax) {
  const int64_t n_heads = a.q.size(1);
  const int d = static_cast<int>(a.q.size(2));
  const int n_rows = rows.n();
  const size_t row_tile = static_cast<size_t>(kBlockRows) * static_cast<size_t>(d);
  float* q = thread_scratch(0, row_tile);          // scale * q
  float* o_segment = thread_scratch(2, row_tile);  // the running segment, in units of g_c
  float t_segment[kBlockRows];                     // what joins all channels of o_segment
  for (int r = 0; r < n_rows; ++r) {
    widen(a.q.as<T>() + rows.index(r, n_heads) * d, q + int64_t{r} * d, d);
    for (int c = 0; c < d; ++c) q[int64_t{r} * d + c] *= a.scale;
    softmax[r] = {};
  }
  std::fill(o, o + int64_t{n_rows} * d, 0.0f);

  const auto view_of = [&](int index) {
    return view_header(rows.table, rows.table_words, a.pool, a.layer, rows.kv_head, index, d);
  };
  // The segment that is read and the two behind it.
  const int end = checked_segment_count(rows.table, a.layer, rows.kv_head);
  SegmentView views[3];
  for (int i = 0; i < 2 && split.first.segment + i < end; ++i)
    views[(split.first.segment + i) % 3] = view_of(split.first.segment + i);
  for (int index = split.first.segment; index <= split.last.segment; ++index) {
    const SegmentView& view = views[index % 3];
    const SegmentView* behind = nullptr;
    if (index + 1 < end) prefetch_params(views[(index + 1) % 3]);
    if (index + 2 < end) {
      SegmentView& next = views[(index + 2) % 3];
      next = view_of(index + 2);
      if (view.stored_like(next) && next.n_pages() > 0) behind = &next;
    }
    const int n = view.n_tokens();
    const int first_key = index == split.first.segment ? split.first.block * kSoftmaxKeys : 0;
    const int last_key =
        index == split.last.segment
            ? static_cast<int>(std::min<int64_t>(n, int64_t{split.last.block} * kSoftmaxKeys))
            : n;

    // Slots that a row sees: all, but for the causal end of the tail and what a sliding window
    // has left behind.
    KeySpan visible[kBlockRows];  // by query
    KeySpan any{last_key, first_key};
    for (int i = 0; i < rows.n_queries; ++i) {
      const int64_t query = rows.first_query + i;
      visible[i] = {0, n};
      if (index == 0 && a.causal)
        visible[i].last = static_cast<int>(std::max<int64_t>(0, n - (rows.q_len - 1 - query)));
      if (a.sliding_window > 0) {
        const int64_t position = a.positions.as<int32_t>()[rows.first_row + query];
        visible[i].first = view.slots_before(position - a.sliding_window + 1);
      }
      any.first = std::min(any.first, std::max(visible[i].first, first_key));
      any.last = std::max(any.last, std::min(visible[i].last, last_key));
    }
    if (any.first >= any.last) continue;
    any.first = any.first / kSoftmaxKeys * kSoftmaxKeys;
    check_pages(view, a.pool, a.layer, rows.kv_head, index, any.first / kPageTokens,
                std::min<int64_t>(view.n_pages(), (int64_t{any.last} + kSoftmaxKeys - 1) /
                                                      kSoftmaxKeys * kBlockPages));

    const KeyFactors keys = fold_keys(view, q, n_rows);
    std::fill(o_segment, o_segment + int64_t{n_rows} * d, 0.0f);
    std::fill(t_segment, t_segment + n_rows, 0.0f);
    for (int key0 = any.first; key0 < any.last; key0 += kSoftmaxKeys) {
      const KeyBlock block(view, behind, key0);
      each_rows(n_rows, [&](int r0, auto together) {
        constexpr int R = decltype(together)::value;
        alignas(64) float scores[R * kSoftmaxKeys];
        KeySpan seen[R];
        for (int r = 0; r < R; ++r) {
          const KeySpan all = visible[(r0 + r) / rows.group];
          seen[r].first = std::clamp(all.first - key0, 0, kSoftmaxKeys);
          seen[r].last = std::clamp(all.last - key0, seen[r].first, kSoftmaxKeys);
        }
        dispatch_format(view.segment.k_format, [&](auto format) {
          score_rows<decltype(format)::value, R>(block, keys, r0, scores);
        });
        for (int r = 0; r < R; ++r) {
          const int64_t row = int64_t{r0 + r} * d;
          const float correction = softmax[r0 + r].update(
              scores + r * kSoftmaxKeys, block.n_pages * kPageTokens, seen[r].first, seen[r].last);
          if (correction == 1.0f) continue;  // as mostly, once a few blocks were seen
          scale_row(o + row, correction, d);
          scale_row(o_segment + row, correction, d);
          t_segment[r0 + r] *= correction;
        }
        add_values<R>(block, seen, scores, o_segment + int64_t{r0} * d, t_segment + r0);
      });
    }
    float channel[kMaxHeadDim];
    if (view.v_quantized()) widen(view.channel_params(2), channel, d);
    for (int r = 0; r < n_rows; ++r) {
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
}

// The rows of one (sequence, KV head) from what was made of its splits, in their order.
template <typename T>
class JoinedRows {
 public:
  // o (rows, head_dim)
  JoinedRows(const MixedAttentionArgs& a, const QueryRows& rows, float* o)
      : a_(a), rows_(rows), d_(static_cast<int>(a.q.size(2))), o_(o) {
    std::fill(o_, o_ + int64_t{rows_.n()} * d_, 0.0f);
  }

  void add(const float* o, const SoftmaxRow* softmax) {
    for (int r = 0; r < rows_.n(); ++r) {
      if (softmax[r].sum == 0.0f) continue;  // saw none of the keys
      const auto [mine, others] = softmax_[r].join(softmax[r]);
      for (int64_t c = int64_t{r} * d_; c < int64_t{r + 1} * d_; c += kLanes)
        store(o_ + c, fma(load(o + c), broadcast(others), load(o_ + c) * broadcast(mine)));
    }
  }

  void write() {
    for (int r = 0; r < rows_.n(); ++r) {
      const int64_t row = rows_.index(r, a_.q.size(1));
      float* o = o_ + int64_t{r} * d_;
      scale_row(o, softmax_[r].sum == 0.0f ? 0.0f : 1.0f / softmax_[r].sum, d_);
      narrow(o, a_.out.template as<T>() + row * d_, d_);
      a_.lse.as<float>()[row] = softmax_[r].lse();
    }
  }

 private:
  const MixedAttentionArgs& a_;
  const QueryRows& rows_;
  int d_;
  float* o_;
  SoftmaxRow softmax_[kBlockRows];
};

// Attention straight over the packed cache. A task is a block of query rows of one (sequence, KV
// head), or, where there are few of them, what they take from one split of its keys.
template <typename T>
void mixed_attention_typed(const OpContext& ctx, const MixedAttentionArgs& a) {
  const int64_t n_heads = a.q.size(1);
  const int d = static_cast<int>(a.q.size(2));
  const int64_t n_seqs = a.starts.size(0);
  const int32_t* cu = a.cu_seqlens.as<int32_t>();
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
  const auto blocks_of = [&](int64_t seq) {
    return (cu[seq + 1] - cu[seq] + queries_per_block - 1) / queries_per_block;
  };
  int64_t n_blocks = 0;
  for (int64_t s = 0; s < n_seqs; ++s) n_blocks += blocks_of(s);
  const int64_t n_tasks = n_blocks * n_kv_heads;
  const size_t row_tile = static_cast<size_t>(kBlockRows) * static_cast<size_t>(d);

  const auto rows_of = [&](int64_t task) {
    int64_t block = task / n_kv_heads;
    int64_t seq = 0;
    for (; block >= blocks_of(seq); ++seq) block -= blocks_of(seq);
    const auto [table, table_words] = sequence_table(a.tables, a.starts, seq);
    const int64_t first_query = block * queries_per_block;
    const int64_t q_len = cu[seq + 1] - cu[seq];
    const int n_queries =
        static_cast<int>(std::min<int64_t>(queries_per_block, q_len - first_query));
    return QueryRows{table,
                     table_words,
                     cu[seq],
                     q_len,
                     first_query,
                     n_queries,
                     static_cast<int>(task % n_kv_heads),
                     group};
  };

  if (ctx.threads->n_threads() == 1 || n_tasks >= kTasksAThread * ctx.threads->n_threads()) {
    ctx.threads->parallel_for(n_tasks, [&](int64_t task) {
      const QueryRows rows = rows_of(task);
      if (!rows.table) return;
      JoinedRows<T> joined(a, rows, thread_scratch(1, row_tile));
      float* o = thread_scratch(3, row_tile);
      SoftmaxRow softmax[kBlockRows];
      each_split(a, rows, [&](const Split& split) {
        attend_split<T>(a, rows, split, o, softmax);
        joined.add(o, softmax);
      });
      joined.write();
    });
    return;
  }

  // Whoever computes the last split of a task joins them all.
  struct Task {
    QueryRows rows;
    int64_t first_item;
    int n_items = 0;
    std::atomic<int> left;
  };
  struct Item {
    int64_t task;
    int64_t first_row;  // in o and softmax
    Split split;
  };
  std::vector<Task> tasks(static_cast<size_t>(n_tasks));
  std::vector<Item> items;
  int64_t n_rows = 0;
  for (int64_t i = 0; i < n_tasks; ++i) {
    Task& task = tasks[i];
    task.rows = rows_of(i);
    task.first_item = static_cast<int64_t>(items.size());
    if (!task.rows.table) continue;
    each_split(a, task.rows, [&](const Split& split) {
      items.push_back({i, n_rows, split});
      n_rows += task.rows.n();
    });
    task.n_items = static_cast<int>(static_cast<int64_t>(items.size()) - task.first_item);
    task.left = task.n_items;
    if (task.n_items == 0) JoinedRows<T>(a, task.rows, thread_scratch(1, row_tile)).write();
  }
  float* o = thread_scratch(6, static_cast<size_t>(n_rows) * static_cast<size_t>(d));
  std::vector<SoftmaxRow> softmax(static_cast<size_t>(n_rows));
  const auto join = [&](const Task& task) {
    JoinedRows<T> joined(a, task.rows, thread_scratch(1, row_tile));
    for (int64_t i = task.first_item; i < task.first_item + task.n_items; ++i)
      joined.add(o + items[i].first_row * d, softmax.data() + items[i].first_row);
    joined.write();
  };
  ctx.threads->parallel_for(static_cast<int64_t>(items.size()), [&](int64_t i) {
    const Item& item = items[i];
    Task& task = tasks[item.task];
    attend_split<T>(a, task.rows, item.split, o + item.first_row * d,
                    softmax.data() + item.first_row);
    if (task.left.fetch_sub(1, std::memory_order_acq_rel) == 1) join(task);
  });
}

void mixed_attention(const OpContext& ctx, const MixedAttentionArgs& a) {
  dispatch_float(a.q.dtype,
                 [&](auto type) { mixed_attention_typed<typename decltype(type)::type>(ctx, a); });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
