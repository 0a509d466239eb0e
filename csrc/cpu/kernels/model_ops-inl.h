// The small ops of a transformer layer: each reads its input once and is bound by memory.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int64_t kRowsPerTask = 16;

// Calls body(row) for every row, in tasks large enough to be worth handing to a thread.
template <typename Body>
inline void parallel_rows(const OpContext& ctx, int64_t rows, const Body& body) {
  ctx.threads->parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r)
      body(r);
  });
}

void embedding(const OpContext& ctx, const EmbeddingArgs& a) {
  const int64_t vocab_size = a.weight.size(0);
  const int64_t width = a.out.size(1);
  const int64_t stride = a.weight.size(1);
  const int32_t* ids = a.ids.as<int32_t>();
  for (int64_t i = 0; i < a.ids.size(0); ++i)
    ZC_CHECK(ids[i] >= 0 && ids[i] < vocab_size, ErrorCode::kArgument,
             "ids: token %d, expected 0 to %lld", ids[i], static_cast<long long>(vocab_size - 1));
  dispatch_float(a.weight.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_rows(ctx, a.ids.size(0), [&](int64_t r) {
      float* out = a.out.as<float>() + r * width;
      widen(a.weight.as<T>() + ids[r] * stride + a.first_column(), out, width);
      if (a.scale == 1.0f) return;
      for (int64_t c = 0; c < width; ++c) out[c] *= a.scale;
    });
  });
}

// The sum of squares in double: lane i adds the elements i, i + kLanes, ..., the lanes are added in
// order.
inline double sum_of_squares(const float* x, int64_t n) {
  constexpr int kHalf = kLanes / 2;
  typedef float HalfF __attribute__((vector_size(4 * kHalf)));
  typedef double VecD __attribute__((vector_size(8 * kHalf)));
  VecD lanes[2] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) ZC_UNROLL for (int j = 0; j < 2; ++j) {
      HalfF half;
      std::memcpy(&half, x + i + j * kHalf, sizeof(half));
      const VecD wide = __builtin_convertvector(half, VecD);
      lanes[j] += wide * wide;
    }
  double total = 0.0;
  for (int j = 0; j < kLanes; ++j) total += lanes[j / kHalf][j % kHalf];
  for (; i < n; ++i) total += double{x[i]} * x[i];
  return total;
}

// out = scale (x / sqrt(mean(x^2) + eps) * weight) (arXiv 1910.07467), out being added in the
// brackets where it accumulates.
void rms_norm(const OpContext& ctx, const RmsNormArgs& a) {
  const int64_t width = a.x.size(1);
  float* weight = thread_scratch(1, static_cast<size_t>(width));  // read by all threads
  if (a.weight.defined())
    widen_from(a.weight, 0, weight, width);
  else
    std::fill_n(weight, width, 1.0f);
  parallel_rows(ctx, a.x.size(0), [&](int64_t r) {
    float* x = thread_scratch(0, static_cast<size_t>(width));
    widen_from(a.x, r * width, x, width);
    const double mean = sum_of_squares(x, width) / static_cast<double>(width);
    const float inv = static_cast<float>(1.0 / std::sqrt(mean + a.eps));
    for (int64_t c = 0; c < width; ++c) x[c] = x[c] * inv * weight[c];
    if (a.accumulate) {
      float* before = thread_scratch(2, static_cast<size_t>(width));
      widen_from(a.out, r * width, before, width);
      for (int64_t c = 0; c < width; ++c) x[c] += before[c];
    }
    if (a.scale != 1.0f)
      for (int64_t c = 0; c < width; ++c) x[c] *= a.scale;
    narrow_to(a.out, r * width, x, width);
  });
}

// Angles in float32 (position times inverse frequency), as transformers computes them.
void rope_table(const OpContext& ctx, const RopeTableArgs& a) {
  const int64_t half = a.inv_freq.size(0);
  parallel_rows(ctx, a.positions.size(0), [&](int64_t r) {
    const int32_t position = a.positions.as<int32_t>()[r];
    const float scale = a.attention_scale * query_growth(position, a.growth, a.period);
    for (int64_t i = 0; i < half; ++i) {
      const RopeTurn turn = rope_turn(static_cast<float>(position) * a.inv_freq.as<float>()[i]);
      a.cos.as<float>()[r * half + i] = turn.cos * scale;
      a.sin.as<float>()[r * half + i] = turn.sin * scale;
    }
  });
}

// Channels behind those that turn stay as they are.
void rope(const OpContext& ctx, const RopeArgs& a) {
  const int64_t heads = a.x.size(1);
  const int64_t d = a.x.size(2);
  const int64_t half = a.cos.size(1);
  dispatch_float(a.x.dtype, [&](auto x_type) {
    dispatch_float(a.out.dtype, [&](auto out_type) {
      using X = typename decltype(x_type)::type;
      using Y = typename decltype(out_type)::type;
      parallel_rows(ctx, a.x.size(0), [&](int64_t r) {
        const float* cos = a.cos.as<float>() + r * half;
        const float* sin = a.sin.as<float>() + r * half;
        for (int64_t h = 0; h < heads; ++h) {
          const X* x = a.x.as<X>() + (r * heads + h) * d;
          Y* y = a.out.as<Y>() + (r * heads + h) * d;
          int64_t i = 0;
          for (; i + kLanes <= half; i += kLanes) {  // rope_rotate on every lane
            const VecF first = load(x + i);
            const VecF second = load(x + i + half);
            store(y + i, first * load(cos + i) - second * load(sin + i));
            store(y + i + half, second * load(cos + i) + first * load(sin + i));
          }
          for (; i < half; ++i) {
            const RopePair turned =
                rope_rotate(to_float(x[i]), to_float(x[i + half]), cos[i], sin[i]);
            y[i] = from_float<Y>(turned.first);
            y[i + half] = from_float<Y>(turned.second);
          }
          for (i = 2 * half; i + kLanes <= d; i += kLanes) store(y + i, load(x + i));
          for (; i < d; ++i) y[i] = from_float<Y>(to_float(x[i]));
        }
      });
    });
  });
}

// e^-|g| never overflows: sigmoid(g) = (g < 0 ? e^-|g| : 1) / (1 + e^-|g|).
inline VecF sigmoid(VecF g) {
  const VecF e = exp(g < VecF{} ? g : -g);
  const VecF one = broadcast(1.0f);
  return (g < VecF{} ? e : one) / (one + e);
}

// Without linkage, so that what `gated` makes of them has none.
namespace {

struct Silu {
  VecF operator()(VecF g, VecF u) const { return g * sigmoid(g) * u; }
};

// tanh's form of GELU (arXiv 1606.08415), by (1 + tanh(y)) / 2 = sigmoid(2y).
struct Gelu {
  VecF operator()(VecF g, VecF u) const {
    return g * sigmoid(broadcast(kGeluSlope) * (g + broadcast(kGeluCubic) * g * g * g)) * u;
  }
};

// A comparison with NaN is false, so that NaN stays.
struct ClampedSwiglu {
  VecF alpha, limit;

  VecF operator()(VecF g, VecF u) const {
    g = g > limit ? limit : g;
    u = u > limit ? limit : u;
    u = u < -limit ? -limit : u;
    return (u + broadcast(1.0f)) * (g * sigmoid(alpha * g));
  }
};

}  // namespace

// out = activation(gate, up).
template <typename Activation>
void gated(const OpContext& ctx, const GateArgs& a, Activation activation) {
  const int64_t width = a.gate.size(1);
  dispatch_float(a.gate.dtype, [&](auto type) {
    dispatch_float(a.out.dtype, [&](auto out_type) {
      using T = typename decltype(type)::type;
      using Y = typename decltype(out_type)::type;
      parallel_rows(ctx, a.gate.size(0), [&](int64_t r) {
        const T* gate = a.gate.as<T>() + r * width;
        const T* up = a.up.as<T>() + r * width;
        Y* out = a.out.as<Y>() + r * width;
        int64_t c = 0;
        for (; c + kLanes <= width; c += kLanes)
          store(out + c, activation(load(gate + c), load(up + c)));
        for (; c < width; ++c) {
          const VecF g = broadcast(to_float(gate[c]));
          out[c] = from_float<Y>(activation(g, broadcast(to_float(up[c])))[0]);
        }
      });
    });
  });
}

void silu_gate(const OpContext& ctx, const GateArgs& a) { gated(ctx, a, Silu{}); }
void gelu_gate(const OpContext& ctx, const GateArgs& a) { gated(ctx, a, Gelu{}); }
void clamped_swiglu(const OpContext& ctx, const ClampedSwigluArgs& a) {
  gated(ctx, a.rows(), ClampedSwiglu{broadcast(a.alpha), broadcast(a.limit)});
}

// out = sigmoid(gate) x.
void sigmoid_gate(const OpContext& ctx, const SigmoidGateArgs& a) {
  const int64_t width = a.x.size(1);
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_rows(ctx, a.x.size(0), [&](int64_t r) {
      const float* gate = a.gate.as<float>() + r * width;
      const T* x = a.x.as<T>() + r * width;
      T* out = a.out.as<T>() + r * width;
      int64_t c = 0;
      for (; c + kLanes <= width; c += kLanes)
        store(out + c, sigmoid(load(gate + c)) * load(x + c));
      for (; c < width; ++c)
        out[c] = from_float<T>(sigmoid(broadcast(gate[c]))[0] * to_float(x[c]));
    });
  });
}

inline constexpr int64_t kElementsPerTask = 1 << 16;

inline VecF tanh(VecF y) {
  const VecF z = y * y;
  VecF terms = broadcast(kTanhTerms[0]);
  for (int i = 1; i < 5; ++i) terms = terms * z + broadcast(kTanhTerms[i]);
  const VecF size = y < VecF{} ? -y : y;
  const VecF e = exp(broadcast(-2.0f) * size);
  const VecF one = broadcast(1.0f);
  const VecF far = (one - e) / (one + e);
  const VecF near = y * (one + z * terms);  // -0 stays
  return size < broadcast(kTanhNear) ? near : (y < VecF{} ? -far : far);
}

// out = cap tanh(x / cap).
void soft_cap(const OpContext& ctx, const SoftCapArgs& a) {
  const int64_t n = a.x.length();
  const float* x = a.x.as<float>();
  float* out = a.out.as<float>();
  const VecF cap = broadcast(a.cap);
  ctx.threads->parallel_for((n + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kElementsPerTask);
    int64_t i = task * kElementsPerTask;
    for (; i + kLanes <= end; i += kLanes) store(out + i, cap * tanh(load(x + i) / cap));
    for (; i < end; ++i) out[i] = (cap * tanh(broadcast(x[i]) / cap))[0];
  });
}

// Keeps q and LSE of the rows that are probes, until their window is scored.
void store_probes(const OpContext&, const StoreProbesArgs& a) {
  const int64_t rows = a.slots.size(0);
  const size_t q_bytes = static_cast<size_t>(a.n_heads() * a.head_dim()) * dtype_size(a.q.dtype);
  const size_t lse_bytes = static_cast<size_t>(a.n_heads()) * sizeof(float);
  const auto copy = [](const TensorView& to, int64_t slot, const TensorView& from, int64_t row,
                       size_t bytes) {
    std::memcpy(to.as<uint8_t>() + static_cast<size_t>(slot) * bytes,
                from.as<uint8_t>() + static_cast<size_t>(row) * bytes, bytes);
  };
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t slot = a.slots.as<int32_t>()[r];
    ZC_CHECK(slot >= -1 && slot < a.capacity(), ErrorCode::kArgument,
             "slots: %d, expected -1 to %lld", slot, static_cast<long long>(a.capacity() - 1));
    if (slot < 0) continue;
    for (int64_t layer = 0; layer < a.n_layers(); ++layer) {
      copy(a.probe_q, layer * a.capacity() + slot, a.q, layer * rows + r, q_bytes);
      copy(a.probe_lse, layer * a.capacity() + slot, a.lse, layer * rows + r, lse_bytes);
    }
  }
}

void convert(const OpContext& ctx, const ConvertArgs& a) {
  const int64_t n = a.x.length();
  dispatch_float(a.x.dtype, [&](auto x_type) {
    dispatch_float(a.out.dtype, [&](auto out_type) {
      using X = typename decltype(x_type)::type;
      using Y = typename decltype(out_type)::type;
      ctx.threads->parallel_for((n + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task) {
        const int64_t end = std::min(n, (task + 1) * kElementsPerTask);
        int64_t i = task * kElementsPerTask;
        for (; i + kLanes <= end; i += kLanes) store(a.out.as<Y>() + i, load(a.x.as<X>() + i));
        for (; i < end; ++i) a.out.as<Y>()[i] = from_float<Y>(to_float(a.x.as<X>()[i]));
      });
    });
  });
}

// Codes of n elements, for a scale above 0: weight_code of each.
inline void weight_codes(const float* x, int64_t n, float scale, int8_t* codes) {
  typedef int8_t Codes __attribute__((vector_size(kLanes)));
  const VecF most = broadcast(kWeightLevels);
  const VecF magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VecF code = vmax(-most, vmin(most, load(x + i) / broadcast(scale)));
    const VecF shifted = code + magic;
    VecU bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    const Codes bytes = __builtin_convertvector(bits, Codes);
    std::memcpy(codes + i, &bytes, sizeof(bytes));
  }
  for (; i < n; ++i) codes[i] = static_cast<int8_t>(weight_code(x[i], scale));
}

// int4_code of each lane: adding 1.5 * 2^23 rounds to an integer.
inline VecF int4_codes(VecF w, Int4Params p, VecF inverse) {
  const VecF magic = broadcast(12582912.0f);
  const VecF code = ((w * inverse + magic) - magic) + broadcast(p.zero);
  return vmax(VecF{}, vmin(broadcast(kInt4Levels), code));
}

// The squared error of a group's n elements, in the order that int4_error says.
inline float int4_group_error(const float* w, int64_t n, Int4Params p) {
  constexpr int kVecs = kInt4Words / kLanes;
  const VecF inverse = broadcast(int4_inverse(p));
  VecF sums[kVecs] = {};
  for (int64_t i = 0; i < n; i += kInt4Words) ZC_UNROLL for (int v = 0; v < kVecs; ++v) {
      const VecF own = load(w + i + v * kLanes);
      const VecF error =
          own - (int4_codes(own, p, inverse) - broadcast(p.zero)) * broadcast(p.scale);
      sums[v] += error * error;
    }
  for (int half = kVecs / 2; half > 0; half /= 2)
    for (int v = 0; v < half; ++v) sums[v] += sums[v + half];
  return sum(sums[0]);
}

// A row of a weight in 4 bits: codes, and of each group a scale and a zero. The scale of a group
// with what is no finite number is NaN, its codes and its zero are 0.
inline void quantize_int4_row(const float* w, int64_t k, int64_t group, uint8_t* codes, f16* scales,
                              uint8_t* zeros) {
  auto* plain =
      reinterpret_cast<int32_t*>(thread_scratch(1, static_cast<size_t>(k)));  // a code each
  for (int64_t first = 0; first < k; first += group) {
    const float* own = w + first;
    VecF lo{}, hi{}, poison{};
    for (int64_t i = 0; i < group; i += kLanes) {
      const VecF values = load(own + i);
      lo = vmin(values, lo);
      hi = vmax(values, hi);
      poison += values * broadcast(0.0f);
    }
    const Int4Range range{-max_lane(-lo), max_lane(hi)};
    if (sum(poison) != 0.0f) {  // NaN
      scales[first / group] = to_f16(NAN);
      zeros[first / group] = 0;
      std::memset(plain + first, 0, static_cast<size_t>(group) * sizeof(int32_t));
      continue;
    }
    Int4Params best = int4_params(range, 0);
    float least = int4_group_error(own, group, best);
    for (int candidate = 1; candidate < kInt4Candidates; ++candidate) {
      const Int4Params p = int4_params(range, candidate);
      const float error = int4_group_error(own, group, p);
      if (!(error < least)) continue;
      best = p;
      least = error;
    }
    scales[first / group] = to_f16(best.scale);  // exact
    zeros[first / group] = static_cast<uint8_t>(best.zero);
    const VecF inverse = broadcast(int4_inverse(best));
    for (int64_t i = 0; i < group; i += kLanes) {
      const VecI own =
          __builtin_convertvector(int4_codes(load(w + first + i), best, inverse), VecI);
      std::memcpy(plain + first + i, &own, sizeof(own));
    }
  }
  for (int64_t unit = 0; unit < k; unit += kInt4Unit)
    for (int l = 0; l < kInt4Words; ++l) {
      int32_t word = 0;
      for (int i = l; i < kInt4Unit; i += kInt4Words) word |= plain[unit + i] << int4_shift(i);
      codes[unit / 2 + 2 * l] = static_cast<uint8_t>(word);  // the low byte first
      codes[unit / 2 + 2 * l + 1] = static_cast<uint8_t>(word >> 8);
    }
}

// A row of a weight in 8 bits: codes and a scale, which is NaN where the row holds what is no
// finite number.
inline float quantize_int8_row(const float* w, int64_t k, int8_t* codes) {
  const float scale = weight_scale(largest_magnitude(w, k));
  if (scale > 0.0f)
    weight_codes(w, k, scale, codes);
  else
    std::memset(codes, 0, static_cast<size_t>(k));
  return scale;
}

void quantize_weight(const OpContext& ctx, const QuantizeWeightArgs& a) {
  const int64_t k = a.x.size(1);
  parallel_rows(ctx, a.x.size(0), [&](int64_t r) {
    float* w = thread_scratch(0, static_cast<size_t>(k));
    widen_from(a.x, r * k, w, k);
    if (a.out.dtype == DType::kI8) {
      a.scales.as<float>()[r] = quantize_int8_row(w, k, a.out.as<int8_t>() + r * k);
      return;
    }
    const int64_t groups = a.scales.size(1);
    quantize_int4_row(w, k, a.group(), a.out.as<uint8_t>() + r * (k / 2),
                      a.scales.as<f16>() + r * groups, a.zeros.as<uint8_t>() + r * groups);
  });
}

void gather_rows(const OpContext& ctx, const GatherRowsArgs& a) {
  const size_t row_bytes = static_cast<size_t>(a.x.size(1)) * dtype_size(a.x.dtype);
  const int32_t* rows = a.rows.as<int32_t>();
  for (int64_t i = 0; i < a.rows.size(0); ++i)
    ZC_CHECK(rows[i] >= 0 && rows[i] < a.x.size(0), ErrorCode::kArgument,
             "rows: %d, expected 0 to %lld", rows[i], static_cast<long long>(a.x.size(0) - 1));
  parallel_rows(ctx, a.rows.size(0), [&](int64_t r) {
    std::memcpy(a.out.as<uint8_t>() + static_cast<size_t>(r) * row_bytes,
                a.x.as<uint8_t>() + static_cast<size_t>(rows[r]) * row_bytes, row_bytes);
  });
}

void count_non_finite(const OpContext& ctx, const CountNonFiniteArgs& a) {
  const int64_t n = a.x.length();
  std::atomic<int64_t> total{0};
  dispatch_float(a.x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ctx.threads->parallel_for((n + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task) {
      int64_t count = 0;
      for (int64_t i = task * kElementsPerTask; i < std::min(n, (task + 1) * kElementsPerTask); ++i)
        count += (float_to_bits(to_float(a.x.as<T>()[i])) & 0x7f800000u) == 0x7f800000u;
      total.fetch_add(count, std::memory_order_relaxed);
    });
  });
  a.count.as<int32_t>()[0] = static_cast<int32_t>(std::min<int64_t>(total.load(), INT32_MAX));
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
