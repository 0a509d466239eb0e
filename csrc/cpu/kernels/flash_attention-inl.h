namespace zc::cpu {
namespace ZC_ISA {

// Query rows (times heads of the group) that share a block of keys, at most: what widening and
// transposing the block costs is spread over them. 256 of head_dim 64 fill a quarter of L2.
inline constexpr int kFlashRows = 256;

inline bool all_finite(const float* x, int64_t n) {
  VecI bad{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF v = load(x + i);
    bad |= v - v != v - v;  // inf - inf is NaN
  }
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= bad[i];
  return any == 0;
}

// O = softmax(scale * Q K^T) V by blocks of keys with a running softmax (FlashAttention-2, arXiv
// 2307.08691). One task is a block of query rows of one (sequence, KV head): the query heads of the
// group share each K and V block. Blocks of keys begin at multiples of kBlockKeys of the sequence,
// and a row takes part in those alone of which it sees a key, so that its bits do not depend on the
// rows beside it: a prompt may be cut into slices of rows. Memory: two (kFlashRows, head_dim)
// tiles, one (kFlashRows, kBlockKeys) and two (kBlockKeys, head_dim) a thread.
template <typename T>
void flash_attention_typed(const OpContext& ctx, const FlashAttentionArgs& a) {
  const int64_t n_heads = a.q.size(1);
  const int64_t n_kv_heads = a.k.size(1);
  const int group = static_cast<int>(n_heads / n_kv_heads);
  const int d = static_cast<int>(a.q.size(2));
  const int64_t n_seqs = a.cu_seqlens_q.size(0) - 1;
  const int32_t* cu_q = a.cu_seqlens_q.as<int32_t>();
  const int32_t* cu_k = a.cu_seqlens_k.as<int32_t>();
  check_cu_seqlens("cuSeqlensQ", a.cu_seqlens_q, a.q.size(0));
  check_cu_seqlens("cuSeqlensK", a.cu_seqlens_k, a.k.size(0));

  const int heads_per_pass = std::min(group, kFlashRows);  // larger groups take several passes
  int queries_per_block = std::max(1, kFlashRows / group);
  const auto count_blocks = [&] {
    int64_t n = 0;
    for (int64_t s = 0; s < n_seqs; ++s)
      n += (cu_q[s + 1] - cu_q[s] + queries_per_block - 1) / queries_per_block;
    return n;
  };
  // Smaller blocks where there is not enough work for all threads.
  while (queries_per_block > 1 && queries_per_block * group >= 128 &&
         count_blocks() * n_kv_heads < 4 * int64_t{ctx.threads->n_threads()})
    queries_per_block /= 2;
  const int64_t blocks_per_head = count_blocks();

  const auto run_block = [&](int64_t seq, int64_t block, int64_t kv_head) {
    const int64_t q_len = cu_q[seq + 1] - cu_q[seq];
    const int64_t kv_len = cu_k[seq + 1] - cu_k[seq];
    const int64_t first_query = block * queries_per_block;
    const int n_queries =
        static_cast<int>(std::min<int64_t>(queries_per_block, q_len - first_query));
    const int64_t offset = kv_len - q_len;  // bottom-right alignment of the causal mask
    KeyRange seen_by[kFlashRows];           // of each query
    for (int i = 0; i < n_queries; ++i)
      seen_by[i] = visible_keys(first_query + i + offset, kv_len, a.causal, a.sliding_window);

    float* q = thread_scratch(0, static_cast<size_t>(kFlashRows) * d);
    float* k = thread_scratch(1, static_cast<size_t>(kBlockKeys) * d);  // strips of keys
    float* v = thread_scratch(2, static_cast<size_t>(kBlockKeys) * d);  // strips of channels
    float* o = thread_scratch(3, static_cast<size_t>(kFlashRows) * d);

    for (int head0 = 0; head0 < group; head0 += heads_per_pass) {
      const int n_pass = std::min(heads_per_pass, group - head0);
      const int rows = n_queries * n_pass;  // row = query * n_pass + head
      const auto row_index = [&](int r) {
        return (cu_q[seq] + first_query + r / n_pass) * n_heads + kv_head * group + head0 +
               r % n_pass;
      };
      for (int r = 0; r < rows; ++r) {
        float* row = q + int64_t{r} * d;
        widen(a.q.as<T>() + row_index(r) * d, row, d);
        for (int c = 0; c < d; c += kLanes) store(row + c, load(row + c) * broadcast(a.scale));
      }
      std::fill(o, o + int64_t{rows} * d, 0.0f);
      float max[kFlashRows];
      float sum[kFlashRows];
      std::fill(max, max + rows, -INFINITY);
      std::fill(sum, sum + rows, 0.0f);

      // Queries [first, last) see a key of the block: both only rise from block to block.
      int first = 0;
      int last = 0;
      for (int64_t key0 = seen_by[0].first / kBlockKeys * kBlockKeys;
           key0 < seen_by[n_queries - 1].last; key0 += kBlockKeys) {
        const int n_keys = static_cast<int>(std::min<int64_t>(kBlockKeys, kv_len - key0));
        while (last < n_queries && seen_by[last].first < key0 + n_keys) ++last;
        while (first < last && seen_by[first].last <= key0) ++first;
        if (first == last) continue;
        const int64_t at = ((cu_k[seq] + key0) * n_kv_heads + kv_head) * d;
        load_keys(a.k.as<T>() + at, n_kv_heads * d, n_keys, d, k);
        load_values(a.v.as<T>() + at, n_kv_heads * d, n_keys, d, v);

        // A few rows at a time, while their scores are in L1.
        const bool finite = all_finite(v, int64_t{n_keys} * d);
        by_rows<kTileRows>(
            last * n_pass,
            [&](int r0, auto n_rows) {
              constexpr int R = decltype(n_rows)::value;
              alignas(64) float scores[R * kBlockKeys] = {};
              int begins[R];  // keys of the block that a row sees
              int ends[R];
              for (int r = 0; r < R; ++r) {
                const KeyRange seen = seen_by[(r0 + r) / n_pass];
                begins[r] = static_cast<int>(std::max<int64_t>(seen.first - key0, 0));
                ends[r] = static_cast<int>(std::min<int64_t>(seen.last - key0, n_keys));
              }
              for (int j = 0; j < ends[R - 1]; j += kStrip)
                tile_multiply_strip<R, 2>(q + int64_t{r0} * d, d, k + int64_t{j} * d, kStrip,
                                          scores + j, kBlockKeys, d);
              for (int r = 0; r < R; ++r) {
                const float correction = update_softmax(
                    max[r0 + r], sum[r0 + r], scores + r * kBlockKeys, begins[r], ends[r]);
                scale_row(o + int64_t{r0 + r} * d, correction, d);
              }
              // The rows share a range of keys: beside its own a row multiplies others by 0, which
              // NaN and infinity in V would survive. Then each row goes alone.
              const bool same = begins[0] == begins[R - 1] && ends[0] == ends[R - 1];
              for (int c = 0; c < d; c += kStrip) {
                const int width = strip_width(c, d);
                const float* v_strip = v + int64_t{c} * kBlockKeys;
                float* o_strip = o + int64_t{r0} * d + c;
                if (finite || same) {
                  tile_multiply_rows<R>(scores + begins[0], kBlockKeys, v_strip + begins[0] * width,
                                        width, o_strip, d, width, ends[R - 1] - begins[0]);
                  continue;
                }
                for (int r = 0; r < R; ++r)
                  tile_multiply_rows<1>(scores + r * kBlockKeys + begins[r], kBlockKeys,
                                        v_strip + begins[r] * width, width, o_strip + r * d, d,
                                        width, ends[r] - begins[r]);
              }
            },
            first * n_pass);
      }
      for (int r = 0; r < rows; ++r) {
        float* row = o + int64_t{r} * d;
        const float factor = sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
        // + 0: whether -0 met another row's keys (0 times V) on its way must not show.
        for (int c = 0; c < d; c += kLanes)
          store(row + c, load(row + c) * broadcast(factor) + broadcast(0.0f));
        narrow(row, a.out.as<T>() + row_index(r) * d, d);
        a.lse.as<float>()[row_index(r)] = softmax_lse(max[r], sum[r]);
      }
    }
  };

  ctx.threads->parallel_for(blocks_per_head * n_kv_heads, [&](int64_t task) {
    const int64_t kv_head = task % n_kv_heads;
    // Longest rows first, so that the last tasks are short.
    int64_t block = blocks_per_head - 1 - task / n_kv_heads;
    int64_t seq = 0;
    for (;; ++seq) {
      const int64_t n = (cu_q[seq + 1] - cu_q[seq] + queries_per_block - 1) / queries_per_block;
      if (block < n) break;
      block -= n;
    }
    run_block(seq, block, kv_head);
  });
}

void flash_attention(const OpContext& ctx, const FlashAttentionArgs& a) {
  dispatch_float(a.q.dtype,
                 [&](auto type) { flash_attention_typed<typename decltype(type)::type>(ctx, a); });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
