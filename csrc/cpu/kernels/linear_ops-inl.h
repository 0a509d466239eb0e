// linear and groupedLinear: how y is cut into tasks, whatever the weight is made of.
namespace zc::cpu {
namespace ZC_ISA {

inline void linear_tile(const LinearArgs& a, const LinearTile& tile) {
  if (a.weight.dtype == DType::kU8)
    linear_int4_tile(a, tile);
  else if (a.weight.dtype == DType::kI8)
    linear_codes_tile(a, tile);
  else
    linear_float_tile(a, tile);
}

// y = x W^T + b, optionally added to what y holds. A task is a tile of y.
void linear(const OpContext& ctx, const LinearArgs& a) {
  const int64_t m = a.x.size(0);
  const int64_t n = a.weight.size(0);
  if (m == 0 || n == 0) return;
  const int64_t row_blocks = (m + kLinearRows - 1) / kLinearRows;
  const int64_t columns =
      columns_of_task(ctx, n, a.x.size(1), row_blocks, std::min<int64_t>(m, kLinearRows));
  const int64_t column_blocks = (n + columns - 1) / columns;
  ctx.threads->parallel_for(row_blocks * column_blocks, [&](int64_t task) {
    const int64_t r0 = task / column_blocks * kLinearRows;
    const int64_t c0 = task % column_blocks * columns;
    linear_tile(a, {r0, std::min(m, r0 + kLinearRows), c0, std::min(n, c0 + columns)});
  });
}

void grouped_linear(const OpContext& ctx, const GroupedLinearArgs& a) {
  for (int i = 0; i < a.n_products; ++i) linear(ctx, a.product(i));
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
