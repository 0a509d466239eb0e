#pragma once

namespace zc {

// GELU by tanh (arXiv 1606.08415): x sigmoid(slope (x + cubic x^3)), slope = 2 sqrt(2 / pi).
inline constexpr float kGeluSlope = 1.5957691216057308f;
inline constexpr float kGeluCubic = 0.044715f;

// tanh(y) where nothing may cancel, |y| < kTanhNear: y (1 + z P(z)), z = y^2, coefficients of P
// from the highest power down (Cephes, tanhf). Beyond, (1 - e) / (1 + e) with e = e^(-2 |y|).
inline constexpr float kTanhNear = 0.625f;
inline constexpr float kTanhTerms[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                       1.33314422036e-1f, -3.33332819422e-1f};

}  // namespace zc
