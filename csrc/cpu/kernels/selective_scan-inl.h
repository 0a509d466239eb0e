namespace zc::cpu {
namespace ZC_ISA {

// All rows of V vectors of columns, one after the other: state (state_dim, V vectors). gates: of
// the head's first row, (keep, write), rows n_gates floats apart.
template <int V>
ZC_NOINLINE void scan_strip(const StateHead& h, const float* gates, int64_t n_gates, float skip,
                            int64_t column, float* state) {
  constexpr int kStride = V * kWideLanes;
  for (int64_t t = 0; t < h.n_rows; ++t) {
    const float* b = h.k + t * h.stride;
    const float* c = h.q + t * h.stride;
    const float* x = h.v + t * h.stride + column;
    float* out = h.out + t * h.out_stride + column;
    const WideF keep = broadcast_wide(gates[t * n_gates]);
    const WideF write = broadcast_wide(gates[t * n_gates + 1]);

    WideF input[V];  // dt x
    ZC_UNROLL for (int j = 0; j < V; ++j) input[j] = write * load_wide(x + j * kWideLanes);
    WideF result[V] = {};  // C^T S
    for (int64_t i = 0; i < h.key_dim; ++i) {
      const WideF in = broadcast_wide(b[i]);
      const WideF read = broadcast_wide(c[i]);
      ZC_UNROLL for (int j = 0; j < V; ++j) {
        float* at = state + i * kStride + j * kWideLanes;
        const WideF s = fma(in, input[j], keep * load_wide(at));
        store(at, s);
        result[j] = fma(read, s, result[j]);
      }
    }
    ZC_UNROLL for (int j = 0; j < V; ++j) store(
        out + j * kWideLanes, fma(broadcast_wide(skip), load_wide(x + j * kWideLanes), result[j]));
  }
}

// The selective scan whose A is one number a head (Mamba 2, arXiv 2405.21060, §2), row by row.
void selective_scan(const OpContext& ctx, const SelectiveScanArgs& a) {
  const int64_t rows = a.xbc.size(0);
  const int64_t n_heads = a.n_heads();
  const int64_t state_dim = a.state_dim();
  check_cu_seqlens("cuSeqlens", a.cu_seqlens, rows);
  check_state_pages(a, n_heads, 1, n_heads, head_page_bytes(state_dim, a.head_dim()));

  // (rows, n_heads, 2), read by all threads
  float* shared = thread_scratch(1, static_cast<size_t>(rows * n_heads * 2));
  parallel_rows(ctx, rows, [&](int64_t r) {
    for (int64_t h = 0; h < n_heads; ++h) {
      const ScanGates gates = scan_gates(a.step.as<float>()[r * n_heads + h],
                                         a.step_bias.as<float>()[h], a.decay_log.as<float>()[h]);
      shared[(r * n_heads + h) * 2] = gates.keep;
      shared[(r * n_heads + h) * 2 + 1] = gates.write;
    }
  });

  const int64_t b = a.inputs();
  const int64_t c = b + a.n_groups * state_dim;
  const StateRows in = {a.xbc.as<float>(), a.xbc.size(1), c, b, 0, state_dim, a.n_groups};
  each_state_strip(ctx, a, in, [&](auto vectors, const StateHead& h, int64_t column, float* state) {
    scan_strip<decltype(vectors)::value>(h, shared + (h.first_row * n_heads + h.head) * 2,
                                         n_heads * 2, a.skip.as<float>()[h.head], column, state);
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
