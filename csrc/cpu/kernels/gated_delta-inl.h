namespace zc::cpu {
namespace ZC_ISA {

// What all columns of a row share, computed once.
struct DeltaRows {
  int64_t n_key_heads;
  int64_t n_heads;
  float* numbers;  // (rows, n_key_heads, 2), then (rows, n_heads, 2)
  int64_t rows;

  // 1 over the length of q, over the root of key_dim too, and of k.
  float* norms(int64_t row, int64_t key_head) const {
    return numbers + (row * n_key_heads + key_head) * 2;
  }
  // DeltaGates.
  float* gates(int64_t row, int64_t head) const {
    return numbers + rows * n_key_heads * 2 + (row * n_heads + head) * 2;
  }
  size_t size() const { return static_cast<size_t>(rows * (n_key_heads + n_heads) * 2); }
};

// All rows of V vectors of columns, one after the other: state (key_dim, V vectors). The norms of q
// and k multiply what came of them, not each channel.
template <int V>
ZC_NOINLINE void delta_strip(const StateHead& h, const DeltaRows& shared, int64_t column,
                             float* state) {
  constexpr int kStride = V * kWideLanes;
  constexpr int kSums = 8 / V;  // of each vector in the first pass, whose FMAs wait for each other
  for (int64_t t = 0; t < h.n_rows; ++t) {
    const float* q = h.q + t * h.stride;
    const float* k = h.k + t * h.stride;
    const float* norms = shared.norms(h.first_row + t, h.key_head);
    const float* gates = shared.gates(h.first_row + t, h.head);
    const WideF keep = broadcast_wide(gates[0]);

    WideF read[kSums][V] = {};  // k^T S
    for (int64_t i = 0; i < h.key_dim; i += kSums) ZC_UNROLL for (int s = 0; s < kSums; ++s) {
        const WideF key = broadcast_wide(k[i + s]);
        ZC_UNROLL for (int j = 0; j < V; ++j) read[s][j] =
            fma(key, load_wide(state + (i + s) * kStride + j * kWideLanes), read[s][j]);
      }
    WideF change[V];  // d, times the norm of k
    ZC_UNROLL for (int j = 0; j < V; ++j) {
      ZC_UNROLL for (int s = 1; s < kSums; ++s) read[0][j] += read[s][j];
      const WideF there = read[0][j] * broadcast_wide(norms[1] * gates[0]);
      const WideF value = load_wide(h.v + t * h.stride + column + j * kWideLanes);
      change[j] = (value - there) * broadcast_wide(gates[1] * norms[1]);
    }
    WideF result[V] = {};  // q^T S
    for (int64_t i = 0; i < h.key_dim; ++i) {
      const WideF key = broadcast_wide(k[i]);
      const WideF query = broadcast_wide(q[i]);
      ZC_UNROLL for (int j = 0; j < V; ++j) {
        float* at = state + i * kStride + j * kWideLanes;
        const WideF x = fma(key, change[j], keep * load_wide(at));
        store(at, x);
        result[j] = fma(query, x, result[j]);
      }
    }
    ZC_UNROLL for (int j = 0; j < V; ++j) store(h.out + t * h.out_stride + column + j * kWideLanes,
                                                result[j] * broadcast_wide(norms[0]));
  }
}

// The gated delta rule (Gated DeltaNet, arXiv 2412.06464, eq. 10), row by row.
void gated_delta(const OpContext& ctx, const GatedDeltaArgs& a) {
  const int64_t rows = a.qkv.size(0);
  const int64_t qkv_stride = a.qkv.size(1);
  const int64_t n_heads = a.n_heads();
  const int64_t key_dim = a.key_dim();
  const int64_t keys = a.keys();
  check_cu_seqlens("cuSeqlens", a.cu_seqlens, rows);
  check_state_pages(a, n_heads, 1, n_heads, head_page_bytes(key_dim, a.value_dim()));

  DeltaRows shared{a.n_key_heads, n_heads, nullptr, rows};
  shared.numbers = thread_scratch(1, shared.size());  // read by all threads
  const float query_scale = 1.0f / sqrtf(static_cast<float>(key_dim));
  parallel_rows(ctx, rows, [&](int64_t r) {
    const float* q = a.qkv.as<float>() + r * qkv_stride;
    const auto norm = [&](const float* x) {
      return delta_norm(static_cast<float>(sum_of_squares(x, key_dim)));
    };
    for (int64_t h = 0; h < a.n_key_heads; ++h) {
      float* norms = shared.norms(r, h);
      norms[0] = norm(q + h * key_dim) * query_scale;
      norms[1] = norm(q + keys + h * key_dim);
    }
    for (int64_t h = 0; h < n_heads; ++h) {
      const DeltaGates gates =
          delta_gates(a.decay.as<float>()[r * n_heads + h], a.decay_bias.as<float>()[h],
                      a.decay_log.as<float>()[h], a.beta.as<float>()[r * n_heads + h]);
      shared.gates(r, h)[0] = gates.keep;
      shared.gates(r, h)[1] = gates.write;
    }
  });

  const StateRows in = {a.qkv.as<float>(), qkv_stride, 0, keys, 2 * keys, key_dim, a.n_key_heads};
  each_state_strip(ctx, a, in, [&](auto vectors, const StateHead& h, int64_t column, float* state) {
    delta_strip<decltype(vectors)::value>(h, shared, column, state);
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
