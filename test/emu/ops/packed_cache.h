#pragma once

#include <vector>

#include "csrc/ops/kv_table.h"
#include "test/emu/ops/op_run.h"

// A pool of pages and page tables (csrc/ops/kv_table.h), as test/support/packed-cache.ts makes
// them: pages handed out with gaps and in no order.
namespace zc::test {

// What a segment holds, the same in every layer and KV head.
struct SegmentPlan {
  Format k_format;
  Format v_format;
  int32_t n_tokens;
  int32_t start = 0;  // position of the first token, or of the bitmap's first bit
  // 0: no bitmap; n: the set bits of n positions; -n: the clear bits of the last bitmap.
  int32_t span = 0;
};

struct TailPlan {
  Format format;
  int32_t n_tokens;
  int32_t start = 0;
};

struct CacheShape {
  int32_t n_kv_heads;
  int32_t head_dim;
  int32_t n_layers = 1;
};

class PackedCache {
 public:
  PackedCache(OpRun& run, CacheShape shape, int64_t pool_bytes = 1 << 20);

  // The words of one sequence's table: its tail, then the segments.
  std::vector<int32_t> table(const TailPlan& tail, const std::vector<SegmentPlan>& segments);

  const TensorView& pool() const { return pool_; }
  const CacheShape& shape() const { return shape_; }

 private:
  int32_t allocate(int64_t bytes);

  CacheShape shape_;
  TensorView pool_;
  int32_t bottom_ = 1;
  int32_t top_;
  bool from_top_ = false;
};

// `count` ascending numbers below n for each KV head, and those left.
struct Selection {
  std::vector<int32_t> salient;
  std::vector<int32_t> regular;
};
Selection select(OpRun& run, int32_t n_kv_heads, int32_t n, int32_t count);

// One compression: `n_salient` of `n_tokens` tokens in one pair of formats, the rest in another.
struct BlockPlan {
  int32_t n_tokens;
  int32_t n_salient;
  Format salient_k, salient_v;
  Format regular_k, regular_v;
  int32_t norm = 0;
};
struct SequencePlan {
  std::vector<BlockPlan> blocks;
  Format tail_format;
  int32_t n_tail;
};

// Compresses random keys and values into the cache (packSegments, packSegment where all tokens are
// of one class, appendKv). Returns its table.
std::vector<int32_t> pack_sequence(OpRun& run, PackedCache& cache, const SequencePlan& plan,
                                   DType dtype);

// Tables one behind another with gaps, and where each begins.
struct StackedTables {
  std::vector<int32_t> words;
  std::vector<int32_t> starts;
};
StackedTables stack_tables(const std::vector<std::vector<int32_t>>& tables);

}  // namespace zc::test
