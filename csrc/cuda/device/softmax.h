#pragma once

#include <cmath>

#include "csrc/cuda/device/simt.h"

// The running softmax of rows g and g + 8 of a tile of scores, held as the accumulators of the
// tensor cores: s[n][e] is the score of row g + 8 (e / 2) and key 8 n + 2 t + e % 2, of 8 kTiles
// keys. Four lanes share a row. Exponentials are powers of 2.
namespace zc::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// The keys [first, last) of the tile that a row sees.
struct SeenKeys {
  int first;
  int last;
  ZC_DEVICE bool sees(int key) const { return key >= first && key < last; }
};

struct SeenKeyPair {
  SeenKeys of[2];  // rows g and g + 8
};

template <int kTiles>
ZC_DEVICE void mask_scores(float (&s)[kTiles][4], const SeenKeyPair& seen) {
  const int column = 2 * (threadIdx.x % 4);
  ZC_UNROLL for (int n = 0; n < kTiles; ++n)
      ZC_UNROLL for (int e = 0; e < 4; ++e) if (!seen.of[e / 2].sees(8 * n + column + e % 2))
          s[n][e] = -INFINITY;
}

struct SoftmaxRows {
  float max[2];  // what exponents are relative to: the largest score, or up to 8 / scale_log2 below
  float sum[2];  // of this lane's keys

  ZC_DEVICE void reset() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  // Turns scores into weights 2^(scale_log2 (score - max)), and factors into what was gathered
  // before must be multiplied with. A maximum that grows by less than a factor of 2^8 stays (as in
  // FlashAttention-4): then the factors are 1, most of the time. Returns whether any factor of the
  // warp is not.
  template <int kTiles>
  ZC_DEVICE bool update(float (&s)[kTiles][4], float scale_log2, float (&factors)[2]) {
    bool grows = false;
    ZC_UNROLL for (int r = 0; r < 2; ++r) {
      // Two chains: a maximum takes 4 cycles.
      float best[2] = {s[0][2 * r], s[0][2 * r + 1]};
      ZC_UNROLL for (int n = 1; n < kTiles; ++n) {
        best[0] = fmaxf(best[0], s[n][2 * r]);
        best[1] = fmaxf(best[1], s[n][2 * r + 1]);
      }
      float now = fmaxf(best[0], best[1]);
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const bool grew = (now - max[r]) * scale_log2 > 8.0f;  // false for -inf - -inf
      factors[r] = grew ? simt::ex2((max[r] - now) * scale_log2) : 1.0f;
      if (grew) max[r] = now;
      grows |= grew;
    }
    ZC_UNROLL for (int r = 0; r < 2; ++r) {
      const float offset = max[r] == -INFINITY ? 0.0f : -max[r] * scale_log2;
      float total[2] = {0.0f, 0.0f};
      ZC_UNROLL for (int n = 0; n < kTiles; ++n) ZC_UNROLL for (int e = 0; e < 2; ++e) {
        const float weight = simt::ex2(fmaf(s[n][2 * r + e], scale_log2, offset));
        s[n][2 * r + e] = weight;
        total[e] += weight;
      }
      sum[r] = fmaf(sum[r], factors[r], total[0] + total[1]);
    }
    return __any_sync(0xffffffffu, grows);
  }

  // After the last block: the sum over the keys of all lanes.
  ZC_DEVICE void finish() {
    ZC_UNROLL for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    }
  }
  // 0 for a row that saw no key.
  ZC_DEVICE float normalizer(int r) const { return sum[r] == 0.0f ? 0.0f : 1.0f / sum[r]; }
  // Natural logarithm of the sum of e^(scale score); -inf for a row that saw no key.
  ZC_DEVICE float lse(int r, float scale) const {
    return sum[r] == 0.0f ? -INFINITY : fmaf(max[r], scale, logf(sum[r]));
  }
};

template <int kTiles>
ZC_DEVICE void scale_rows(float (&o)[kTiles][4], const float (&factors)[2]) {
  ZC_UNROLL for (int n = 0; n < kTiles; ++n) ZC_UNROLL for (int e = 0; e < 4; ++e) o[n][e] *=
      factors[e / 2];
}

}  // namespace zc::cuda
