// The states of heads, (key_dim, value_dim) each, and the rows that pass by them. What q, k and v
// are to the delta rule are C, B and x to a scan.
namespace zc::cpu {
namespace ZC_ISA {

// Columns of a state that are worked on together: with 128 channels of keys 16 KB, which stay in L1
// for all rows of a call. The last strip may have 16.
inline constexpr int kStateColumns = 32;

// Where the rows of an op lie.
struct StateRows {
  const float* in;  // (rows, stride)
  int64_t stride;
  int64_t q;  // columns where those of the first head begin
  int64_t k;
  int64_t v;
  int64_t key_dim;
  int64_t n_key_heads;
};

// One head's rows of one sequence.
struct StateHead {
  const float* q;  // (rows, key_dim), rows `stride` apart, as k and v
  const float* k;
  const float* v;  // (rows, value_dim)
  float* out;      // (rows, value_dim), rows out_stride apart
  int64_t stride;
  int64_t out_stride;
  int64_t key_dim;
  int64_t first_row;
  int64_t n_rows;
  int64_t key_head;
  int64_t head;
};

// Calls strip(std::integral_constant<int, V>, head, column, state) for every strip of every head's
// state, state (key_dim, V vectors). One task is a head of a sequence, whose state is taken out of
// the pool strip by strip and put back. The pages were checked.
template <typename Args, typename Strip>
void each_state_strip(const OpContext& ctx, const Args& a, const StateRows& in,
                      const Strip& strip) {
  const int64_t n_heads = a.out.size(1);
  const int64_t value_dim = a.out.size(2);
  const int64_t key_dim = in.key_dim;
  const int64_t page_bytes = head_page_bytes(key_dim, value_dim);
  const int32_t* cu = a.cu_seqlens.template as<int32_t>();
  ctx.threads->parallel_for(a.states.size(0) * n_heads, [&](int64_t task) {
    const int64_t seq = task / n_heads;
    const int64_t head = task % n_heads;
    const int64_t key_head = head / (n_heads / in.n_key_heads);
    const int64_t first = cu[seq];
    const float* row = in.in + first * in.stride;
    const StateHead h = {row + in.q + key_head * key_dim,
                         row + in.k + key_head * key_dim,
                         row + in.v + head * value_dim,
                         a.out.template as<float>() + (first * n_heads + head) * value_dim,
                         in.stride,
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
        for (int64_t c0 = 0; c0 < value_dim; c0 += kStateColumns) {
          const int64_t n = std::min<int64_t>(kStateColumns, value_dim - c0);
          for (int64_t c = 0; c < n; c += kWideLanes)
            copy(page + i * value_dim + c0 + c, state + c0 * key_dim + i * n + c);
        }
    };
    if (a.from_zero)
      std::memset(state, 0, static_cast<size_t>(page_bytes));
    else
      each_vector([](const float* from, float* to) { store(to, load_wide(from)); });
    constexpr int kVectors = kStateColumns / kWideLanes;
    for (int64_t c = 0; c < value_dim; c += kStateColumns) {
      if (value_dim - c >= kStateColumns)
        strip(std::integral_constant<int, kVectors>{}, h, c, state + c * key_dim);
      else
        strip(std::integral_constant<int, kVectors / 2>{}, h, c, state + c * key_dim);
    }
    each_vector([](float* to, const float* from) { store(to, load_wide(from)); });
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
