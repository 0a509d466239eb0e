namespace zc::cpu {
namespace ZC_ISA {

// O = softmax(scale * Q K^T) V by blocks of keys with a running softmax (FlashAttention-2, arXiv
// 2307.08691). One task is a block of query rows of one (sequence, KV head): the query heads of the
// group share each K and V block. Memory: one (kBlockRows, head_dim) and two (kBlockKeys, head_dim)
// tiles a thread.
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

  const int queries_per_block = std::max(1, kBlockRows / group);
  const int heads_per_pass =
      std::min(group, kBlockRows);  // groups beyond 64 heads take several passes
  int64_t blocks_per_head = 0;
  for (int64_t s = 0; s < n_seqs; ++s)
    blocks_per_head += (cu_q[s + 1] - cu_q[s] + queries_per_block - 1) / queries_per_block;

  const auto run_block = [&](int64_t seq, int64_t block, int64_t kv_head) {
    const int64_t q_len = cu_q[seq + 1] - cu_q[seq];
    const int64_t kv_len = cu_k[seq + 1] - cu_k[seq];
    const int64_t first_query = block * queries_per_block;
    const int n_queries =
        static_cast<int>(std::min<int64_t>(queries_per_block, q_len - first_query));
    const int64_t offset = kv_len - q_len;  // bottom-right alignment of the causal mask

    float* q = thread_scratch(0, static_cast<size_t>(kBlockRows) * d);
    float* k_t = thread_scratch(1, static_cast<size_t>(kBlockKeys) * d);  // (head_dim, kBlockKeys)
    float* v = thread_scratch(2, static_cast<size_t>(kBlockKeys) * d);    // (kBlockKeys, head_dim)
    float* o = thread_scratch(3, static_cast<size_t>(kBlockRows) * d);
    float* scores = thread_scratch(4, static_cast<size_t>(kBlockRows) * kBlockKeys);

    for (int head0 = 0; head0 < group; head0 += heads_per_pass) {
      const int n_pass = std::min(heads_per_pass, group - head0);
      const int rows = n_queries * n_pass;  // row = query * n_pass + head
      const auto row_index = [&](int r) {
        return (cu_q[seq] + first_query + r / n_pass) * n_heads + kv_head * group + head0 +
               r % n_pass;
      };
      for (int r = 0; r < rows; ++r) {
        widen(a.q.as<T>() + row_index(r) * d, q + static_cast<int64_t>(r) * d, d);
        for (int c = 0; c < d; ++c) q[static_cast<int64_t>(r) * d + c] *= a.scale;
      }
      std::fill(o, o + static_cast<int64_t>(rows) * d, 0.0f);
      SoftmaxRows softmax;
      softmax.reset(rows);

      const KeyRange all_first =
          visible_keys(first_query + offset, kv_len, a.causal, a.sliding_window);
      const KeyRange all_last =
          visible_keys(first_query + n_queries - 1 + offset, kv_len, a.causal, a.sliding_window);
      for (int64_t key0 = all_first.first / kBlockKeys * kBlockKeys; key0 < all_last.last;
           key0 += kBlockKeys) {
        const int n_keys = static_cast<int>(std::min<int64_t>(kBlockKeys, kv_len - key0));
        for (int j = 0; j < kBlockKeys; ++j) {
          float row[256];
          float* v_row = v + static_cast<int64_t>(j) * d;
          if (j < n_keys) {
            const int64_t at = ((cu_k[seq] + key0 + j) * n_kv_heads + kv_head) * d;
            widen(a.k.as<T>() + at, row, d);
            widen(a.v.as<T>() + at, v_row, d);
          } else {
            std::fill(row, row + d, 0.0f);
            std::fill(v_row, v_row + d, 0.0f);
          }
          for (int c = 0; c < d; ++c) k_t[c * kBlockKeys + j] = row[c];
        }
        std::fill(scores, scores + static_cast<int64_t>(rows) * kBlockKeys, 0.0f);
        tile_multiply(q, d, k_t, kBlockKeys, scores, kBlockKeys, rows, kBlockKeys, d);
        for (int r = 0; r < rows; ++r) {
          const KeyRange seen =
              visible_keys(first_query + r / n_pass + offset, kv_len, a.causal, a.sliding_window);
          const int first = static_cast<int>(std::clamp<int64_t>(seen.first - key0, 0, kBlockKeys));
          const int last =
              static_cast<int>(std::clamp<int64_t>(seen.last - key0, first, kBlockKeys));
          const float correction =
              softmax.update(r, scores + static_cast<int64_t>(r) * kBlockKeys, first, last);
          scale_row(o + static_cast<int64_t>(r) * d, correction, d);
        }
        tile_multiply(scores, kBlockKeys, v, d, o, d, rows, d, kBlockKeys);
      }
      for (int r = 0; r < rows; ++r) {
        float* row = o + static_cast<int64_t>(r) * d;
        scale_row(row, softmax.sum[r] == 0.0f ? 0.0f : 1.0f / softmax.sum[r], d);
        narrow(row, a.out.as<T>() + row_index(r) * d, d);
        a.lse.as<float>()[row_index(r)] = softmax.lse(r);
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
