#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/math/hd.h"

namespace zc {

// One rotated pair of the half-split convention (Hugging Face rotate_half):
// (x[i], x[i + d/2]) turned by the angle whose cosine and sine are given.
struct RopePair {
  float first;
  float second;
};

ZC_HD RopePair rope_rotate(float first, float second, float cos, float sin) {
  return {first * cos - second * sin, second * cos + first * sin};
}

struct RopeTurn {
  float cos;
  float sin;
};

// Cosine and sine of an angle up to 2^31, to the last bit or next to it: in double, the quarter
// turns taken off in three steps, then Taylor's polynomials on [-pi/4, pi/4].
ZC_HD RopeTurn rope_turn(float angle) {
  // pi/2 in pieces of 22 bits: up to 2^31 quarter turns of the first two are exact in double.
  constexpr double kQuarter1 = 0x1.921fbp+0;
  constexpr double kQuarter2 = 0x1.5110bp-22;
  constexpr double kQuarter3 = 0x1.18469898cc517p-44;
  const double turns = rint(double{angle} * 0x1.45f306dc9c883p-1);  // 2/pi
  const double r = ((double{angle} - turns * kQuarter1) - turns * kQuarter2) - turns * kQuarter3;
  const double r2 = r * r;
  const double sin =
      r + r * r2 *
              (-1.0 / 6 +
               r2 * (1.0 / 120 +
                     r2 * (-1.0 / 5040 + r2 * (1.0 / 362880 + r2 * (-1.0 / 39916800 +
                                                                    r2 * (1.0 / 6227020800.0))))));
  const double cos =
      1.0 - r2 * (1.0 / 2 -
                  r2 * (1.0 / 24 -
                        r2 * (1.0 / 720 -
                              r2 * (1.0 / 40320 - r2 * (1.0 / 3628800 - r2 * (1.0 / 479001600))))));
  const double quadrant = turns - 4.0 * floor(turns * 0.25);  // 0 to 3
  const bool odd = quadrant == 1.0 || quadrant == 3.0;
  const double c = odd ? sin : cos;
  const double s = odd ? cos : sin;
  return {static_cast<float>(quadrant == 1.0 || quadrant == 2.0 ? -c : c),
          static_cast<float>(quadrant >= 2.0 ? -s : s)};
}

// What the queries of far positions are multiplied by, Llama 4's way: the longer a context, the
// sharper attention has to be to find the same.
ZC_HD float query_growth(int32_t position, float growth, int32_t period) {
  if (growth == 0.0f) return 1.0f;
  return static_cast<float>(1.0 + double{growth} * log(1.0 + position / period));
}

}  // namespace zc
