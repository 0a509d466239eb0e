// The ops of a decode step around attention.
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "csrc/math/float4_weight.h"
#include "test/emu/ops/op_run.h"

namespace zc::test {

namespace {

std::string pair_name(const char* op, DType in, DType out) {
  return std::string(op) + " " + dtype_name(in) + " to " + dtype_name(out);
}

template <typename Op>
void add_gate_tests(const char* name, Op op, double of_largest) {
  for (const DType in : kFloatDTypes)
    for (const DType out : kFloatDTypes)
      add_op_test(pair_name(name, in, out), [=](OpRun& run) {
        for (const int64_t width : {0, 1, 8, 37, 1031}) {
          if (width == 8) run.aligned();
          run.op(op, GateArgs{run.normals(in, {3, width}, 4), run.normals(in, {3, width}),
                              run.result("out", out, {3, width}, one_rounding(out, of_largest))});
        }
      });
}

ZC_OP_TESTS(gate_tests) {
  add_gate_tests("silu_gate", &Backend::silu_gate, 2e-6);
  add_gate_tests("gelu_gate", &Backend::gelu_gate, 3e-6);
  for (const DType in : kFloatDTypes)
    for (const DType out : kFloatDTypes)
      add_op_test(pair_name("clamped_swiglu", in, out), [=](OpRun& run) {
        for (const int64_t width : {0, 1, 8, 37, 1031}) {
          if (width == 8) run.aligned();
          run.op(&Backend::clamped_swiglu,
                 ClampedSwigluArgs{run.normals(in, {3, width}, 4), run.normals(in, {3, width}, 4),
                                   run.result("out", out, {3, width}, one_rounding(out, 2e-6)),
                                   1.702f, 5.0f});
        }
      });
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("sigmoid_gate ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t width : {0, 1, 8, 37, 1031}) {
        if (width == 8) run.aligned();
        run.op(
            &Backend::sigmoid_gate,
            SigmoidGateArgs{run.normals(DType::kF32, {3, width}, 4), run.normals(dtype, {3, width}),
                            run.result("out", dtype, {3, width}, one_rounding(dtype, 2e-6))});
      }
    });
}

ZC_OP_TESTS(soft_cap_tests) {
  add_op_test("soft_cap", [](OpRun& run) {
    for (const int64_t width : {0, 1, 8, 37, 1031}) {
      if (width == 8) run.aligned();
      run.op(&Backend::soft_cap,
             SoftCapArgs{run.normals(DType::kF32, {3, width}, 40),
                         run.result("out", DType::kF32, {3, width}, {2e-6, 0}), 30.0f});
    }
  });
}

ZC_OP_TESTS(rms_norm_tests) {
  for (const DType in : kFloatDTypes)
    for (const DType out : kFloatDTypes)
      add_op_test(pair_name("rms_norm", in, out), [=](OpRun& run) {
        for (const int64_t width : {1, 33, 64, 1000, 4100}) {
          if (width == 64) run.aligned();
          const TensorView sum = run.result("out", out, {3, width}, one_rounding(out, 3e-6));
          for (const bool accumulate : {false, true})
            run.op(&Backend::rms_norm,
                   RmsNormArgs{run.normals(in, {3, width}), run.normals(in, {width}), sum, 1e-5f,
                               accumulate, 1.0f});
          run.op(&Backend::rms_norm,
                 RmsNormArgs{run.normals(in, {3, width}), TensorView{}, sum, 1e-5f, true, -0.5f});
        }
      });
}

ZC_OP_TESTS(rope_tests) {
  for (const DType in : kFloatDTypes)
    for (const DType out : kFloatDTypes)
      add_op_test(pair_name("rope", in, out), [=](OpRun& run) {
        const int64_t shapes[][2] = {{2, 2},    {32, 32}, {96, 96}, {256, 256},
                                     {128, 96}, {16, 6},  {64, 0}};
        for (const auto& [head_dim, rotary_dim] : shapes) {
          if (head_dim == 96) run.aligned();
          const int64_t n = 5;
          std::vector<int32_t> positions;
          for (int i = 0; i < n; ++i)
            positions.push_back(static_cast<int32_t>(run.random().below(9000)));
          const TensorView cos = run.result("cos", DType::kF32, {n, rotary_dim / 2}, {5e-7, 1});
          const TensorView sin = run.result("sin", DType::kF32, {n, rotary_dim / 2}, {5e-7, 1});
          run.op(&Backend::rope_table,
                 RopeTableArgs{run.ints(positions),
                               run.floats(DType::kF32, {rotary_dim / 2},
                                          [&](int64_t i) {
                                            return std::pow(10000.0f, -2.0f * i / rotary_dim);
                                          }),
                               cos, sin, 1.0f, rotary_dim == 96 ? 0.1f : 0.0f, 700});
          run.op(&Backend::rope,
                 RopeArgs{run.normals(in, {n, 3, head_dim}), cos, sin,
                          run.result("out", out, {n, 3, head_dim}, one_rounding(out, 2e-6))});
        }
      });
}

// A few rows of an expert, some and many, by kernels of their own each.
void expert_test(DType x, DType weight, int64_t m, int64_t k, int n_experts, int n_chosen) {
  const std::string name = format("expert_linear %s times %s, %lld rows of %lld, %d of %d",
                                  dtype_name(x), dtype_name(weight), static_cast<long long>(m),
                                  static_cast<long long>(k), n_chosen, n_experts);
  add_op_test(name, [=](OpRun& run) {
    const int64_t n = 67;
    const int64_t n_pairs = m * n_chosen;
    if (k % 16 == 0) run.aligned();
    const TensorView weights = run.result("weights", DType::kF32, {m, n_chosen}, {2e-6, 0});
    const TensorView experts = run.result("experts", DType::kI32, {m, n_chosen});
    const TensorView pairs = run.result("pairs", DType::kI32, {n_pairs});
    const TensorView offsets = run.result("offsets", DType::kI32, {n_experts + 1});
    const TensorView y = run.scratch(DType::kF32, {n_pairs, n});
    run.op(&Backend::route_experts,
           RouteExpertsArgs{
               run.normals(DType::kF32, {m, n_experts}, 3),
               n_experts > 3 ? run.normals(DType::kF32, {n_experts}, 0.5f) : TensorView{},
               n_experts > 4 ? run.normals(DType::kF32, {n_experts}) : TensorView{}, weights,
               experts, pairs, offsets, n_chosen == 3, n_chosen % 2 == 0, 1e-3f, 1.5f});
    run.op(&Backend::expert_linear,
           ExpertLinearArgs{run.normals(x, {m, k}), run.normals(weight, {n_experts, n, k}),
                            TensorView{}, TensorView{}, run.normals(x, {n_experts, n}), pairs,
                            offsets, y});
    const TensorView sum = run.normals(DType::kF32, {m, n});
    run.compare("sum", sum, {1e-5, 1e-3});
    run.op(&Backend::add_experts, AddExpertsArgs{y, weights, sum, true});
    run.op(
        &Backend::add_experts,
        AddExpertsArgs{y, weights, run.result("alone", DType::kF32, {m, n}, {1e-5, 1e-3}), false});
  });
}
ZC_OP_TESTS(expert_tests) {
  for (const DType x : kFloatDTypes)
    for (const DType weight : kFloatDTypes) {
      expert_test(x, weight, 3, 83, 5, 2);
      expert_test(x, weight, 70, 128, 5, 3);
    }
  expert_test(DType::kBF16, DType::kBF16, 1, 1160, 40, 8);
  expert_test(DType::kBF16, DType::kBF16, 200, 64, 3, 2);
}

ZC_OP_TESTS(embedding_tests) {
  for (const DType dtype : kFloatDTypes) {
    add_op_test(std::string("embedding ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t width : {1, 7, 64, 300}) {
        if (width == 64) run.aligned();
        run.op(&Backend::embedding,
               EmbeddingArgs{run.ints({0, 12, 3, 3, 12}), run.normals(dtype, {13, width}),
                             run.result("out", DType::kF32, {5, width}), width == 7 ? 8.5f : 1.0f,
                             -1});
      }
      run.op(&Backend::embedding, EmbeddingArgs{run.ints({2, 0}), run.normals(dtype, {3, 40}),
                                                run.result("some", DType::kF32, {2, 7}), 1.0f, 32});
    });
  }
  add_op_test("embedding of no token", [](OpRun& run) {
    run.expects_failure();
    run.op(&Backend::embedding, EmbeddingArgs{run.ints({0, 13}), run.normals(DType::kF32, {13, 8}),
                                              run.result("out", DType::kF32, {2, 8}), 1.0f, -1});
  });
}

void linear_test(DType x, DType weight, DType out, Shape mnk, bool bias, bool accumulates,
                 std::vector<int> ordinals = {0}) {
  const std::string name =
      format("linear %s times %s to %s, (%lld, %lld, %lld)%s%s", dtype_name(x), dtype_name(weight),
             dtype_name(out), static_cast<long long>(mnk[0]), static_cast<long long>(mnk[1]),
             static_cast<long long>(mnk[2]), bias ? ", bias" : "", accumulates ? ", added" : "");
  add_op_test(
      name,
      [=](OpRun& run) {
        const int64_t m = mnk[0], n = mnk[1], k = mnk[2];
        if (k % 16 == 0) run.aligned();
        const TensorView to = accumulates ? run.normals(out, {m, n}, 3) : run.scratch(out, {m, n});
        run.compare("out", to,
                    out == DType::kF32 ? Tolerance{1e-5, 1e-3} : one_rounding(out, 1e-4));
        run.op(&Backend::linear,
               LinearArgs{run.normals(x, {m, k}), run.normals(weight, {n, k}), TensorView{},
                          TensorView{}, bias ? run.normals(weight, {n}) : TensorView{}, to,
                          accumulates});
      },
      ordinals);
}
// Codes of 8 bits, and the scales of their rows.
TensorView codes(OpRun& run, const Shape& shape) {
  TensorView out = run.bytes(
      shape, [&](int64_t) { return static_cast<uint8_t>(run.random().below(255) - 127); });
  out.dtype = DType::kI8;
  return out;
}
TensorView code_scales(OpRun& run, int64_t n) {
  return run.floats(DType::kF32, {n},
                    [&](int64_t) { return (1.0f + std::fabs(run.normal())) / 73.0f; });
}

void linear_codes_test(DType x, DType out, Shape mnk, bool bias, bool accumulates) {
  add_op_test(
      format("linear %s times codes to %s, (%lld, %lld, %lld)%s%s", dtype_name(x), dtype_name(out),
             static_cast<long long>(mnk[0]), static_cast<long long>(mnk[1]),
             static_cast<long long>(mnk[2]), bias ? ", bias" : "", accumulates ? ", added" : ""),
      [=](OpRun& run) {
        const int64_t m = mnk[0], n = mnk[1], k = mnk[2];
        if (k % 16 == 0) run.aligned();
        const TensorView to = accumulates ? run.normals(out, {m, n}, 3) : run.scratch(out, {m, n});
        // A CPU rounds x to 16 bits.
        run.compare("out", to,
                    out == DType::kF32 ? Tolerance{1e-4, 1e-1} : one_rounding(out, 1e-3));
        run.op(
            &Backend::linear,
            LinearArgs{run.normals(x, {m, k}), codes(run, {n, k}), code_scales(run, n),
                       TensorView{}, bias ? run.normals(x, {n}) : TensorView{}, to, accumulates});
      },
      {0, 1});
}

ZC_OP_TESTS(linear_codes_tests) {
  for (const DType x : kFloatDTypes) {
    linear_codes_test(x, DType::kF32, {3, 17, 40}, true, false);
    linear_codes_test(x, x, {5, 125, 1104}, true, true);
    linear_codes_test(x, DType::kF32, {11, 187, 83}, false, true);
    linear_codes_test(x, x, {70, 36, 2112}, true, false);
    linear_codes_test(x, DType::kF32, {260, 200, 80}, false, true);
    linear_codes_test(x, DType::kF32, {4, 5, 0}, true, false);
    linear_codes_test(x, DType::kF32, {20, 5, 0}, true, false);
  }
  // More codes than are widened at a time: 256 columns, and 40 more.
  linear_codes_test(DType::kBF16, DType::kBF16, {17, 296, 1000}, true, true);
  for (const DType x : kFloatDTypes)
    for (const int64_t k : {7, 1100, 4096})
      add_op_test(
          format("quantize_weight %s, rows of %lld", dtype_name(x), static_cast<long long>(k)),
          [=](OpRun& run) {
            if (k % 16 == 0) run.aligned();
            TensorView out = run.scratch(DType::kU8, {5, k});
            run.compare("codes", out);
            const TensorView scales = run.result("scales", DType::kF32, {5});
            const TensorView weight = run.normals(x, {5, k}, 0.1f);
            out.dtype = DType::kI8;
            run.op(&Backend::quantize_weight,
                   QuantizeWeightArgs{weight, out, scales, TensorView{}});
          },
          {0, 1});
}

// A weight of 4 bits, of integers by their groups or of float4. Scales have four bits, so that no
// backend rounds a value.
struct NibbleWeight {
  TensorView codes;
  TensorView scales;
  TensorView zeros;
};
constexpr int64_t kFloat4 = 0;  // for a group
NibbleWeight nibbles(OpRun& run, Shape shape, int64_t group) {
  const int64_t k = shape.back();
  shape.back() = k / 2;
  const TensorView codes =
      run.bytes(shape, [&](int64_t) { return static_cast<uint8_t>(run.random().below(256)); });
  if (group == kFloat4) {
    shape.back() = k / kFloat4Group;
    return {codes,
            run.bytes(shape,
                      [&](int64_t) { return static_cast<uint8_t>(122 + run.random().below(5)); }),
            TensorView{}};
  }
  shape.back() = k / group;
  const TensorView scales = run.floats(DType::kF16, shape, [&](int64_t) {
    return static_cast<float>(8 + run.random().below(8)) / 128.0f;
  });
  return {codes, scales,
          run.bytes(shape, [&](int64_t) { return static_cast<uint8_t>(run.random().below(16)); })};
}

std::string group_name(int64_t group) {
  return group == kFloat4 ? " of float4" : format(" by %lld", static_cast<long long>(group));
}

struct NibbleShape {
  int64_t m;
  int64_t n;
  int64_t k;
  int64_t group;
};
void linear_nibbles_test(DType x, DType out, NibbleShape shape, bool bias, bool aligned) {
  const auto [m, n, k, group] = shape;
  add_op_test(
      format("linear %s times nibbles to %s, (%lld, %lld, %lld)%s%s", dtype_name(x),
             dtype_name(out), static_cast<long long>(m), static_cast<long long>(n),
             static_cast<long long>(k), group_name(group).c_str(), aligned ? ", aligned" : ""),
      [=](OpRun& run) {
        if (aligned) run.aligned();
        const TensorView to = run.normals(out, {m, n}, 3);
        // A CPU rounds x to 16 bits.
        run.compare("out", to,
                    out == DType::kF32 ? Tolerance{1e-4, 1e-1} : one_rounding(out, 1e-3));
        const TensorView rows = run.normals(x, {m, k});
        const NibbleWeight weight = nibbles(run, {n, k}, group);
        run.op(&Backend::linear, LinearArgs{rows, weight.codes, weight.scales, weight.zeros,
                                            bias ? run.normals(x, {n}) : TensorView{}, to, bias});
      },
      {0, 1});
}

ZC_OP_TESTS(linear_nibbles_tests) {
  for (const DType x : kFloatDTypes) {
    linear_nibbles_test(x, DType::kF32, {3, 17, 64, 32}, true, false);
    linear_nibbles_test(x, x, {5, 125, 1152, 128}, true, true);
    linear_nibbles_test(x, DType::kF32, {11, 187, 192, 32}, false, true);
    linear_nibbles_test(x, DType::kF32, {1, 33, 2112, 64}, false, false);
    linear_nibbles_test(x, DType::kF32, {2, 19, 4224, 128}, false, true);  // parts within groups
    linear_nibbles_test(x, x, {70, 36, 2112, 64}, true, true);
    linear_nibbles_test(x, DType::kF32, {60, 40, 192, 32}, false, false);
    linear_nibbles_test(x, DType::kF32, {260, 200, 128, 128}, false, true);
    linear_nibbles_test(x, DType::kF32, {3, 17, 64, kFloat4}, true, false);
    linear_nibbles_test(x, x, {5, 125, 1152, kFloat4}, true, true);
    linear_nibbles_test(x, DType::kF32, {11, 187, 192, kFloat4}, false, true);
    linear_nibbles_test(x, DType::kF32, {1, 33, 2112, kFloat4}, false, false);
    linear_nibbles_test(x, x, {70, 36, 2112, kFloat4}, true, true);
  }
  // More codes than are widened at a time: 256 columns, and 40 more.
  linear_nibbles_test(DType::kBF16, DType::kBF16, {17, 296, 1024, 32}, true, true);

  for (const DType x : kFloatDTypes) {
    add_op_test(format("grouped_linear %s times nibbles", dtype_name(x)), [=](OpRun& run) {
      const int64_t k = 256;
      const TensorView rows = run.normals(x, {4, k});
      const auto product = [&](const char* name, int64_t n, int64_t group) {
        const NibbleWeight weight = nibbles(run, {n, k}, group);
        return GroupedLinearArgs::Product{
            weight.codes, weight.scales, weight.zeros, TensorView{},
            run.result(name, DType::kF32, {4, n}, Tolerance{1e-4, 1e-1})};
      };
      run.op(&Backend::grouped_linear,
             GroupedLinearArgs{rows, {product("q", 40, 32), product("k", 17, 128)}, 2});
      run.op(
          &Backend::grouped_linear,
          GroupedLinearArgs{rows, {product("up", 40, kFloat4), product("down", 17, kFloat4)}, 2});
    });
    for (const auto& [m, group] : std::vector<std::pair<int64_t, int64_t>>{
             {3, 64}, {40, 64}, {170, 64}, {3, kFloat4}, {40, kFloat4}, {170, kFloat4}})
      add_op_test(format("expert_linear %s times nibbles%s, %lld rows", dtype_name(x),
                         group_name(group).c_str(), static_cast<long long>(m)),
                  [x, m = m, group = group](OpRun& run) {
                    // So many rows that codes are widened, those of 256 columns at a time.
                    const int64_t n = m > 64 ? 300 : 67;
                    const int64_t k = 320, n_experts = 5, n_chosen = 2, n_pairs = m * n_chosen;
                    if (m == 3) run.aligned();
                    const TensorView weights = run.scratch(DType::kF32, {m, n_chosen});
                    const TensorView experts = run.scratch(DType::kI32, {m, n_chosen});
                    const TensorView pairs = run.scratch(DType::kI32, {n_pairs});
                    const TensorView offsets = run.scratch(DType::kI32, {n_experts + 1});
                    run.op(&Backend::route_experts,
                           RouteExpertsArgs{run.normals(DType::kF32, {m, n_experts}, 3),
                                            TensorView{}, TensorView{}, weights, experts, pairs,
                                            offsets, false, false, 0.0f, 1.0f});
                    const TensorView rows = run.normals(x, {m, k});
                    const NibbleWeight weight = nibbles(run, {n_experts, n, k}, group);
                    run.op(
                        &Backend::expert_linear,
                        ExpertLinearArgs{
                            rows, weight.codes, weight.scales, weight.zeros,
                            run.normals(DType::kF16, {n_experts, n}), pairs, offsets,
                            run.result("out", DType::kF32, {n_pairs, n}, Tolerance{1e-4, 1e-1})});
                  },
                  {0, 1});
    for (const int64_t group : {32, 64, 128})
      add_op_test(format("quantize_weight %s to nibbles by %lld", dtype_name(x),
                         static_cast<long long>(group)),
                  [=](OpRun& run) {
                    const int64_t n = 5, k = 640;
                    run.op(&Backend::quantize_weight,
                           QuantizeWeightArgs{run.normals(x, {n, k}, 0.1f),
                                              run.result("codes", DType::kU8, {n, k / 2}),
                                              run.result("scales", DType::kF16, {n, k / group}),
                                              run.result("zeros", DType::kU8, {n, k / group})});
                  },
                  {0, 1});
  }
}

ZC_OP_TESTS(linear_tests) {
  for (const DType x : kFloatDTypes)
    for (const DType weight : kFloatDTypes)
      linear_test(x, weight, DType::kF32, {3, 17, 40}, true, false);
  for (const DType out : {DType::kF16, DType::kBF16}) {
    linear_test(DType::kF32, DType::kF16, out, {2, 33, 64}, false, true);
    linear_test(out, out, out, {65, 70, 96}, true, true);
  }
  for (const DType dtype : kFloatDTypes) {
    linear_test(dtype, dtype, DType::kF32, {1, 129, 513}, false, false);
    linear_test(dtype, dtype, DType::kF32, {17, 64, 1024}, false, true);
    linear_test(dtype, dtype, DType::kF32, {130, 65, 128}, false, false);
    linear_test(dtype, dtype, DType::kF32, {4, 5, 0}, true, false);
  }
  // A few rows in tiles of 32 and 48 columns, more panels than are on their way, two parts of k.
  for (const DType x : kFloatDTypes)
    for (const DType weight : {DType::kF16, DType::kBF16}) {
      linear_test(x, weight, DType::kF32, {5, 125, 1096}, true, true, {0, 1});
      linear_test(x, weight, DType::kF32, {3, 187, 1096}, false, false);
      linear_test(x, weight, DType::kF32, {11, 187, 83}, false, true);
    }
  // Prompts, which Hopper multiplies in tiles of its own: of 128 and 256 columns, with parts of k
  // in one block and in several, more tiles than multiprocessors, rows of one to three planes.
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const auto prompt_test = [&](DType x, DType out, Shape mnk, bool bias, bool accumulates) {
      linear_test(x, dtype, out, mnk, bias, accumulates, {0, 1});
    };
    prompt_test(dtype, dtype, {70, 36, 2112}, true, false);
    prompt_test(dtype, DType::kF32, {600, 130, 48}, true, true);
    prompt_test(dtype, dtype, {260, 200, 2112}, true, true);
    prompt_test(dtype, DType::kF32, {1040, 203, 80}, false, false);
    prompt_test(DType::kF32, dtype, {50, 140, 2112}, true, true);
    prompt_test(DType::kF32, DType::kF32, {135, 250, 1088}, false, false);
  }
}

ZC_OP_TESTS(grouped_linear_tests) {
  for (const DType x : kFloatDTypes)
    add_op_test(format("grouped_linear %s times codes", dtype_name(x)), [=](OpRun& run) {
      const int64_t k = 80;
      const auto product = [&](const char* name, int64_t n) {
        return GroupedLinearArgs::Product{
            codes(run, {n, k}), code_scales(run, n), TensorView{}, TensorView{},
            run.result(name, DType::kF32, {4, n}, Tolerance{1e-4, 1e-1})};
      };
      run.op(&Backend::grouped_linear,
             GroupedLinearArgs{run.normals(x, {4, k}), {product("q", 40), product("k", 17)}, 2});
    });
  for (const DType x : kFloatDTypes)
    for (const DType weight : kFloatDTypes)
      for (const int64_t m : {1, 6, 17})
        add_op_test(format("grouped_linear %s times %s, %lld rows", dtype_name(x),
                           dtype_name(weight), static_cast<long long>(m)),
                    [=](OpRun& run) {
                      const int64_t k = 72;
                      const auto product = [&](const char* name, int64_t n, DType out, bool bias) {
                        return GroupedLinearArgs::Product{
                            run.normals(weight, {n, k}), TensorView{}, TensorView{},
                            bias ? run.normals(weight, {n}) : TensorView{},
                            run.result(name, out, {m, n},
                                       out == DType::kF32 ? Tolerance{1e-5, 1e-3}
                                                          : one_rounding(out, 1e-4))};
                      };
                      run.op(&Backend::grouped_linear,
                             GroupedLinearArgs{run.normals(x, {m, k}),
                                               {product("q", 40, DType::kF32, true),
                                                product("k", 17, DType::kF32, false),
                                                product("v", 16, DType::kF16, false)},
                                               3});
                    });
}

// One row of sampling parameters; integers as bits of floats.
struct SampleRow {
  float temperature, top_p, min_p, repetition_penalty;
  uint32_t top_k, seed_low, seed_high, step;
};
ZC_OP_TESTS(sample_tests) {
  const std::vector<std::pair<const char*, SampleRow>> settings = {
      {"greedy", {0, 1, 0, 1, 0, 1, 2, 3}},
      {"at temperature 1", {1, 1, 0, 1, 0, 5, 6, 7}},
      {"top 5", {0.8f, 1, 0, 1, 5, 8, 9, 1}},
      {"top p", {1.2f, 0.6f, 0, 1, 0, 8, 9, 2}},
      {"min p", {1, 1, 0.2f, 1, 0, 8, 9, 3}},
      {"all, penalized", {0.9f, 0.9f, 0.05f, 1.3f, 40, 8, 9, 4}},
  };
  for (const auto& [name, row] : settings)
    add_op_test(std::string("sample ") + name, [row = row](OpRun& run) {
      for (const int64_t vocabulary : {1, 33, 1000, 5003}) {
        const int64_t n = 3;
        std::vector<float> numbers;
        for (int r = 0; r < n; ++r) {
          SampleRow own = row;
          own.step += static_cast<uint32_t>(r);
          numbers.resize(numbers.size() + kSampleParams);
          std::memcpy(numbers.data() + r * kSampleParams, &own, sizeof(own));
        }
        // Bits that are no number must survive: as integers.
        std::vector<int32_t> words(numbers.size());
        std::memcpy(words.data(), numbers.data(), words.size() * 4);
        TensorView params = run.ints(words, {n, kSampleParams});
        params.dtype = DType::kF32;
        const TensorView seen = run.bytes({2, vocabulary}, [&](int64_t) {
          return static_cast<uint8_t>(run.random().below(4) == 0);
        });
        run.compare("seen", seen);
        run.op(&Backend::sample,
               SampleArgs{run.normals(DType::kF32, {n, vocabulary}, 3), params, seen,
                          run.ints({1, -1, 0}), run.result("ids", DType::kI32, {n}),
                          run.result("logprobs", DType::kF32, {n}, {2e-5, 1})});
      }
    });
  add_op_test("sample of NaN", [](OpRun& run) {
    SampleRow row = {1, 1, 0, 1, 0, 1, 2, 3};
    std::vector<int32_t> words(2 * kSampleParams);
    for (int r = 0; r < 2; ++r) std::memcpy(words.data() + r * kSampleParams, &row, sizeof(row));
    TensorView params = run.ints(words, {2, kSampleParams});
    params.dtype = DType::kF32;
    run.op(&Backend::sample,
           SampleArgs{run.floats(DType::kF32, {2, 100},
                                 [&](int64_t i) { return i == 150 ? NAN : run.normal(); }),
                      params, run.bytes({1, 100}, [](int64_t) { return 0; }), run.ints({-1, -1}),
                      run.result("ids", DType::kI32, {2}),
                      run.result("logprobs", DType::kF32, {2}, {2e-5, 1})});
  });
}

ZC_OP_TESTS(feed_tokens_tests) {
  add_op_test("feed_tokens", [](OpRun& run) {
    run.op(&Backend::feed_tokens,
           FeedTokensArgs{run.ints({10, 11, 12}), run.ints({-1, 2, 0, -1, 1}),
                          run.ints({5, 6, 7, 8, 9}), run.result("out", DType::kI32, {5})});
  });
  add_op_test("feed_tokens from nowhere", [](OpRun& run) {
    run.expects_failure();
    run.op(&Backend::feed_tokens,
           FeedTokensArgs{run.ints({10, 11, 12}), run.ints({-1, 3}), run.ints({5, 6}),
                          run.result("out", DType::kI32, {2})});
  });
}

ZC_OP_TESTS(convert_tests) {
  for (const DType in : kFloatDTypes)
    for (const DType out : kFloatDTypes)
      add_op_test(pair_name("convert", in, out), [=](OpRun& run) {
        for (const int64_t n : {0, 1, 31, 32, 1031}) {
          if (n == 32) run.aligned();
          run.op(&Backend::convert,
                 ConvertArgs{run.normals(in, {n}, 1e4f), run.result("out", out, {n})});
        }
      });
}

ZC_OP_TESTS(gather_rows_tests) {
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("gather_rows ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t width : {1, 7, 64}) {
        if (width == 64) run.aligned();
        run.op(&Backend::gather_rows,
               GatherRowsArgs{run.normals(dtype, {9, width}), run.ints({8, 0, 3, 3}),
                              run.result("out", dtype, {4, width})});
      }
    });
  add_op_test("gather_rows beyond", [](OpRun& run) {
    run.expects_failure();
    run.op(&Backend::gather_rows, GatherRowsArgs{run.normals(DType::kF32, {9, 5}), run.ints({8, 9}),
                                                 run.result("out", DType::kF32, {2, 5})});
  });
}

ZC_OP_TESTS(restore_outliers_tests) {
  const auto places = [](OpRun& run, int64_t lines, int64_t n, int64_t first) {
    return run.bytes({lines, n, 2}, [=](int64_t i) {
      const int64_t place = first + (i / 2) % n;
      return static_cast<uint8_t>(i % 2 == 0 ? place % 256 : place / 256);
    });
  };
  for (const DType dtype : kFloatDTypes)
    for (const bool channelwise : {false, true})
      add_op_test(std::string("restore_outliers ") + dtype_name(dtype), [=](OpRun& run) {
        const int64_t lines = channelwise ? 5 : 300;
        const TensorView out = run.normals(dtype, {300, 5});
        run.op(&Backend::restore_outliers,
               RestoreOutliersArgs{run.normals(DType::kF16, {lines, 3}),
                                   places(run, lines, 3, channelwise ? 254 : 2), out, channelwise});
        run.compare("out", out);
      });
  add_op_test("restore_outliers beyond", [=](OpRun& run) {
    run.expects_failure();
    run.op(&Backend::restore_outliers,
           RestoreOutliersArgs{run.normals(DType::kF16, {4, 2}), places(run, 4, 2, 3),
                               run.normals(DType::kF32, {4, 4}), false});
  });
}

ZC_OP_TESTS(count_non_finite_tests) {
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("count_non_finite ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t n : {0, 1, 255, 70000}) {
        const TensorView x = run.floats(dtype, {n}, [&](int64_t i) {
          return i % 97 == 3 ? NAN : i % 211 == 5 ? -INFINITY : run.normal();
        });
        run.op(&Backend::count_non_finite,
               CountNonFiniteArgs{x, run.result("count", DType::kI32, {1})});
      }
    });
}

ZC_OP_TESTS(roofline_tests) {
  add_op_test("read_stream", [](OpRun& run) {
    for (const int64_t n : {0, 5, 4097}) {
      std::vector<int32_t> x;
      for (int64_t i = 0; i < n; ++i) x.push_back(static_cast<int32_t>(run.random().next()));
      run.op(&Backend::read_stream,
             ReadStreamArgs{run.ints(x, {n}), run.result("out", DType::kI32, {8})});
    }
  });
  add_op_test("multiply_add", [](OpRun& run) {
    run.op(&Backend::multiply_add,
           MultiplyAddArgs{run.normals(DType::kF32, {3, 100}),
                           run.result("out", DType::kF32, {3, 100}, {2e-6, 1}), 0.5f, 0.25f, 12});
  });
}

ZC_OP_TESTS(merge_attention_tests) {
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("merge_attention ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t head_dim : {16, 32, 96, 256}) {
        if (head_dim == 96) run.aligned();
        const Shape shape = {5, 3, head_dim};
        const auto lse = [&] {
          return run.floats(DType::kF32, {5, 3},
                            [&](int64_t i) { return i % 5 == 2 ? -INFINITY : 5 * run.normal(); });
        };
        const TensorView lse_a = lse();
        const TensorView lse_b = lse();
        run.op(&Backend::merge_attention,
               MergeAttentionArgs{run.normals(dtype, shape), lse_a, run.normals(dtype, shape),
                                  lse_b, run.result("out", dtype, shape, one_rounding(dtype)),
                                  run.result("lse", DType::kF32, {5, 3}, {2e-6, 1})});
      }
    });
}

ZC_OP_TESTS(attention_sinks_tests) {
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("attention_sinks ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t head_dim : {16, 32, 96, 256}) {
        if (head_dim == 96) run.aligned();
        const Shape shape = {5, 3, head_dim};
        const TensorView out = run.normals(dtype, shape);
        const TensorView lse = run.floats(DType::kF32, {5, 3}, [&](int64_t i) {
          return i % 5 == 2 ? -INFINITY : 5 * run.normal();
        });
        run.compare("out", out, one_rounding(dtype));
        run.compare("lse", lse, {2e-6, 1});
        run.op(&Backend::attention_sinks,
               AttentionSinksArgs{run.normals(DType::kF32, {3}), out, lse});
      }
    });
}

ZC_OP_TESTS(store_probes_tests) {
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("store_probes ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int64_t head_dim : {16, 80, 128}) {
        const TensorView probe_q = run.result("probe_q", dtype, {4, 3, head_dim});
        const TensorView probe_lse = run.result("probe_lse", DType::kF32, {4, 3});
        run.op(
            &Backend::store_probes,
            StoreProbesArgs{run.normals(dtype, {5, 3, head_dim}), run.normals(DType::kF32, {5, 3}),
                            run.ints({-1, 3, 0, -1, 2}), probe_q, probe_lse});
      }
    });
  add_op_test("store_probes of all layers", [](OpRun& run) {
    const TensorView probe_q = run.result("probe_q", DType::kF16, {3, 4, 2, 32});
    const TensorView probe_lse = run.result("probe_lse", DType::kF32, {3, 4, 2});
    run.op(&Backend::store_probes,
           StoreProbesArgs{run.normals(DType::kF16, {3, 5, 2, 32}),
                           run.normals(DType::kF32, {3, 5, 2}), run.ints({-1, 3, 0, -1, 2}),
                           probe_q, probe_lse});
  });
  add_op_test("store_probes beyond", [](OpRun& run) {
    run.expects_failure();
    run.op(&Backend::store_probes,
           StoreProbesArgs{run.normals(DType::kF32, {1, 1, 16}), run.normals(DType::kF32, {1, 1}),
                           run.ints({4}), run.result("probe_q", DType::kF32, {4, 1, 16}),
                           run.result("probe_lse", DType::kF32, {4, 1})});
  });
}

}  // namespace

}  // namespace zc::test
