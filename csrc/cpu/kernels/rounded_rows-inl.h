// Rows of x as integers of 16 bits, with a step for every kPanelDepth elements of a row: what codes
// of a weight are multiplied by. Of what 8 bits of a weight lose that is a hundredth.
namespace zc::cpu {
namespace ZC_ISA {

// Rows of x in 16 bits.
struct RoundedRows {
  int16_t* factors;  // (depths, rows, kPanelDepth), zeros behind k
  float* steps;      // (depths, rows)
  int rows;

  const int16_t* at(int64_t depth, int r) const {
    return factors + (depth * rows + r) * kPanelDepth;
  }
};

// The step of a block of x, whose largest magnitude is kMaxFactor steps: 0 where that is nothing
// beside any weight, NaN where an element is no finite number, so that all of the row's products
// are.
inline float factor_step(const float* x) {
  const float largest = largest_magnitude(x, kPanelDepth);
  return largest <= 1e-33f ? 0.0f : largest / kMaxFactor;
}

inline RoundedRows round_rows(const LinearArgs& a, const LinearTile& tile) {
  const int rows = static_cast<int>(tile.r1 - tile.r0);
  const int64_t k = a.x.size(1);
  const int64_t n_depths = (k + kPanelDepth - 1) / kPanelDepth;
  const int64_t blocks = n_depths * rows;
  RoundedRows out{};
  out.factors =
      reinterpret_cast<int16_t*>(thread_scratch(0, static_cast<size_t>(blocks * kPanelDepth / 2)));
  out.steps = thread_scratch(1, static_cast<size_t>(blocks));
  out.rows = rows;
  for (int64_t depth = 0; depth < n_depths; ++depth)
    for (int r = 0; r < rows; ++r) {
      const int64_t first = depth * kPanelDepth;
      const int64_t n = std::min<int64_t>(kPanelDepth, k - first);
      float x[kPanelDepth] = {};
      widen_from(a.x, tile.x_row(tile.r0 + r) * k + first, x, n);
      const float step = factor_step(x);
      int16_t* to = out.factors + (depth * rows + r) * kPanelDepth;
      if (step > 0.0f)
        round_to_factors(x, kPanelDepth, step, to);
      else
        std::memset(to, 0, kPanelDepth * sizeof(int16_t));
      out.steps[depth * rows + r] = step;
    }
  return out;
}

inline WideHalves load_halves(const int16_t* p) {
  WideHalves v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
