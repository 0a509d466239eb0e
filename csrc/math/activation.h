#pragma once

namespace zc {

// GELU by tanh (arXiv 1606.08415): x sigmoid(slope (x + cubic x^3)), slope = 2 sqrt(2 / pi).
inline constexpr float kGeluSlope = 1.5957691216057308f;
inline constexpr float kGeluCubic = 0.044715f;

}  // namespace zc
