// Attention, over float keys and over packed ones, and the saliency that comes of it.
#include <cmath>
#include <numeric>

#include "test/emu/ops/packed_cache.h"

namespace zc::test {

namespace {

Tolerance attention_tolerance(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return {2e-3, 1e-3};
    case DType::kBF16:
      return {1e-2, 1e-3};
    default:
      return {2e-5, 1e-3};
  }
}

float scale_of(int64_t head_dim) { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }

// Where each of some lengths begins, and their sum.
std::vector<int32_t> cumulative(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> sums(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), sums.begin() + 1);
  return sums;
}

struct FlashShape {
  const char* name;
  int64_t n_heads, n_kv_heads, head_dim;
  std::vector<int32_t> q_lengths, k_lengths;
  bool causal = true;
  int32_t window = 0;
};

void flash_test(const FlashShape& s, DType dtype) {
  add_op_test(
      std::string("flash_attention ") + dtype_name(dtype) + ", " + s.name,
      [=](OpRun& run) {
        const std::vector<int32_t> q_begins = cumulative(s.q_lengths);
        const std::vector<int32_t> k_begins = cumulative(s.k_lengths);
        const int64_t n_q = q_begins.back();
        const int64_t n_k = k_begins.back();
        // Tensor maps and vectors take tensors that begin at 16 bytes; the others have their way.
        if (s.head_dim % 32 == 0) run.aligned();
        run.op(
            &Backend::flash_attention,
            FlashAttentionArgs{
                run.normals(dtype, {n_q, s.n_heads, s.head_dim}, 1.5f),
                run.normals(dtype, {n_k, s.n_kv_heads, s.head_dim}, 1.5f),
                run.normals(dtype, {n_k, s.n_kv_heads, s.head_dim}),
                run.result("out", dtype, {n_q, s.n_heads, s.head_dim}, attention_tolerance(dtype)),
                run.result("lse", DType::kF32, {n_q, s.n_heads}, {2e-5, 1}), run.ints(q_begins),
                run.ints(k_begins), scale_of(s.head_dim), s.window, s.causal});
      },
      {0, 1});
}

ZC_OP_TESTS(flash_attention_tests) {
  for (const DType dtype : kFloatDTypes) {
    flash_test({"a token", 1, 1, 64, {1}, {1}}, dtype);
    flash_test({"GQA 4/2 of 65", 4, 2, 128, {65}, {65}}, dtype);
    flash_test({"head_dim 32, GQA 7/1", 7, 1, 32, {17}, {40}}, dtype);
    flash_test({"head_dim 96", 2, 1, 96, {33}, {33}}, dtype);
    flash_test({"head_dim 256", 2, 1, 256, {20}, {67}}, dtype);
    flash_test({"head_dim 512", 2, 1, 512, {70}, {100}}, dtype);
    flash_test({"head_dim 336, at any address", 1, 1, 336, {20}, {67}, true, 30}, dtype);
    flash_test({"head_dim 48, at any address", 2, 2, 48, {19}, {19}}, dtype);
    flash_test({"several sequences", 2, 1, 64, {15, 0, 1, 64, 3}, {15, 0, 1, 64, 70}}, dtype);
    flash_test({"not causal", 2, 1, 64, {3, 65}, {3, 130}, false}, dtype);
    flash_test({"rows that see nothing", 2, 2, 64, {20, 2, 0}, {3, 0, 5}}, dtype);
    flash_test({"a sliding window", 4, 2, 64, {67, 3}, {67, 140}, true, 17}, dtype);
  }
  flash_test({"many tiles", 1, 1, 128, {200}, {390}}, DType::kBF16);
  add_op_test("flash_attention, sequences that overlap", [](OpRun& run) {
    run.expects_failure();
    const TensorView q = run.normals(DType::kF32, {4, 1, 32});
    run.op(&Backend::flash_attention,
           FlashAttentionArgs{q, q, q, run.result("out", DType::kF32, {4, 1, 32}),
                              run.result("lse", DType::kF32, {4, 1}), run.ints({0, 3, 2}),
                              run.ints({0, 2, 4}), 0.2f, 0, true});
  });
}

ZC_OP_TESTS(probe_attention_tests) {
  for (const DType dtype : kFloatDTypes)
    for (const bool normalized : {true, false})
      add_op_test(
          std::string("probe_attention ") + dtype_name(dtype) + (normalized ? "" : ", accumulated"),
          [=](OpRun& run) {
            for (const int64_t head_dim : {32, 64, 128, 320, 512}) {
              const int64_t n = 70;
              const int64_t kv_len = 150;
              const TensorView q = run.normals(dtype, {n, 4, head_dim});
              const TensorView k = run.normals(dtype, {kv_len, 2, head_dim});
              // As large as the LSE of so many keys.
              const TensorView lse = run.floats(
                  DType::kF32, {n, 4}, [&](int64_t) { return 5.5f + 0.3f * run.normal(); });
              std::vector<int32_t> rows, positions;
              for (int32_t r = 0; r < n; r += r < 40 ? 7 : 1) {
                rows.push_back(r);
                positions.push_back(80 + r);
              }
              const int32_t window = head_dim == 64 ? 33 : 0;
              run.op(&Backend::probe_attention,
                     ProbeAttentionArgs{q, lse, k, run.ints(rows), run.ints(positions),
                                        run.result("scores", DType::kF32, {2, kv_len},
                                                   {dtype == DType::kF32 ? 1e-4 : 2e-4, 1e-6}),
                                        scale_of(head_dim), window, normalized});
            }
          },
          {0, 1});
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("probe_attention of layers, ") + dtype_name(dtype), [=](OpRun& run) {
      const int64_t layers = 3;
      const int64_t n = 11;
      const int64_t kv_len = 100;
      const TensorView q = run.normals(dtype, {layers, n, 4, 64});
      const TensorView k = run.normals(dtype, {kv_len, layers * 2, 64});
      const TensorView lse = run.floats(DType::kF32, {layers, n, 4},
                                        [&](int64_t) { return 5.0f + 0.3f * run.normal(); });
      run.op(&Backend::probe_attention,
             ProbeAttentionArgs{q, lse, k, run.ints({9, 0, 4}), run.ints({30, 71, 99}),
                                run.result("scores", DType::kF32, {layers * 2, kv_len},
                                           {dtype == DType::kF32 ? 1e-4 : 2e-4, 1e-6}),
                                scale_of(64), 0, true});
    });
  add_op_test("probe_attention of a row beyond", [](OpRun& run) {
    run.expects_failure();
    run.op(
        &Backend::probe_attention,
        ProbeAttentionArgs{run.normals(DType::kF32, {3, 1, 32}), run.normals(DType::kF32, {3, 1}),
                           run.normals(DType::kF32, {5, 1, 32}), run.ints({0, 3}), run.ints({1, 1}),
                           run.result("scores", DType::kF32, {1, 5}), 0.2f, 0, true});
  });
}

ZC_OP_TESTS(select_salient_tests) {
  add_op_test("select_salient", [](OpRun& run) {
    const std::pair<int64_t, int64_t> sizes[] = {{0, 0},      {1, 0},   {1, 1},  {7, 3},
                                                 {16, 16},    {63, 38}, {64, 0}, {100, 60},
                                                 {1031, 619}, {5000, 5}};
    for (const auto& [n, count] : sizes) {
      // Many ties.
      const TensorView scores = run.floats(DType::kF32, {3, n}, [&](int64_t i) {
        return i % 3 ? std::fabs(run.normal()) : 0.25f * run.random().below(4);
      });
      run.op(&Backend::select_salient,
             SelectSalientArgs{scores, run.result("salient", DType::kI32, {3, count}),
                               run.result("regular", DType::kI32, {3, n - count})});
    }
  });
  // 240 KB a row: more than a multiprocessor has.
  add_op_test("select_salient of rows too long for shared memory", [](OpRun& run) {
    const TensorView scores = run.floats(
        DType::kF32, {1, 60000}, [&](int64_t i) { return i % 5 ? std::fabs(run.normal()) : 0.5f; });
    run.op(&Backend::select_salient,
           SelectSalientArgs{scores, run.result("salient", DType::kI32, {1, 36000}),
                             run.result("regular", DType::kI32, {1, 24000})});
  });
}

struct MixedShape {
  const char* name;
  int64_t n_heads;
  CacheShape cache;
  std::vector<SequencePlan> sequences;
  std::vector<int32_t> q_lengths;
  int32_t window = 0;
  bool tail = true;
  bool causal = true;
  int32_t masked = -1;    // a sequence without a table
  bool anywhere = false;  // tensors begin at multiples of an element's size alone
};

BlockPlan block(int32_t n, int32_t n_salient, Format high, Format low) {
  return {n, n_salient, high, high, low, low, 0};
}

void mixed_test(const MixedShape& s, DType dtype) {
  const auto body = [=](OpRun& run) {
    if (!s.anywhere) run.aligned();  // which the kernel on tensor cores wants
    PackedCache cache(run, s.cache, 2 << 20);
    std::vector<std::vector<int32_t>> tables;
    std::vector<int32_t> positions;
    for (size_t i = 0; i < s.sequences.size(); ++i) {
      const SequencePlan& plan = s.sequences[i];
      tables.push_back(pack_sequence(run, cache, plan, dtype));
      int32_t length = plan.n_tail;
      for (const BlockPlan& b : plan.blocks) length += b.n_tokens;
      for (int32_t row = 0; row < s.q_lengths[i]; ++row)
        positions.push_back(length - s.q_lengths[i] + row);
    }
    StackedTables stacked = stack_tables(tables);
    if (s.masked >= 0) stacked.starts[s.masked] = -1;
    const std::vector<int32_t> begins = cumulative(s.q_lengths);
    const int64_t n = begins.back();
    const int64_t d = s.cache.head_dim;
    run.op(
        &Backend::mixed_attention,
        MixedAttentionArgs{run.normals(dtype, {n, s.n_heads, d}),
                           run.result("out", dtype, {n, s.n_heads, d},
                                      {dtype == DType::kBF16 ? 1e-2 : 2e-3, 1e-3}),
                           run.result("lse", DType::kF32, {n, s.n_heads}, {5e-4, 1}), cache.pool(),
                           run.ints(stacked.words), run.ints(stacked.starts), run.ints(begins),
                           run.ints(positions), 0, scale_of(d), s.window, s.tail, s.causal});
  };
  // With more than 99 KB of shared memory and copies in bulk, and without.
  add_op_test(std::string("mixed_attention ") + dtype_name(dtype) + ", " + s.name, body, {0, 1});
}

ZC_OP_TESTS(mixed_attention_tests) {
  const SequencePlan window = {{block(100, 60, Format::kU4, Format::kU2)}, Format::kF16, 7};
  for (const DType dtype : kFloatDTypes) {
    mixed_test({"4 and 2 bits", 4, {2, 64}, {window}, {1}}, dtype);
    mixed_test({"head_dim 128, GQA 8/1", 8, {1, 128}, {window}, {1}}, dtype);
    mixed_test({"head_dim 48, one of a kind", 2, {2, 48}, {window}, {1}}, dtype);
    mixed_test({"head_dim 96, 3 bits that lie densely",
                3,
                {1, 96},
                {{{block(90, 33, Format::kU4, Format::kU3)}, Format::kF16, 20}},
                {2}},
               dtype);
    mixed_test({"head_dim 256, GQA 4/1", 4, {1, 256}, {window}, {1}}, dtype);
    mixed_test({"head_dim 256, 3 and 8 bits",
                2,
                {1, 256},
                {{{block(40, 17, Format::kU8, Format::kU3)}, Format::kBF16, 20}},
                {2}},
               dtype);
    mixed_test({"head_dim 512, GQA 2/1", 2, {1, 512}, {window}, {1}}, dtype);
    mixed_test({"several sequences, a masked one, an empty one",
                4,
                {2, 64},
                {window,
                 {{}, Format::kF16, 3},
                 {{block(33, 33, Format::kU4, Format::kU2)}, Format::kF16, 0},
                 {{}, Format::kF16, 0}},
                {1, 3, 1, 1},
                0,
                true,
                true,
                2},
               dtype);
    mixed_test({"a sliding window", 4, {2, 64}, {window}, {3}, 40}, dtype);
    mixed_test({"without the tail", 2, {2, 32}, {window}, {5}, 0, false, false}, dtype);
    MixedShape anywhere{"tensors that begin anywhere", 4, {2, 64}, {window}, {1}};
    anywhere.anywhere = true;
    mixed_test(anywhere, dtype);
  }
  SequencePlan long_past = {{}, Format::kF16, 60};
  for (int i = 0; i < 5; ++i)
    long_past.blocks.push_back(block(100 + 17 * i, 60, Format::kU4, Format::kU2));
  mixed_test({"many segments", 8, {2, 128}, {long_past, window}, {1, 1}}, DType::kF16);
  mixed_test({"many rows", 8, {2, 64}, {long_past}, {20}}, DType::kBF16);
  // Four splits a head, which eight blocks share: one each, and two or three.
  const SequencePlan splits = {{block(3700, 2200, Format::kU4, Format::kU2)}, Format::kF16, 60};
  mixed_test({"a head of four blocks", 4, {1, 128}, {splits}, {1}}, DType::kF16);
  mixed_test({"heads that end within a block's splits", 5, {5, 64}, {splits}, {1}}, DType::kBF16);
  // Three splits a head with the first tokens of the tail, four with all of them.
  const SequencePlan longer = {{block(3570, 2200, Format::kU4, Format::kU2)}, Format::kF16, 60};
  add_op_test("mixed_attention right behind what sets the tail's length",
              [=](OpRun& run) {
                run.aligned();
                const int32_t d = 128;
                PackedCache cache(run, {1, d}, 2 << 20);
                StackedTables stacked =
                    stack_tables({pack_sequence(run, cache, longer, DType::kF16)});
                stacked.words[stacked.starts[0] + kTableTailLength] = 5;
                // All tensors first: with nothing between them, ops begin while those in front
                // still run.
                const TensorView words = run.ints(stacked.words);
                const TensorView starts = run.ints(stacked.starts);
                const SetTailLengthsArgs length{words, starts, run.ints({longer.n_tail})};
                const auto attention = [&](const char* out, const char* lse) {
                  return MixedAttentionArgs{run.normals(DType::kF16, {1, 4, d}),
                                            run.result(out, DType::kF16, {1, 4, d}, {2e-3, 1e-3}),
                                            run.result(lse, DType::kF32, {1, 4}, {5e-4, 1}),
                                            cache.pool(),
                                            words,
                                            starts,
                                            run.ints({0, 1}),
                                            run.ints({3629}),
                                            0,
                                            scale_of(d),
                                            0,
                                            true,
                                            true};
                };
                const MixedAttentionArgs before = attention("out before", "lse before");
                const MixedAttentionArgs behind = attention("out", "lse");
                run.op(&Backend::mixed_attention, before);
                run.op(&Backend::set_tail_lengths, length);
                run.op(&Backend::mixed_attention, behind);
              },
              {0, 1});
}

}  // namespace

}  // namespace zc::test
