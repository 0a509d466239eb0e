#pragma once

#include "csrc/cuda/mixed_attention/layout.h"

// What a batch is to the blocks: a list of items, the same for all of them.
namespace zc::cuda::mixed {

// What the items of one sequence are.
struct SequenceWork {
  SequenceTable table;
  int n_kv_heads;
  int group;
  int q_begin;
  int q_len;
  int n_column_blocks;
  int n_splits;
  int n_items;  // (kv head, split, block of columns), the last fastest; a masked sequence has one
};

ZC_DEVICE SequenceWork sequence_work(const Params& p, int seq) {
  SequenceWork w{};
  w.q_begin = p.cu_seqlens[seq];
  w.q_len = p.cu_seqlens[seq + 1] - w.q_begin;
  if (w.q_len <= 0) return w;
  w.n_items = 1;
  const int64_t start = p.starts[seq];
  if (start == -1) return w;
  if (!check_data(p.faults, start >= 0 && start + kTableHeader <= p.tables_words,
                  FaultReason::kTableStart, seq, start, p.tables_words))
    return w;
  const int n_kv_heads = p.tables[start + kTableKvHeads];
  const bool divides = n_kv_heads >= 1 && p.n_heads % n_kv_heads == 0;
  if (!check_data(p.faults, divides, FaultReason::kKvHeads, n_kv_heads, p.n_heads)) return w;
  const int group = p.n_heads / n_kv_heads;
  if (!check_data(p.faults, group <= kMaxGroup, FaultReason::kGroup, group, kMaxGroup)) return w;
  w.table = checked_table(p.faults, p.tables + start, p.tables_words - start, p.layer, n_kv_heads);
  if (!w.table.words) return w;
  w.n_kv_heads = n_kv_heads;
  w.group = group;
  w.n_column_blocks = static_cast<int>((int64_t{w.q_len} * group + kColumns - 1) / kColumns);
  // By the tokens that this op attends to, whatever the batch and however many rows.
  const int32_t* header = w.table.words;
  w.n_splits =
      split_count(int64_t{header[kTableTailStart]} + (p.tail ? header[kTableTailLength] : 0));
  w.n_items = n_kv_heads * (p.whole ? 1 : w.n_splits) * w.n_column_blocks;
  return w;
}

// first_item[i]: items of the sequences before i; 0 throughout when cu_seqlens lies. Called by all
// threads of a block.
ZC_DEVICE void count_items(const Params& p, int32_t* first_item) {
  const int thread = static_cast<int>(threadIdx.x);
  bool good = p.cu_seqlens[0] == 0 && p.cu_seqlens[p.n_seqs] == p.total_q;
  for (int i = thread; i < p.n_seqs; i += kThreads)
    good = good && p.cu_seqlens[i] <= p.cu_seqlens[i + 1];
  good = __syncthreads_and(good) != 0;
  if (thread == 0) {
    check_data(p.faults, good, FaultReason::kSeqlens, p.total_q);
    first_item[0] = 0;
  }
  for (int i = thread; i < p.n_seqs; i += kThreads)
    first_item[i + 1] = good ? sequence_work(p, i).n_items : 0;
  __syncthreads();
  if (thread < 32) {
    int before = 0;
    for (int i = 0; i < p.n_seqs; i += 32) {
      const bool inside = i + thread < p.n_seqs;
      int x = inside ? first_item[i + thread + 1] : 0;
      ZC_UNROLL for (int d = 1; d < 32; d *= 2) {
        const int y = __shfl_up_sync(~0u, x, d);
        if (thread >= d) x += y;
      }
      x += before;
      if (inside) first_item[i + thread + 1] = x;
      before = __shfl_sync(~0u, x, 31);
    }
  }
  __syncthreads();
}

// The sequence of item i: the last one that begins at or before it.
ZC_DEVICE int sequence_of(const int32_t* first_item, int n_seqs, int i) {
  int seq = 0;
  for (int end = n_seqs; end - seq > 1;) {
    const int middle = (seq + end) / 2;
    if (first_item[middle] <= i)
      seq = middle;
    else
      end = middle;
  }
  return seq;
}

}  // namespace zc::cuda::mixed
