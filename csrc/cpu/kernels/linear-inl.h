namespace zc::cpu {
namespace ZC_ISA {

// R x J dot products over k with the lanes along k: both operands are read as they lie in memory,
// for a weight in any type, and a sum never depends on how many rows or columns are computed beside
// it.
template <int R, int J, typename W>
inline void dot_tile(const float* x, const W* w, int64_t k, float* out /* (R, J) */) {
  VecF acc[R][J] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    VecF wv[J];
    for (int j = 0; j < J; ++j) wv[j] = load(w + j * k + i);
    for (int r = 0; r < R; ++r) {
      const VecF xv = load(x + r * k + i);
      for (int j = 0; j < J; ++j) acc[r][j] = fma(xv, wv[j], acc[r][j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) {
      float total = sum(acc[r][j]);
      for (int64_t t = i; t < k; ++t) total += x[r * k + t] * to_float(w[j * k + t]);
      out[r * J + j] = total;
    }
}

inline constexpr int kLinearRows = 64;     // rows of x a task takes: k = 1024 of them fill an L2
inline constexpr int kLinearColumns = 48;  // rows of the weight a task takes, at least
inline constexpr int64_t kLinearTaskProducts =
    1 << 17;  // about 10 us: less is not worth waking a thread for

// y = x W^T + b, optionally added to what y holds. One task is a (rows, columns) tile of y.
template <typename X, typename W, typename Y>
void linear_typed(const OpContext& ctx, const LinearArgs& a) {
  const int64_t m = a.x.size(0);
  const int64_t k = a.x.size(1);
  const int64_t n = a.weight.size(0);
  const int64_t row_blocks = (m + kLinearRows - 1) / kLinearRows;
  const int64_t column_products = std::max<int64_t>(1, std::min<int64_t>(m, kLinearRows) * k);
  const int64_t columns =
      std::max<int64_t>(kLinearColumns, kLinearTaskProducts / column_products / 8 * 8);
  const int64_t column_blocks = (n + columns - 1) / columns;
  const W* weight = a.weight.as<W>();
  Y* out = a.out.as<Y>();

  ctx.threads->parallel_for(row_blocks * column_blocks, [&](int64_t task) {
    const int64_t r0 = task / column_blocks * kLinearRows;
    const int64_t c0 = task % column_blocks * columns;
    const int64_t r1 = std::min(m, r0 + kLinearRows);
    const int64_t c1 = std::min(n, c0 + columns);
    const float* x;
    if constexpr (std::is_same_v<X, float>) {
      x = a.x.as<float>() + r0 * k;
    } else {
      float* wide = thread_scratch(0, static_cast<size_t>((r1 - r0) * k));
      widen(a.x.as<X>() + r0 * k, wide, (r1 - r0) * k);
      x = wide;
    }
    const auto finish = [&](const float* sums, int64_t r, int64_t c, int rows, int columns) {
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          float y = sums[i * columns + j];
          if (a.bias.defined())
            y += dispatch_float(a.bias.dtype, [&](auto type) {
              return to_float(a.bias.as<typename decltype(type)::type>()[c + j]);
            });
          Y& slot = out[(r + i) * n + c + j];
          slot = from_float<Y>(a.accumulate ? to_float(slot) + y : y);
        }
    };
    int64_t r = r0;
    for (; r + 4 <= r1; r += 4) {
      float sums[4 * 3];
      int64_t c = c0;
      for (; c + 3 <= c1; c += 3) {
        dot_tile<4, 3>(x + (r - r0) * k, weight + c * k, k, sums);
        finish(sums, r, c, 4, 3);
      }
      for (; c < c1; ++c) {
        dot_tile<4, 1>(x + (r - r0) * k, weight + c * k, k, sums);
        finish(sums, r, c, 4, 1);
      }
    }
    for (; r < r1; ++r) {
      float sums[8];
      int64_t c = c0;
      for (; c + 8 <= c1; c += 8) {
        dot_tile<1, 8>(x + (r - r0) * k, weight + c * k, k, sums);
        finish(sums, r, c, 1, 8);
      }
      for (; c < c1; ++c) {
        dot_tile<1, 1>(x + (r - r0) * k, weight + c * k, k, sums);
        finish(sums, r, c, 1, 1);
      }
    }
  });
}

void linear(const OpContext& ctx, const LinearArgs& a) {
  dispatch_float(a.x.dtype, [&](auto x) {
    dispatch_float(a.weight.dtype, [&](auto w) {
      dispatch_float(a.out.dtype, [&](auto y) {
        linear_typed<typename decltype(x)::type, typename decltype(w)::type,
                     typename decltype(y)::type>(ctx, a);
      });
    });
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
