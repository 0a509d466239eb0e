// What writes the packed cache and reads it back. Pages have an order of bytes of their own on
// every backend: what is compared is what the ops give out.
#include "test/emu/ops/packed_cache.h"

namespace zc::test {

namespace {

constexpr Format kFormats[] = {Format::kU2,  Format::kU3,   Format::kU4, Format::kU8,
                               Format::kF16, Format::kBF16, Format::kF32};

std::string format_name(Format f) {
  switch (f) {
    case Format::kF16:
      return "f16";
    case Format::kBF16:
      return "bf16";
    case Format::kF32:
      return "f32";
    default:
      return "u" + std::to_string(format_bits(f));
  }
}

TensorView keep_or(OpRun& run, const char* name, DType dtype, const Shape& shape) {
  return run.result(name, dtype, shape);
}

// All a segment's content, as the next op's arguments.
ExportSegmentArgs export_segment(OpRun& run, const PackedCache& cache, const TensorView& table,
                                 int32_t segment, int32_t n_tokens) {
  const auto [heads, d, layers] = cache.shape();
  static_cast<void>(layers);
  const ExportSegmentArgs args = {cache.pool(),
                                  table,
                                  keep_or(run, "k_codes", DType::kU8, {heads, n_tokens, d}),
                                  keep_or(run, "v_codes", DType::kU8, {heads, n_tokens, d}),
                                  keep_or(run, "k_params", DType::kF32, {heads, 2, d}),
                                  keep_or(run, "v_params", DType::kF32, {heads, 2, n_tokens}),
                                  keep_or(run, "v_channel", DType::kF32, {heads, d}),
                                  keep_or(run, "positions", DType::kI32, {heads, n_tokens}),
                                  0,
                                  segment};
  run.op(&Backend::export_segment, args);
  return args;
}

void unpack(OpRun& run, const PackedCache& cache, const TensorView& table, int32_t segment,
            int32_t n_rows, DType dtype, int32_t base = 0) {
  const auto [heads, d, layers] = cache.shape();
  static_cast<void>(layers);
  run.op(&Backend::unpack_segment,
         UnpackSegmentArgs{cache.pool(), table,
                           run.result("k", dtype, {n_rows, heads, d}, one_rounding(dtype, 1e-6)),
                           run.result("v", dtype, {n_rows, heads, d}, one_rounding(dtype, 1e-6)), 0,
                           segment, base});
}

// The tail of each table, of so many rows.
void unpack_tails(OpRun& run, const PackedCache& cache, const StackedTables& tables,
                  const std::vector<int32_t>& n_rows) {
  for (size_t i = 0; i < n_rows.size(); ++i) {
    const auto begin = tables.words.begin() + tables.starts[i];
    const auto end =
        i + 1 < n_rows.size() ? tables.words.begin() + tables.starts[i + 1] : tables.words.end();
    unpack(run, cache, run.ints({begin, end}), 0, n_rows[i], DType::kF32);
  }
}

ZC_OP_TESTS(segment_tests) {
  for (const Format k : {Format::kU2, Format::kU3, Format::kU4, Format::kU8})
    for (const Format v : {Format::kU2, Format::kU3, Format::kU4, Format::kU8})
      add_op_test("segments of " + format_name(k) + " and " + format_name(v), [=](OpRun& run) {
        const int32_t n = 37;
        const int32_t n_salient = 21;
        PackedCache cache(run, {2, 64});
        // Packed from float16, read back; then its content imported into another table.
        const std::vector<int32_t> words = pack_sequence(
            run, cache, {{{n, n_salient, k, v, v, k, 0}}, Format::kF16, 5}, DType::kF16);
        const TensorView table = run.ints(words);
        ExportSegmentArgs salient = export_segment(run, cache, table, 1, n_salient);
        ExportSegmentArgs regular = export_segment(run, cache, table, 2, n - n_salient);
        unpack(run, cache, table, 1, n, DType::kF32);
        unpack(run, cache, table, 2, n, DType::kF16);
        unpack(run, cache, table, 0, 5, DType::kF16, n);

        const std::vector<int32_t> copied = cache.table(
            {Format::kF16, 5, n}, {{k, v, n_salient, 0, n}, {v, k, n - n_salient, 0, -n}});
        const TensorView copy = run.ints(copied);
        for (ExportSegmentArgs* content : {&salient, &regular}) {
          content->table = copy;
          run.op(&Backend::import_segment, ImportSegmentArgs{*content});
        }
        export_segment(run, cache, copy, 1, n_salient);
        export_segment(run, cache, copy, 2, n - n_salient);
      });
  for (const DType dtype : kFloatDTypes)
    add_op_test(std::string("segments of rows of ") + dtype_name(dtype), [=](OpRun& run) {
      for (const int32_t head_dim : {16, 48, 80, 96, 128, 256, 320, 512}) {
        if (head_dim == 96) run.aligned();
        PackedCache cache(run, {3, head_dim});
        const int32_t norm = head_dim > 256 ? 3 : 0;  // searched, where a thread has two channels
        const std::vector<int32_t> words = pack_sequence(
            run, cache,
            {{{19, 3, Format::kU4, Format::kU3, Format::kU2, Format::kU8, norm}}, Format::kBF16, 1},
            dtype);
        const TensorView table = run.ints(words);
        export_segment(run, cache, table, 1, 3);
        export_segment(run, cache, table, 2, 16);
        unpack(run, cache, table, 1, 19, dtype);
        unpack(run, cache, table, 2, 19, dtype);
      }
    });
  for (const int32_t n : {0, 1, 15, 16, 17, 63, 130})
    add_op_test(format("segments of %d tokens, searched ranges", n), [=](OpRun& run) {
      PackedCache cache(run, {2, 32});
      const std::vector<int32_t> words =
          pack_sequence(run, cache,
                        {{{n, n / 2, Format::kU4, Format::kU4, Format::kU2, Format::kU2, 3},
                          {n, n, Format::kU3, Format::kU2, Format::kU2, Format::kU2, 2}},
                         Format::kF16,
                         17},
                        DType::kBF16);
      const TensorView table = run.ints(words);
      const bool all = n / 2 == n;
      export_segment(run, cache, table, 1, n / 2);
      if (!all) export_segment(run, cache, table, 2, n - n / 2);
      export_segment(run, cache, table, all ? 2 : 3, n);
      unpack(run, cache, table, all ? 2 : 3, n, DType::kF32, n);
      unpack(run, cache, table, 0, 17, DType::kF16, 2 * n);
    });
  add_op_test("segments of the KV heads of two layers of three", [](OpRun& run) {
    const int32_t n = 37;
    const int32_t n_salient = 21;
    const int32_t d = 64;
    PackedCache cache(run, {2, d, 3});
    const TensorView table = run.ints(
        cache.table({Format::kF16, n}, {{Format::kU4, Format::kU4, n_salient, 0, n},
                                        {Format::kU2, Format::kU3, n - n_salient, 0, -n}}));
    for (const int32_t layer : {0, 1, 2})
      run.op(&Backend::append_kv,
             AppendKvArgs{run.normals(DType::kF16, {n, 2, d}), run.normals(DType::kF16, {n, 2, d}),
                          cache.pool(), table, run.ints({0}), run.ints({0, n}), layer});
    // From the tail to pages, and back.
    const auto rows = [&](const char* name) { return run.result(name, DType::kF16, {n, 4, d}); };
    const TensorView k = rows("k");
    const TensorView v = rows("v");
    run.op(&Backend::unpack_segment, UnpackSegmentArgs{cache.pool(), table, k, v, 1, 0, 0});
    const Selection ids = select(run, 4, n, n_salient);
    const TensorView salient = run.ints(ids.salient, {4, n_salient});
    const TensorView regular = run.ints(ids.regular, {4, n - n_salient});
    run.op(&Backend::pack_segments,
           PackSegmentsArgs{
               k, v, cache.pool(), table, 1, {{salient, 1, 3, 0}, {regular, 2, 0, 2}}, 2});
    for (const int32_t segment : {1, 2})
      run.op(&Backend::unpack_segment, UnpackSegmentArgs{cache.pool(), table, rows("unpacked k"),
                                                         rows("unpacked v"), 1, segment, 0});
  });
  for (const Format tail : {Format::kF16, Format::kBF16, Format::kF32})
    for (const DType dtype : kFloatDTypes)
      add_op_test(
          "append_kv of " + std::string(dtype_name(dtype)) + " to a tail of " + format_name(tail),
          [=](OpRun& run) {
            // Three sequences, the second masked; each appends to what is there.
            for (const int32_t head_dim : {16, 64, 80, 512}) {
              PackedCache cache(run, {2, head_dim, 2});
              const StackedTables tables =
                  stack_tables({cache.table({tail, 20}, {}), cache.table({tail, 3}, {})});
              const TensorView words = run.ints(tables.words);
              const TensorView starts = run.ints({tables.starts[0], -1, tables.starts[1]});
              const TensorView rows = run.ints({0, 20, 22, 25});
              for (const int32_t layer : {0, 1})
                run.op(&Backend::append_kv, AppendKvArgs{run.normals(dtype, {25, 2, head_dim}, 100),
                                                         run.normals(dtype, {25, 2, head_dim}),
                                                         cache.pool(), words, starts, rows, layer});
              unpack_tails(run, cache, tables, {20, 3});
            }
          });
}

ZC_OP_TESTS(rope_append_tests) {
  for (const bool keeps_rows : {false, true})
    for (const DType out : kFloatDTypes)
      add_op_test(format("rope_append to %s%s", dtype_name(out), keeps_rows ? ", rows kept" : ""),
                  [=](OpRun& run) {
                    // Three sequences, the second masked; each appends to what is there.
                    for (const int32_t head_dim : {16, 64, 80, 512}) {
                      PackedCache cache(run, {2, head_dim, 2});
                      const StackedTables tables =
                          stack_tables({cache.table({Format::kF16, 20}, {}),
                                        cache.table({Format::kF16, 3}, {})});
                      const TensorView angles =
                          run.normals(DType::kF32, {25, head_dim == 80 ? 24 : head_dim / 2});
                      const TensorView of_q = run.normals(DType::kF32, {25, angles.size(1)});
                      run.op(&Backend::rope_append,
                             RopeAppendArgs{run.normals(DType::kF32, {25, 6, head_dim}),
                                            run.normals(DType::kF32, {25, 2, head_dim}, 100),
                                            run.normals(out, {25, 2, head_dim}), angles, angles,
                                            keeps_rows ? of_q : angles, angles,
                                            run.result("q", out, {25, 6, head_dim}),
                                            keeps_rows ? run.result("k", out, {25, 2, head_dim})
                                                       : TensorView{},
                                            cache.pool(), run.ints(tables.words),
                                            run.ints({tables.starts[0], -1, tables.starts[1]}),
                                            run.ints({0, 20, 22, 25}), 0});
                      unpack_tails(run, cache, tables, {20, 3});
                    }
                  });
}

ZC_OP_TESTS(table_tests) {
  add_op_test("set_tail_lengths", [](OpRun& run) {
    PackedCache cache(run, {2, 32});
    const StackedTables tables =
        stack_tables({cache.table({Format::kF16, 20}, {}), cache.table({Format::kF16, 3}, {})});
    const TensorView words = run.ints(tables.words);
    run.compare("tables", words);
    run.op(&Backend::set_tail_lengths,
           SetTailLengthsArgs{words, run.ints({tables.starts[1], -1, tables.starts[0]}),
                              run.ints({7, 9, 0})});
  });
  add_op_test("copy_pages", [](OpRun& run) {
    for (const int32_t page_bytes : {64, 4352}) {
      const TensorView pool = run.pool(40 * page_bytes);
      // Into the pool by its own op alone: what lies there is the same on both backends.
      run.op(&Backend::copy_pages,
             CopyPagesArgs{pool, run.ints({0, page_bytes / 64 * 3}),
                           run.ints({page_bytes / 64 * 9, page_bytes / 64 * 5}), page_bytes});
      run.compare("pool", pool);
    }
  });
  add_op_test("copy_pages outside", [](OpRun& run) {
    run.expects_failure();
    run.op(&Backend::copy_pages, CopyPagesArgs{run.pool(4096), run.ints({63}), run.ints({0}), 128});
  });

  // Tables that lie, a word each: every op that follows them must say so and touch nothing else.
  struct Damage {
    const char* name;
    int32_t word;  // of the table, or of its first segment behind the tail when negative
    int32_t value;
  };
  constexpr int32_t kSegmentWord = -100;
  const Damage damages[] = {
      {"a header of other heads", kTableKvHeads, 3},
      {"no layers", kTableLayers, 0},
      {"a huge layer count", kTableLayers, 0x7fffffff},
      {"a huge segment count", kTableMaxSegments, 0x7fffffff},
      {"a count beyond the maximum", kTableHeader, 9},
      {"an unknown format", kSegmentWord + 0, 5},
      {"negative tokens", kSegmentWord + 2, -1},
      {"many tokens", kSegmentWord + 2, 100000},
      {"pages outside of the table", kSegmentWord + 3, 1 << 30},
      {"negative pages", kSegmentWord + 3, -5},
      {"parameters outside of the pool", kSegmentWord + 4, 1 << 26},
      {"a bitmap outside of the pool", kSegmentWord + 5, 1 << 26},
      {"a bitmap of huge span", kSegmentWord + 7, 0x7fffffff},
  };
  for (const Damage& damage : damages)
    add_op_test(std::string("unpack_segment of a table with ") + damage.name, [=](OpRun& run) {
      PackedCache cache(run, {2, 32});
      std::vector<int32_t> words = pack_sequence(
          run, cache,
          {{{20, 11, Format::kU4, Format::kU4, Format::kU2, Format::kU2, 0}}, Format::kF16, 4},
          DType::kF32);
      const int32_t at = damage.word >= 0 ? damage.word
                                          : kTableHeader + kEntryHeader + kSegmentWords +
                                                damage.word - kSegmentWord;
      words[at] = damage.value;
      run.expects_failure();
      unpack(run, cache, run.ints(words), 1, 20, DType::kF32);
    });
}

}  // namespace

}  // namespace zc::test
