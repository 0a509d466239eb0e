// The ops of recurrent layers, whose states lie in the pool.
#include <algorithm>
#include <vector>

#include "csrc/ops/state_table.h"
#include "test/emu/ops/op_run.h"

namespace zc::test {

namespace {

// State tables of some sequences, two layers each, their pages handed out from the last word to the
// first with a unit between them.
struct States {
  std::vector<int32_t> words;
  std::vector<int32_t> starts;
  TensorView pool;

  States(OpRun& run, int32_t n_seqs, int32_t n_heads, int64_t conv_bytes, int64_t head_bytes) {
    const int32_t table = 2 * (1 + n_heads);
    for (int32_t seq = 0; seq < n_seqs; ++seq) starts.push_back(seq * (table + 3) + 3);
    words.assign(static_cast<size_t>(n_seqs * (table + 3)), -1);
    int32_t end = 1;
    for (int32_t i = n_seqs * table - 1; i >= 0; --i) {
      const int64_t bytes = i % (1 + n_heads) == 0 ? conv_bytes : head_bytes;
      words[static_cast<size_t>(starts[static_cast<size_t>(i / table)] + i % table)] = end;
      end += static_cast<int32_t>((bytes + kPageUnitBytes - 1) / kPageUnitBytes) + 1;
    }
    pool = run.pool(int64_t{end} * kPageUnitBytes);
  }
  // The pool's bytes as what they are.
  TensorView floats() const {
    TensorView view = pool;
    view.dtype = DType::kF32;
    view.shape[0] /= int64_t{sizeof(float)};
    return view;
  }
};

std::vector<int32_t> cumulative(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu = {0};
  for (const int32_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

// A prompt from zero, then rows that follow it; the second sequence is masked the second time.
const std::vector<int32_t> kCalls[] = {{3, 1, 40}, {1, 2, 17}, {0, 0, 9}};

void convolve(OpRun& run, int64_t channels, int64_t width, bool biased) {
  const States states(run, 3, 2, conv_page_bytes(width, channels), 256);
  run.compare("pool", states.floats());
  const TensorView weight = run.normals(DType::kF32, {channels, width});
  const TensorView bias = biased ? run.normals(DType::kF32, {channels}) : TensorView{};
  for (const std::vector<int32_t>& lengths : kCalls) {
    const std::vector<int32_t> cu = cumulative(lengths);
    const bool from_zero = &lengths == kCalls;
    std::vector<int32_t> starts = states.starts;
    if (!from_zero) starts[1] = -1;
    run.op(&Backend::causal_conv,
           CausalConvArgs{run.normals(DType::kF32, {cu.back(), channels}), weight, bias,
                          run.result("out", DType::kF32, {cu.back(), channels}, {2e-6, 0.01}),
                          states.pool, run.ints(states.words), run.ints(starts), run.ints(cu), 1, 2,
                          from_zero});
  }
}

struct DeltaShape {
  int32_t n_key_heads;
  int32_t n_heads;
  int64_t key_dim;
  int64_t value_dim;
};

GatedDeltaArgs delta_args(OpRun& run, const States& states, const DeltaShape& shape,
                          const std::vector<int32_t>& starts, const std::vector<int32_t>& lengths,
                          bool from_zero) {
  const auto [n_key_heads, n_heads, key_dim, value_dim] = shape;
  const std::vector<int32_t> cu = cumulative(lengths);
  const int64_t rows = cu.back();
  const int64_t width = 2 * n_key_heads * key_dim + n_heads * value_dim;
  return {run.normals(DType::kF32, {rows, width}),
          run.normals(DType::kF32, {rows, n_heads}),
          run.normals(DType::kF32, {rows, n_heads}),
          run.normals(DType::kF32, {n_heads}),
          run.normals(DType::kF32, {n_heads}),
          run.result("out", DType::kF32, {rows, n_heads, value_dim}, {5e-6, 0.01}),
          states.pool,
          run.ints(states.words),
          run.ints(starts),
          run.ints(cu),
          1,
          n_key_heads,
          from_zero};
}

// Shapes as above: groups of heads, and the head page, (state_dim, head_dim).
SelectiveScanArgs scan_args(OpRun& run, const States& states, const DeltaShape& shape,
                            const std::vector<int32_t>& starts, const std::vector<int32_t>& lengths,
                            bool from_zero) {
  const auto [n_groups, n_heads, state_dim, head_dim] = shape;
  const std::vector<int32_t> cu = cumulative(lengths);
  const int64_t rows = cu.back();
  const int64_t width = n_heads * head_dim + 2 * n_groups * state_dim;
  return {run.normals(DType::kF32, {rows, width}, 0.5f),
          run.normals(DType::kF32, {rows, n_heads}),
          run.normals(DType::kF32, {n_heads}),
          run.normals(DType::kF32, {n_heads}),
          run.normals(DType::kF32, {n_heads}),
          run.result("out", DType::kF32, {rows, n_heads, head_dim}, {1e-5, 0.25}),
          states.pool,
          run.ints(states.words),
          run.ints(starts),
          run.ints(cu),
          1,
          n_groups,
          from_zero};
}

ZC_OP_TESTS(state_tests) {
  for (const int64_t width : {2, 3, 4, 5, 6, 7, 8})
    add_op_test(format("causal_conv of width %d", static_cast<int>(width)), [=](OpRun& run) {
      for (const int64_t channels : {1, 40, 131}) convolve(run, channels, width, channels == 40);
    });
  add_op_test("causal_conv of many rows", [](OpRun& run) {
    const States states(run, 2, 1, conv_page_bytes(4, 5), 64);
    run.compare("pool", states.floats());
    run.expects_launches(1);
    run.op(&Backend::causal_conv,
           CausalConvArgs{run.normals(DType::kF32, {331, 5}), run.normals(DType::kF32, {5, 4}),
                          TensorView{}, run.result("out", DType::kF32, {331, 5}, {2e-6, 0.01}),
                          states.pool, run.ints(states.words), run.ints(states.starts),
                          run.ints({0, 300, 331}), 0, 1, true});
  });

  const DeltaShape shapes[] = {{1, 1, 16, 16},  {2, 2, 32, 48}, {1, 2, 64, 32},
                               {1, 3, 128, 64}, {2, 4, 16, 80}, {1, 1, 256, 16}};
  for (const DeltaShape& shape : shapes)
    for (const bool aligned : {false, true}) {
      add_op_test(format("gated_delta, %d key heads of %d, %d x %d%s", shape.n_key_heads,
                         shape.n_heads, static_cast<int>(shape.key_dim),
                         static_cast<int>(shape.value_dim), aligned ? ", aligned" : ""),
                  [=](OpRun& run) {
                    if (aligned) run.aligned();
                    const States states(run, 3, shape.n_heads, 192,
                                        head_page_bytes(shape.key_dim, shape.value_dim));
                    run.compare("pool", states.floats(), {5e-6, 0});
                    for (const std::vector<int32_t>& lengths : kCalls) {
                      const bool from_zero = &lengths == kCalls;
                      std::vector<int32_t> starts = states.starts;
                      if (!from_zero) starts[1] = -1;
                      run.op(&Backend::gated_delta,
                             delta_args(run, states, shape, starts, lengths, from_zero));
                    }
                  });
      add_op_test(format("selective_scan, %d groups of %d, %d x %d%s", shape.n_key_heads,
                         shape.n_heads, static_cast<int>(shape.key_dim),
                         static_cast<int>(shape.value_dim), aligned ? ", aligned" : ""),
                  [=](OpRun& run) {
                    if (aligned) run.aligned();
                    const States states(run, 3, shape.n_heads, 192,
                                        head_page_bytes(shape.key_dim, shape.value_dim));
                    run.compare("pool", states.floats(), {5e-6, 0});
                    for (const std::vector<int32_t>& lengths : kCalls) {
                      const bool from_zero = &lengths == kCalls;
                      std::vector<int32_t> starts = states.starts;
                      if (!from_zero) starts[1] = -1;
                      run.op(&Backend::selective_scan,
                             scan_args(run, states, shape, starts, lengths, from_zero));
                    }
                  });
    }
  add_op_test("gated_delta is one kernel", [](OpRun& run) {
    run.aligned();
    run.expects_launches(1);
    const States states(run, 5, 2, 64, head_page_bytes(32, 32));
    run.op(&Backend::gated_delta,
           delta_args(run, states, {1, 2, 32, 32}, states.starts, {1, 1, 1, 1, 1}, true));
  });
  add_op_test("selective_scan is one kernel", [](OpRun& run) {
    run.aligned();
    run.expects_launches(1);
    const States states(run, 5, 2, 64, head_page_bytes(32, 32));
    run.op(&Backend::selective_scan,
           scan_args(run, states, {1, 2, 32, 32}, states.starts, {1, 1, 1, 1, 1}, true));
  });

  // Tables that lie: the op must say so and touch nothing else.
  const auto damaged = [](const char* name, auto damage) {
    add_op_test(std::string("causal_conv of ") + name, [=](OpRun& run) {
      States states(run, 2, 2, conv_page_bytes(4, 24), 256);
      damage(states, 0);
      run.expects_failure();
      run.op(&Backend::causal_conv,
             CausalConvArgs{run.normals(DType::kF32, {5, 24}), run.normals(DType::kF32, {24, 4}),
                            TensorView{}, run.scratch(DType::kF32, {5, 24}), states.pool,
                            run.ints(states.words), run.ints(states.starts), run.ints({0, 2, 5}), 1,
                            2, false});
    });
    add_op_test(std::string("gated_delta of ") + name, [=](OpRun& run) {
      States states(run, 2, 2, 64, head_page_bytes(32, 16));
      damage(states, 2);
      run.expects_failure();
      run.op(&Backend::gated_delta,
             delta_args(run, states, {1, 2, 32, 16}, states.starts, {2, 3}, false));
    });
    add_op_test(std::string("selective_scan of ") + name, [=](OpRun& run) {
      States states(run, 2, 2, 64, head_page_bytes(32, 16));
      damage(states, 2);
      run.expects_failure();
      run.op(&Backend::selective_scan,
             scan_args(run, states, {1, 2, 32, 16}, states.starts, {2, 3}, false));
    });
  };
  const auto word = [](States& states, int32_t page) -> int32_t& {
    return states.words[static_cast<size_t>(states.starts[1] + 3 + page)];
  };
  for (const int32_t address : {-1, 1 << 26, INT32_MIN, INT32_MAX})
    damaged(format("a page at %d", address).c_str(),
            [=](States& states, int32_t page) { word(states, page) = address; });
  damaged("a table before the words", [](States& states, int32_t) { states.starts[1] = -2; });
  damaged("a table of which the layer is outside",
          [](States& states, int32_t) { states.starts[1] += 1; });
  add_op_test("gated_delta of rows that are no sequence", [](OpRun& run) {
    const States states(run, 2, 2, 64, head_page_bytes(32, 16));
    run.expects_failure();
    GatedDeltaArgs args = delta_args(run, states, {1, 2, 32, 16}, states.starts, {2, 3}, false);
    args.cu_seqlens = run.ints({0, 2, 4});
    run.op(&Backend::gated_delta, args);
  });
  add_op_test("selective_scan of rows that are no sequence", [](OpRun& run) {
    const States states(run, 2, 2, 64, head_page_bytes(32, 16));
    run.expects_failure();
    SelectiveScanArgs args = scan_args(run, states, {1, 2, 32, 16}, states.starts, {2, 3}, false);
    args.cu_seqlens = run.ints({0, 2, 4});
    run.op(&Backend::selective_scan, args);
  });
  add_op_test("causal_conv of sequences that fall", [](OpRun& run) {
    const States states(run, 2, 1, conv_page_bytes(4, 24), 64);
    run.expects_failure();
    run.op(&Backend::causal_conv,
           CausalConvArgs{run.normals(DType::kF32, {5, 24}), run.normals(DType::kF32, {24, 4}),
                          TensorView{}, run.scratch(DType::kF32, {5, 24}), states.pool,
                          run.ints(states.words), run.ints(states.starts), run.ints({0, 6, 5}), 1,
                          1, true});
  });
}

}  // namespace

}  // namespace zc::test
