// How many kernels a sequence of ops is: what docs/results/cuda-model.md counts with.
#include "test/emu/ops/packed_cache.h"

namespace zc::test {

namespace {

ZC_OP_TESTS(prompt_launches) {
  struct Policy {
    const char* name;
    Format regular_k;
    int32_t k_norm;
    uint64_t launches;
  };
  // Probes are kept; listed, and their attention summed; tokens selected; ranges, searched or not,
  // and pages of both classes.
  for (const Policy& policy :
       {Policy{"zipcache", Format::kU2, 0, 6}, Policy{"zipcache-plus", Format::kU3, 3, 7}})
    add_op_test(format("launches of a layer of a prompt, %s", policy.name), [=](OpRun& run) {
      const int32_t n = 100;
      const int32_t n_probes = 10;
      const int32_t n_salient = 60;
      const CacheShape shape = {2, 64};
      run.aligned();
      run.expects_launches(policy.launches);
      const TensorView q = run.normals(DType::kBF16, {n, 4, 64});
      const TensorView lse =
          run.floats(DType::kF32, {n, 4}, [&](int64_t) { return 5.0f + 0.1f * run.normal(); });
      const TensorView k = run.normals(DType::kBF16, {n, 2, 64});
      const TensorView v = run.normals(DType::kBF16, {n, 2, 64});
      std::vector<int32_t> slots(n, -1), rows, positions;
      for (int32_t i = 0; i < n_probes; ++i) {
        slots[10 * i + 9] = i;
        rows.push_back(i);
        positions.push_back(10 * i + 9);
      }
      const TensorView probe_q = run.scratch(DType::kBF16, {n_probes, 4, 64});
      const TensorView probe_lse = run.scratch(DType::kF32, {n_probes, 4});
      run.op(&Backend::store_probes, StoreProbesArgs{q, lse, run.ints(slots), probe_q, probe_lse});
      const TensorView scores = run.result("scores", DType::kF32, {2, n}, {2e-4, 1e-6});
      run.op(&Backend::probe_attention,
             ProbeAttentionArgs{probe_q, probe_lse, k, run.ints(rows), run.ints(positions), scores,
                                0.125f, 0, true});
      const TensorView salient = run.scratch(DType::kI32, {2, n_salient});
      const TensorView regular = run.scratch(DType::kI32, {2, n - n_salient});
      run.op(&Backend::select_salient, SelectSalientArgs{scores, salient, regular});
      PackedCache cache(run, shape);
      const TensorView table = run.ints(cache.table(
          {Format::kF16, 0, n}, {{Format::kU4, Format::kU4, n_salient, 0, n},
                                 {policy.regular_k, Format::kU2, n - n_salient, 0, -n}}));
      run.op(&Backend::pack_segments,
             PackSegmentsArgs{k,
                              v,
                              cache.pool(),
                              table,
                              0,
                              {{salient, 1, policy.k_norm, 0}, {regular, 2, policy.k_norm, 0}},
                              2});
    });
}

}  // namespace

}  // namespace zc::test
