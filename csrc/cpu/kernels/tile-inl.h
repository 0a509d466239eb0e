// The tile arithmetic that flashAttention and mixedAttention share: a running softmax over blocks
// of keys.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kBlockKeys =
    64;  // 4 pages; K and V of a block (head_dim 128) fill 64 KB, an L2's worth
inline constexpr int kBlockRows = 64;  // query rows (times heads of the group) that share a block

// c (R, n) += a (R, k) * b (k, n), n a multiple of kLanes; row strides given.
// R x 2 vectors of accumulators: 8 independent chains hide the latency of FMA.
template <int R>
inline void tile_multiply_rows(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                               int64_t ldc, int n, int k) {
  int j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    VecF acc[R][2];
    for (int r = 0; r < R; ++r) {
      acc[r][0] = load(c + r * ldc + j);
      acc[r][1] = load(c + r * ldc + j + kLanes);
    }
    for (int i = 0; i < k; ++i) {
      const VecF b0 = load(b + i * ldb + j);
      const VecF b1 = load(b + i * ldb + j + kLanes);
      for (int r = 0; r < R; ++r) {
        const VecF x = broadcast(a[r * lda + i]);
        acc[r][0] = fma(x, b0, acc[r][0]);
        acc[r][1] = fma(x, b1, acc[r][1]);
      }
    }
    for (int r = 0; r < R; ++r) {
      store(c + r * ldc + j, acc[r][0]);
      store(c + r * ldc + j + kLanes, acc[r][1]);
    }
  }
  for (; j + kLanes <= n; j += kLanes) {
    VecF acc[R];
    for (int r = 0; r < R; ++r) acc[r] = load(c + r * ldc + j);
    for (int i = 0; i < k; ++i) {
      const VecF b0 = load(b + i * ldb + j);
      for (int r = 0; r < R; ++r) acc[r] = fma(broadcast(a[r * lda + i]), b0, acc[r]);
    }
    for (int r = 0; r < R; ++r) store(c + r * ldc + j, acc[r]);
  }
}

// The same for any number of rows. A row's sums do not depend on how many rows there are.
inline void tile_multiply(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                          int64_t ldc, int rows, int n, int k) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    tile_multiply_rows<4>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, n, k);
  for (; r + 2 <= rows; r += 2)
    tile_multiply_rows<2>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, n, k);
  for (; r < rows; ++r) tile_multiply_rows<1>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, n, k);
}

inline float max_of_block(const float* scores) {
  VecF best[2] = {load(scores), load(scores + kLanes)};
  for (int j = 2 * kLanes; j < kBlockKeys; j += 2 * kLanes) {
    best[0] = vmax(load(scores + j), best[0]);
    best[1] = vmax(load(scores + j + kLanes), best[1]);
  }
  float lanes[kLanes];
  store(lanes, vmax(best[0], best[1]));
  float result = lanes[0];
  for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}

// The running softmax of up to kBlockRows query rows (FlashAttention-2, arXiv 2307.08691, Alg. 1;
// natural log).
struct SoftmaxRows {
  float max[kBlockRows];
  float sum[kBlockRows];

  void reset(int rows) {
    for (int r = 0; r < rows; ++r) {
      max[r] = -INFINITY;
      sum[r] = 0.0f;
    }
  }

  // Turns scores (kBlockKeys) of row r into exp(score - max), zero outside [first, last), and adds
  // them to the sum. Returns the factor by which what was accumulated before must be multiplied.
  float update(int r, float* scores, int first, int last) {
    for (int j = 0; j < first; ++j) scores[j] = -INFINITY;
    for (int j = last; j < kBlockKeys; ++j) scores[j] = -INFINITY;
    const float block_max = max_of_block(scores);
    if (block_max == -INFINITY) {  // nothing visible, or nothing but -inf and NaN
      bool has_nan = false;
      for (int j = first; j < last; ++j) has_nan |= scores[j] != scores[j];
      for (int j = 0; j < kBlockKeys; ++j) scores[j] = 0.0f;
      if (has_nan) sum[r] = NAN;
      return 1.0f;
    }
    const float new_max = block_max > max[r] ? block_max : max[r];
    const float correction = max[r] == -INFINITY ? 0.0f : std::exp(max[r] - new_max);
    VecF total{};
    for (int j = 0; j < kBlockKeys; j += kLanes) {
      const VecF p = exp(load(scores + j) - broadcast(new_max));
      store(scores + j, p);
      total += p;
    }
    sum[r] = sum[r] * correction + ZC_ISA::sum(total);
    max[r] = new_max;
    return correction;
  }

  float lse(int r) const { return sum[r] == 0.0f ? -INFINITY : max[r] + std::log(sum[r]); }
};

inline void scale_row(float* row, float factor, int n) {
  if (factor == 1.0f) return;
  for (int c = 0; c < n; c += kLanes) store(row + c, load(row + c) * broadcast(factor));
}

// Keys j of [0, n_keys) that a query at position `query` sees, keys being at `key_start` + j:
// j <= query (causal) and j > query - window.
struct KeyRange {
  int64_t first;
  int64_t last;  // exclusive
};

inline KeyRange visible_keys(int64_t query, int64_t n_keys, bool causal, int64_t window) {
  int64_t first = 0;
  int64_t last = n_keys;
  if (causal && query + 1 < last) last = query + 1;
  if (window > 0 && query - window + 1 > first) first = query - window + 1;
  if (last < 0) last = 0;
  if (first > last) first = last;
  return {first, last};
}

// cu_seqlens must start at 0 and never fall; its last entry is the number of rows.
inline void check_cu_seqlens(const char* name, const TensorView& t, int64_t rows) {
  const int32_t* cu = t.as<int32_t>();
  const int64_t n = t.size(0) - 1;
  bool good = cu[0] == 0 && cu[n] == rows;
  for (int64_t i = 0; i < n; ++i) good = good && cu[i] <= cu[i + 1];
  ZC_CHECK(good, ErrorCode::kArgument, "%s: must rise from 0 to the number of rows, %lld", name,
           static_cast<long long>(rows));
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
