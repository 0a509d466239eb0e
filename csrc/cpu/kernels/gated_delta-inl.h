namespace zc::cpu {
namespace ZC_ISA {

// Columns of a state that are worked on together: with 128 channels of keys 16 KB, which stay in L1
// for all rows of a call. The last strip may have 16.
inline constexpr int kDeltaColumns = 32;

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

// One value head's rows of one sequence, and where they lie.
struct DeltaHead {
  const float* q;  // (rows, key_dim), rows qkv_stride apart, as k and v
  const float* k;
  const float* v;  // (rows, value_dim)
  float* out;      // (rows, value_dim), rows out_stride apart
  int64_t qkv_stride;
  int64_t out_stride;
  int64_t key_dim;
  int64_t first_row;
  int64_t n_rows;
  int64_t key_head;
  int64_t head;
};

// All rows of V vectors of columns, one after the other: state (key_dim, V vectors). The norms of q
// and k multiply what came of them, not each channel.
template <int V>
ZC_NOINLINE void delta_strip(const DeltaHead& h, const DeltaRows& shared, int64_t column,
                             float* state) {
  constexpr int kStride = V * kWideLanes;
  constexpr int kSums = 8 / V;  // of each vector in the first pass, whose FMAs wait for each other
  for (int64_t t = 0; t < h.n_rows; ++t) {
    const float* q = h.q + t * h.qkv_stride;
    const float* k = h.k + t * h.qkv_stride;
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
      const WideF value = load_wide(h.v + t * h.qkv_stride + column + j * kWideLanes);
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

// The gated delta rule (Gated DeltaNet, arXiv 2412.06464, eq. 10), row by row. One task is a value
// head of a sequence, whose state is taken out of the pool strip by strip and put back.
void gated_delta(const OpContext& ctx, const GatedDeltaArgs& a) {
  const int64_t rows = a.qkv.size(0);
  const int64_t qkv_stride = a.qkv.size(1);
  const int64_t n_heads = a.n_heads();
  const int64_t key_dim = a.key_dim();
  const int64_t value_dim = a.value_dim();
  const int64_t keys = a.keys();
  const int64_t heads_per_key = n_heads / a.n_key_heads;
  const int32_t* cu = a.cu_seqlens.as<int32_t>();
  const int64_t page_bytes = head_page_bytes(key_dim, value_dim);
  check_cu_seqlens("cuSeqlens", a.cu_seqlens, rows);
  check_state_pages(a, n_heads, 1, n_heads, page_bytes);

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

  ctx.threads->parallel_for(a.states.size(0) * n_heads, [&](int64_t task) {
    const int64_t seq = task / n_heads;
    const int64_t head = task % n_heads;
    const int64_t key_head = head / heads_per_key;
    const int64_t first = cu[seq];
    const float* row = a.qkv.as<float>() + first * qkv_stride;
    const DeltaHead h = {row + key_head * key_dim,
                         row + keys + key_head * key_dim,
                         row + 2 * keys + head * value_dim,
                         a.out.as<float>() + (first * n_heads + head) * value_dim,
                         qkv_stride,
                         n_heads * value_dim,
                         key_dim,
                         first,
                         cu[seq + 1] - first,
                         key_head,
                         head};
    const int32_t* words = state_words(a, seq, n_heads);
    if (!words) {
      for (int64_t t = 0; t < h.n_rows; ++t)
        std::memset(h.out + t * h.out_stride, 0, static_cast<size_t>(value_dim) * sizeof(float));
      return;
    }
    float* page = state_page(a.pool, words[1 + head], page_bytes);
    // All strips one after the other, so that the page is read and written in the order in which it
    // lies: (key_dim, 32) of each.
    float* state = thread_scratch(0, static_cast<size_t>(key_dim * value_dim));
    const auto each_vector = [&](const auto& copy) {  // copy(where in the page, where in a strip)
      for (int64_t i = 0; i < key_dim; ++i)
        for (int64_t c0 = 0; c0 < value_dim; c0 += kDeltaColumns) {
          const int64_t n = std::min<int64_t>(kDeltaColumns, value_dim - c0);
          for (int64_t c = 0; c < n; c += kWideLanes)
            copy(page + i * value_dim + c0 + c, state + c0 * key_dim + i * n + c);
        }
    };
    if (a.from_zero)
      std::memset(state, 0, static_cast<size_t>(page_bytes));
    else
      each_vector([](const float* from, float* to) { store(to, load_wide(from)); });
    for (int64_t c = 0; c < value_dim; c += kDeltaColumns) {
      if (value_dim - c >= kDeltaColumns)
        delta_strip<kDeltaColumns / kWideLanes>(h, shared, c, state + c * key_dim);
      else
        delta_strip<kDeltaColumns / kWideLanes / 2>(h, shared, c, state + c * key_dim);
    }
    each_vector([](float* to, const float* from) { store(to, load_wide(from)); });
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
