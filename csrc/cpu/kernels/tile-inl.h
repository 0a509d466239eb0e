// The tile arithmetic that flashAttention and mixedAttention share: a running softmax over blocks
// of keys.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kBlockKeys =
    64;  // 4 pages; K and V of a block (head_dim 128) fill 64 KB, an L2's worth
inline constexpr int kBlockRows = 64;  // query rows (times heads of the group) that share a block

// Accumulators that fill the registers: kTileRows x 2 vectors, 2 loads and kTileRows broadcasts for
// 2 kTileRows FMA.
#if defined(ZC_ISA_AVX512)
inline constexpr int kTileRows = 8;
#else
inline constexpr int kTileRows = 6;
#endif
inline constexpr int kStrip = 2 * kWideLanes;

// c (R, J vectors) += a (R, k) * b (k, J vectors); row strides given.
template <int R, int J>
inline void tile_multiply_strip(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                                int64_t ldc, int k) {
  WideF acc[R][J];
  ZC_UNROLL for (int r = 0; r < R; ++r) ZC_UNROLL for (int j = 0; j < J; ++j) acc[r][j] =
      load_wide(c + r * ldc + j * kWideLanes);
  for (int i = 0; i < k; ++i) {
    WideF bv[J];
    ZC_UNROLL for (int j = 0; j < J; ++j) bv[j] = load_wide(b + i * ldb + j * kWideLanes);
    ZC_UNROLL for (int r = 0; r < R; ++r) {
      const WideF x = broadcast_wide(a[r * lda + i]);
      ZC_UNROLL for (int j = 0; j < J; ++j) acc[r][j] = fma(x, bv[j], acc[r][j]);
    }
  }
  ZC_UNROLL for (int r = 0; r < R; ++r) ZC_UNROLL for (int j = 0; j < J; ++j)
      store(c + r * ldc + j * kWideLanes, acc[r][j]);
}

// c (R, n) += a (R, k) * b (k, n), n a multiple of kWideLanes; row strides given.
template <int R>
inline void tile_multiply_rows(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                               int64_t ldc, int n, int k) {
  int j = 0;
  for (; j + kStrip <= n; j += kStrip) tile_multiply_strip<R, 2>(a, lda, b + j, ldb, c + j, ldc, k);
  for (; j + kWideLanes <= n; j += kWideLanes)
    tile_multiply_strip<R, 1>(a, lda, b + j, ldb, c + j, ldc, k);
}

// The same for any number of rows. A row's sums do not depend on how many rows there are.
inline void tile_multiply(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                          int64_t ldc, int rows, int n, int k) {
  by_rows<kTileRows>(rows, [&](int r, auto n_rows) {
    tile_multiply_rows<decltype(n_rows)::value>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, n, k);
  });
}

// ---- a block of 16-bit or 32-bit K and V as strips: what one strip of accumulators multiplies
// lies together, and stays in L1 while all rows pass by ----

// The width of the strip that begins at column c of n, a multiple of 16.
inline int strip_width(int c, int n) { return std::min(kStrip, n - c); }

// Up to kBlockKeys rows of K, `stride` elements apart, as (kBlockKeys / kStrip, head_dim, kStrip)
// with the keys on the lanes. Places from n_keys on repeat the last key.
template <typename T>
inline void load_keys(const T* k, int64_t stride, int n_keys, int head_dim, float* strips) {
  for (int j = 0; j < kBlockKeys; j += kLanes) {
    float* to = strips + int64_t{j / kStrip} * kStrip * head_dim + j % kStrip;
    const T* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = k + std::min(j + i, n_keys - 1) * stride;
      for (int c = 0; c < head_dim; c += 64 / int{sizeof(T)})
        __builtin_prefetch(rows[i] + kBlockKeys * stride + c);
    }
    for (int c = 0; c < head_dim; c += kLanes) {
      VecF v[kLanes];
      ZC_UNROLL for (int i = 0; i < kLanes; ++i) v[i] = load(rows[i] + c);
      transpose(v);
      ZC_UNROLL for (int i = 0; i < kLanes; ++i) store(to + int64_t{c + i} * kStrip, v[i]);
    }
  }
}

// Up to kBlockKeys rows of V as (head_dim / kStrip, kBlockKeys, kStrip) with the channels on the
// lanes; the last strip may be narrower. Keys from n_keys on are left as they are.
template <typename T>
inline void load_values(const T* v, int64_t stride, int n_keys, int head_dim, float* strips) {
  for (int j = 0; j < n_keys; ++j)
    for (int c = 0; c < head_dim; c += kStrip) {
      const int width = strip_width(c, head_dim);
      const T* from = v + j * stride + c;
      float* to = strips + int64_t{c} * kBlockKeys + j * width;
      __builtin_prefetch(from + kBlockKeys * stride);
      for (int i = 0; i < width; i += kLanes) store(to + i, load(from + i));
    }
}

inline float max_of_block(const float* scores) {
  VecF best[2] = {load(scores), load(scores + kLanes)};
  for (int j = 2 * kLanes; j < kBlockKeys; j += 2 * kLanes) {
    best[0] = vmax(load(scores + j), best[0]);
    best[1] = vmax(load(scores + j + kLanes), best[1]);
  }
  return max_lane(vmax(best[0], best[1]));
}

// The running softmax of one query row (FlashAttention-2, arXiv 2307.08691, Alg. 1; natural log).
// Turns scores (kBlockKeys) into exp(score - max), zero outside [first, last), and adds them to the
// sum. Returns the factor by which what was accumulated before must be multiplied.
inline float update_softmax(float& max, float& sum, float* scores, int first, int last) {
  for (int j = 0; j < first; ++j) scores[j] = -INFINITY;
  for (int j = last; j < kBlockKeys; ++j) scores[j] = -INFINITY;
  const float block_max = max_of_block(scores);
  if (block_max == -INFINITY) {  // nothing visible, or nothing but -inf and NaN
    bool has_nan = false;
    for (int j = first; j < last; ++j) has_nan |= scores[j] != scores[j];
    for (int j = 0; j < kBlockKeys; ++j) scores[j] = 0.0f;
    if (has_nan) sum = NAN;
    return 1.0f;
  }
  const float new_max = block_max > max ? block_max : max;
  const float correction = max == new_max     ? 1.0f
                           : max == -INFINITY ? 0.0f
                                              : std::exp(max - new_max);
  VecF total{};
  ZC_UNROLL for (int j = 0; j < kBlockKeys; j += kLanes) {
    const VecF p = exp(load(scores + j) - broadcast(new_max));
    store(scores + j, p);
    total += p;
  }
  sum = sum * correction + ZC_ISA::sum(total);
  max = new_max;
  return correction;
}

inline float softmax_lse(float max, float sum) {
  return sum == 0.0f ? -INFINITY : max + std::log(sum);
}

inline void scale_row(float* row, float factor, int n) {
  if (factor == 1.0f) return;
  for (int c = 0; c < n; c += kLanes) store(row + c, load(row + c) * broadcast(factor));
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
