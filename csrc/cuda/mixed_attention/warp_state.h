#pragma once

#include "csrc/cuda/mixed_attention/operands.h"

// One warp's running softmax and O over the units that it is given, segment by segment.
namespace zc::cuda::mixed {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

ZC_DEVICE float exp2i(int e) { return bits_to_float(static_cast<uint32_t>(e + 127) << 23); }
ZC_DEVICE float half_at(uint32_t word, int upper) {
  return to_float(f16{static_cast<uint16_t>(upper ? word >> 16 : word)});
}
// The lower half of a word as an element of q.
ZC_DEVICE float q_value(const Params& p, uint32_t bits) {
  const uint16_t half = static_cast<uint16_t>(bits);
  return p.bf16 ? to_float(zc::bf16{half}) : to_float(f16{half});
}

// How far a score may exceed the maximum that weights are taken to, as a power of two: scores grow
// most in a split's first units, and each new maximum takes O along.
inline constexpr float kMaxGrowth = 4.0f;

// Lane 4 g + t: column t of the softmax state, channels 16 s + g and 16 s + g + 8 of its O.
template <int kDim>
struct WarpState {
  static constexpr int kSquares = kDim / 16;
  static_assert(kSquares % 2 == 0, "B operands are exchanged by two squares");
  float o[kSquares][4];  // of channel g in [0], of g + 8 in [2]; [1] and [3] are the odd columns'
  float max;   // log2 domain, the same in all lanes of a column; at most kMaxGrowth behind
  float sum;   // of this lane's tokens
  float rest;  // sum_j p_j mu_j of this lane's tokens
  uint32_t q[2 * kSquares];  // B operand of the running segment
  float step;                // score = sum of accumulators * step + beta
  float beta;
  float raw_limit;       // sums above it ask for a new maximum
  int shift;             // V's codes are weighed by p sigma 2^shift
  uint32_t scale_limit;  // bits of the largest sigma, a float16, that this shift allows
  // What a page's weights are made with: of max and beta, and of shift.
  float offset;
  float unit;
  bool is_empty;  // nothing was attended to yet: O is zero, and in no units

  // Begins a split.
  ZC_DEVICE void clear() {
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) o[s][0] = o[s][1] = o[s][2] = o[s][3] = 0.0f;
    max = -INFINITY;
    sum = 0.0f;
    rest = 0.0f;
    is_empty = true;
  }

  // Begins a segment: from the last one's units into its own. In shared memory: its channel
  // parameters, with room for 2 kSquares words a lane behind them, the item's q and the warp's
  // running segment.
  template <typename Query>
  ZC_DEVICE void enter(const Params& p, Layout next, uint32_t* params, const Query& query,
                       RunningSegment<kDim>& running, int lane) {
    leave(running, lane);
    constexpr uint32_t kOnes = 0x3c003c00u;  // float16
    ZC_UNROLL for (int w = lane; w < kDim / 2; w += 32) running.normalisers[w] =
        next.v_quantized() ? params[kDim + w] : kOnes;
    if (lane == 0) running.layout = next.word;
    fold_keys(p, next, params, query, lane);
    if (is_empty) return;
    begin_units(next);
    scale_units(
        next, -1,
        [&](int s, int hi, float factor, float channel) {
          o[s][2 * hi] *= factor * simt::rcp(channel);
        },
        running.normalisers, lane);
  }

  // Before the first unit of a segment, and of a split.
  ZC_DEVICE void begin_units(Layout layout) {
    // Float values: weights down to 2^-24 stay normal numbers. Codes: the first unit sets both.
    const bool codes = layout.v_quantized();
    shift = codes ? 0 : 10;
    scale_limit = codes ? 0u : 0xffffu;
    raw_limit = (max + kMaxGrowth - beta) * simt::rcp(step);
    renew();
  }
  ZC_DEVICE void renew() {
    offset = beta - (max == -INFINITY ? 0.0f : max);
    unit = exp2i(shift);
  }

  // O of the running segment counts in units of its own (V's channel scale, the powers of two of
  // its codes). Here it leaves them.
  ZC_DEVICE void leave(const RunningSegment<kDim>& running, int lane) {
    if (is_empty) return;
    ZC_UNROLL for (int m = 4; m < 32; m *= 2) rest += __shfl_xor_sync(~0u, rest, m);
    scale_units(
        Layout{running.layout}, 1,
        [&](int s, int hi, float factor, float channel) {
          o[s][2 * hi] = channel * fmaf(o[s][2 * hi], factor, rest);
        },
        running.normalisers, lane);
    rest = 0.0f;
    __syncwarp();  // all of it was read
  }

  // Takes the larger maximum of a unit, `raw` in units of the accumulators, and, where V's token
  // scales have outgrown it, another shift.
  ZC_DEVICE void rescale(float raw, uint32_t scale) {
    ZC_UNROLL for (int m = 4; m < 32; m *= 2) {
      raw = fmaxf(raw, __shfl_xor_sync(~0u, raw, m));
      const uint32_t other = __shfl_xor_sync(~0u, scale, m);
      scale = scale > other ? scale : other;
    }
    float factor = 1.0f;
    if (scale > scale_limit) {
      const float sigma = to_float(f16{static_cast<uint16_t>(scale)});  // at least 2^-24
      const int next = 8 - (static_cast<int>(float_to_bits(sigma) >> 23) - 127);
      factor = exp2i(next - shift);
      shift = next;  // p sigma of this unit lies below 2^9, and may grow to 2^11, p to 2^4
      scale_limit = to_f16(exp2i(11 - next)).bits;
    }
    // Not where another column alone has outgrown its maximum: no column's sums depend on
    // another's.
    float alpha = 1.0f;
    if (raw > raw_limit) {
      const float larger = fmaxf(max, fmaf(raw, step, beta));
      alpha = simt::ex2(max - larger);
      max = larger;
      raw_limit = fmaf(kMaxGrowth, simt::rcp(step), raw);
    }
    renew();
    sum *= alpha;
    rest *= alpha;
    factor *= alpha;
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      o[s][0] *= factor;
      o[s][2] *= factor;
    }
  }

 private:
  // What a segment makes of q: q_c a_c as two float16, scaled so that the largest of a column lies
  // just below 2^15, and what no code takes part in. Lane 8 c + m computes column c's channels
  // 16 s + 2 m and the next for all squares s; operands are exchanged in shared memory, behind the
  // parameters.
  template <typename Query>
  ZC_DEVICE void fold_keys(const Params& p, Layout next, uint32_t* params, const Query& query,
                           int lane) {
    const uint32_t* own_query = query[lane >> 3];
    const int m = lane & 7;
    const bool quantized = next.k_quantized();
    const float lambda = p.scale * kLog2E;
    // Loops that are not unrolled: a warp comes here so seldom that it finds no instructions in a
    // cache, and waits longer for them than for what it loads twice.
    const auto pair_at = [&](int s) {
      const uint32_t pair = own_query[8 * s + m];
      return make_float2(q_value(p, pair), q_value(p, pair >> 16));
    };
    const auto folded_at = [&](int s) {
      float2 x = pair_at(s);
      if (quantized) {
        const uint32_t a = params[8 * s + m];
        x.x *= half_at(a, 0);
        x.y *= half_at(a, 1);
      }
      return x;
    };
    float largest = 0.0f;
    float constant = 0.0f;
    ZC_NO_UNROLL for (int s = 0; s < kSquares; ++s) {
      const float2 x = folded_at(s);
      largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
      if (quantized) {
        const float2 own = pair_at(s);
        const uint32_t b = params[kDim / 2 + 8 * s + m];
        constant = fmaf(own.x, half_at(b, 0), fmaf(own.y, half_at(b, 1), constant));
      }
    }
    ZC_UNROLL for (int d = 1; d < 8; d *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
      constant += __shfl_xor_sync(~0u, constant, d);
    }
    // largest in [2^e, 2^(e + 1)) becomes [2^14, 2^15); nothing to scale when it is (nearly) zero
    // or not finite.
    int e = static_cast<int>(float_to_bits(largest) >> 23) - 127;
    e = e < -100 ? -100 : (e > 100 ? 100 : e);
    const int up = 14 - e;
    // Words of B operands, four of a lane together: even g take the first of the two float16, odd g
    // the second.
    uint32_t* const operands = params + 3 * kDim / 2;
    ZC_NO_UNROLL for (int s = 0; s < kSquares; ++s) {
      const float factor = exp2i(up - key_shift<kDim>(next.k_format(), s, m >> 2));
      const float2 x = folded_at(s);
      const float2 scaled = make_float2(x.x * factor, x.y * factor);
      const uint32_t first = simt::pack2(scaled.x, scaled.y, f16{});
      const uint32_t second =
          simt::pack2(scaled.x - half_at(first, 0), scaled.y - half_at(first, 1), f16{});
      uint32_t* to =
          operands + 4 * (32 * (s / 2) + 8 * (lane >> 3) + (m & 3)) + 2 * (s % 2) + (m >> 2);
      to[0] = first;
      to[16] = second;
    }
    __syncwarp();
    ZC_UNROLL for (int i = 0; i < kSquares / 2; ++i) {
      const uint4 four = reinterpret_cast<const uint4*>(operands)[32 * i + lane];
      q[4 * i] = four.x, q[4 * i + 1] = four.y, q[4 * i + 2] = four.z, q[4 * i + 3] = four.w;
    }
    const float own_step = lambda * exp2i(quantized ? 24 - up : -up);
    const int source = 8 * (lane & 3);  // a lane of this lane's column
    step = __shfl_sync(~0u, own_step, source);
    beta = lambda * __shfl_sync(~0u, constant, source);
  }

  // Calls f(square, hi, factor, channel scale) for every two rows of O: the factor that takes it
  // out of a segment's powers of two (`direction` 1) or into them (-1).
  template <typename F>
  ZC_DEVICE void scale_units(Layout layout, int direction, const F& f, const uint32_t* normalisers,
                             int lane) const {
    const int exponent = (layout.v_quantized() ? 24 : 0) - shift;
    float factors[4][2];  // powers of two of codes recur every fourth square
    ZC_UNROLL for (int s = 0; s < 4; ++s) ZC_UNROLL for (int hi = 0; hi < 2; ++hi) factors[s][hi] =
        exp2i(direction * (exponent - value_shift<kDim>(layout.v_format(), s, hi)));
    const uint16_t* channel = reinterpret_cast<const uint16_t*>(normalisers) + (lane >> 2);
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) ZC_UNROLL for (int hi = 0; hi < 2; ++hi)
        f(s, hi, factors[s % 4][hi], to_float(f16{channel[16 * s + 8 * hi]}));
  }
};

}  // namespace zc::cuda::mixed
