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

// Lane 4 g + t: column t of the softmax state, channels 16 s + g and 16 s + g + 8 of its O.
template <int kDim>
struct WarpState {
  static constexpr int kSquares = kDim / 16;
  float o[kSquares][4];  // of channel g in [0], of g + 8 in [2]; [1] and [3] are the odd columns'
  float max;             // log2 domain, the same in all lanes of a column
  float sum;             // of this lane's tokens
  float rest;            // sum_j p_j mu_j of this lane's tokens
  uint32_t q[2 * kSquares];  // B operand of the running segment
  float step;                // score = sum of accumulators * step + beta
  float beta;
  float raw_max;         // `max` in units of that sum
  int shift;             // V's codes are weighed by p sigma 2^shift
  uint32_t scale_limit;  // bits of the largest sigma, a float16, that this shift allows

  ZC_DEVICE void clear() {
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) o[s][0] = o[s][1] = o[s][2] = o[s][3] = 0.0f;
    max = -INFINITY;
    sum = 0.0f;
    rest = 0.0f;
  }

  // Begins a segment: from the last one's units into its own. In shared memory: its channel
  // parameters, this lane's column (g / 2) of q, and the warp's running segment.
  ZC_DEVICE void enter(const Params& p, Layout next, const uint32_t* params, const uint32_t* query,
                       RunningSegment<kDim>& running, int lane) {
    leave(running, lane);
    fold_keys(p, next, params, query, lane);
    constexpr uint32_t kOnes = 0x3c003c00u;  // float16
    ZC_UNROLL for (int w = lane; w < kDim / 2; w += 32) running.normalisers[w] =
        next.v_quantized() ? params[kDim + w] : kOnes;
    if (lane == 0) running.layout = next.word;
    __syncwarp();
    enter_units(next, running.normalisers, lane);
  }

  // O of the running segment counts in units of its own (V's channel scale, the powers of two of
  // its codes). Here it leaves them.
  ZC_DEVICE void leave(RunningSegment<kDim>& running, int lane) {
    const Layout own{running.layout};
    if (own.word == 0) return;
    const int codes = own.v_quantized() ? 24 : 0;
    const int g = lane >> 2;
    ZC_UNROLL for (int m = 4; m < 32; m *= 2) rest += __shfl_xor_sync(~0u, rest, m);
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const float factor = exp2i(codes - shift - value_shift(own.v_format(), s, hi));
        o[s][2 * hi] =
            normaliser(running.normalisers, 16 * s + 8 * hi + g) * fmaf(o[s][2 * hi], factor, rest);
      }
    }
    rest = 0.0f;
    __syncwarp();  // all of it was read
    if (lane == 0) running.layout = 0;
    __syncwarp();
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
      const int next = 12 - (static_cast<int>(float_to_bits(sigma) >> 23) - 127);
      factor = exp2i(next - shift);
      shift = next;  // weights of this unit lie below 2^13, and may grow to 2^15
      scale_limit = to_f16(exp2i(15 - next)).bits;
    }
    // Not where another column alone has outgrown its maximum: raw_max is rounded, and no column's
    // sums depend on another's.
    const float larger = raw > raw_max ? fmaxf(max, fmaf(raw, step, beta)) : max;
    const float alpha = larger == -INFINITY ? 1.0f : simt::ex2(max - larger);
    max = larger;
    raw_max = fmaxf(raw_max, raw);
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
  // just below 2^15, and what no code takes part in. Even g take the first of the two, odd g the
  // second.
  ZC_DEVICE void fold_keys(const Params& p, Layout next, const uint32_t* params,
                           const uint32_t* query, int lane) {
    const int t = lane & 3;
    const bool quantized = next.k_quantized();
    const float lambda = p.scale * kLog2E;
    // q_c a_c of channels 8 i + 2t and the next. Computed twice: there are no registers to keep
    // them.
    const auto folded = [&](int i) {
      const uint32_t pair = query[4 * i + t];
      float2 x = make_float2(q_value(p, pair), q_value(p, pair >> 16));
      if (quantized) {
        const uint32_t a = params[4 * i + t];
        x.x *= half_at(a, 0);
        x.y *= half_at(a, 1);
      }
      return x;
    };
    float largest = 0.0f;
    float constant = 0.0f;
    ZC_UNROLL for (int i = 0; i < 2 * kSquares; ++i) {
      const float2 x = folded(i);
      largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
      if (quantized) {
        const uint32_t pair = query[4 * i + t];
        const uint32_t b = params[kDim / 2 + 4 * i + t];
        constant = fmaf(q_value(p, pair), half_at(b, 0),
                        fmaf(q_value(p, pair >> 16), half_at(b, 1), constant));
      }
      if (i % 4 == 3) __syncwarp();  // keeps the compiler from loading everything at once
    }
    ZC_UNROLL for (int m = 1; m < 4; m *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, m));
      constant += __shfl_xor_sync(~0u, constant, m);
    }
    // largest in [2^e, 2^(e + 1)) becomes [2^14, 2^15); nothing to scale when it is (nearly) zero
    // or not finite.
    int e = static_cast<int>(float_to_bits(largest) >> 23) - 127;
    e = e < -100 ? -100 : (e > 100 ? 100 : e);
    const int up = 14 - e;
    ZC_UNROLL for (int i = 0; i < 2 * kSquares; ++i) {
      const float factor = exp2i(up - key_shift(next.k_format(), i >> 1, i & 1));
      const float2 whole = folded(i);
      const float x = whole.x * factor;
      const float y = whole.y * factor;
      q[i] = simt::pack2(x, y, f16{});
      if (lane & 4) q[i] = simt::pack2(x - half_at(q[i], 0), y - half_at(q[i], 1), f16{});
    }
    const float own_step = lambda * exp2i(quantized ? 24 - up : -up);
    step = __shfl_sync(~0u, own_step, 8 * t);  // a lane whose g is column t's
    beta = lambda * __shfl_sync(~0u, constant, 8 * t);
    raw_max = (max - beta) * simt::rcp(step);
  }

  ZC_DEVICE void enter_units(Layout next, const uint32_t* normalisers, int lane) {
    const int g = lane >> 2;
    // Float values: weights down to 2^-24 stay normal numbers. Codes: the first unit sets both.
    const bool codes = next.v_quantized();
    shift = codes ? 0 : 10;
    scale_limit = codes ? 0u : 0xffffu;
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const float factor = exp2i((codes ? -24 : 0) + shift + value_shift(next.v_format(), s, hi));
        o[s][2 * hi] *= factor * simt::rcp(normaliser(normalisers, 16 * s + 8 * hi + g));
      }
    }
  }

  ZC_DEVICE static float normaliser(const uint32_t* words, int channel) {
    return to_float(f16{reinterpret_cast<const uint16_t*>(words)[channel]});
  }
};

}  // namespace zc::cuda::mixed
