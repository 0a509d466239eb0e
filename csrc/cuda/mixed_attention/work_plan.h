#pragma once

#include "csrc/cuda/mixed_attention/layout.h"

// What a batch is to the blocks: a line of splits, of which each takes a piece. All blocks draw the
// same line, from lengths that lie in device memory.
namespace zc::cuda::mixed {

// In units of 16 tokens: a split's own, and 256 for its merging. Bounded, so that no table makes
// sums overflow.
ZC_DEVICE int cost_of_split(int64_t n_tokens, int n_splits) {
  const int64_t own = n_tokens > 0 ? (n_tokens + 16 * n_splits - 1) / (16 * n_splits) : 0;
  return static_cast<int>(own < 0xffff ? own : 0xffff) + 16;
}

ZC_DEVICE SequenceWork sequence_work(const Params& p, int seq) {
  SequenceWork w{};
  w.team = 1;
  w.split_cost = 1;
  // Asked for together, as the table's header is below: each wait is most of a microsecond.
  w.q_begin = p.cu_seqlens[seq];
  w.q_len = p.cu_seqlens[seq + 1] - w.q_begin;
  const int64_t start = p.starts[seq];
  w.n_splits_in_line = w.q_len > 0 ? 1 : 0;
  if ((w.q_len <= 0) | (start == -1)) return w;
  if (!check_data(p.faults, start >= 0 && start + kTableHeader <= p.tables_words,
                  FaultReason::kTableStart, seq, start, p.tables_words))
    return w;
  int32_t header[kTableHeader];
  ZC_UNROLL for (int i = 0; i < kTableHeader; ++i) header[i] = p.tables[start + i];
  const int n_kv_heads = header[kTableKvHeads];
  const bool divides = n_kv_heads >= 1 && p.n_heads % n_kv_heads == 0;
  if (!check_data(p.faults, divides, FaultReason::kKvHeads, n_kv_heads, p.n_heads)) return w;
  const int group = p.n_heads / n_kv_heads;
  if (!check_data(p.faults, group <= kMaxGroup, FaultReason::kGroup, group, kMaxGroup)) return w;
  w.table = checked_table(p.faults, p.tables + start, p.tables_words - start, p.layer, n_kv_heads);
  if (!w.table.words) return w;
  w.n_kv_heads = n_kv_heads;
  w.group = group;
  const int n_blocks = static_cast<int>(gridDim.x);
  w.team = (group + kColumns - 1) / kColumns;
  if (w.team > n_blocks) w.team = n_blocks;
  const int64_t team_columns = int64_t{w.team} * kColumns;
  w.n_column_teams = static_cast<int>((int64_t{w.q_len} * group + team_columns - 1) / team_columns);
  // By the tokens that this op attends to, whatever the batch and however many rows.
  int64_t n_tokens = int64_t{header[kTableTailStart]} + (p.tail ? header[kTableTailLength] : 0);
  if (p.sliding_window > 0 && sees_as_one(group) && n_tokens > p.sliding_window)
    n_tokens = p.sliding_window;
  w.n_splits = split_count(n_tokens);
  w.split_cost = cost_of_split(n_tokens, w.n_splits);
  w.n_splits_in_line = int64_t{n_kv_heads} * w.n_column_teams * w.n_splits;
  return w;
}

// All splits of the batch in a line, sequence after sequence, cut into pieces of the same cost: one
// for each team of blocks. A team has the splits that begin in its piece.
struct WorkLine {
  const int64_t* cost_before;  // (n_seqs + 1), shared: of the sequences before each
  int n_seqs;
  int team;  // blocks of a team: what the sequence with the most heads a group asks for
  int n_teams;

  ZC_DEVICE int64_t cost() const { return cost_before[n_seqs]; }
  ZC_DEVICE int64_t piece_begin(int piece) const {
    return (piece * cost() + n_teams - 1) / n_teams;
  }
  ZC_DEVICE int piece_at(int64_t at) const { return static_cast<int>(at * n_teams / cost()); }
  // The piece of a team; -1: none. Where there are fewer splits than pieces, those that have one
  // are evenly spaced, often by an even number. So even pieces go to the first half of the blocks
  // and odd ones to the second, which the device begins on multiprocessors that have one already.
  ZC_DEVICE int piece_of(int team_index) const {
    const int half = (n_teams + 1) / 2;
    if (team_index >= n_teams) return -1;
    return team_index < half ? 2 * team_index : 2 * (team_index - half) + 1;
  }
  // The last sequence that begins at or before it.
  ZC_DEVICE int sequence_at(int64_t at) const {
    int seq = 0;
    for (int end = n_seqs; end - seq > 1;) {
      const int middle = (seq + end) / 2;
      if (cost_before[middle] <= at)
        seq = middle;
      else
        end = middle;
    }
    return seq;
  }
};

// The line of a batch; without cost when cu_seqlens lies. cost_before, works, and `team`, which is
// 1, are in shared memory. Called by all kThreads threads of a block.
template <int kThreads>
ZC_DEVICE WorkLine line_up(const Params& p, int64_t* cost_before, SequenceWork (&works)[kKeptWorks],
                           int* team) {
  const int thread = static_cast<int>(threadIdx.x);
  bool good = (p.cu_seqlens[0] == 0) & (p.cu_seqlens[p.n_seqs] == p.total_q);  // at once
  for (int i = thread; i < p.n_seqs; i += kThreads) {
    good = good & (p.cu_seqlens[i] <= p.cu_seqlens[i + 1]);
    const SequenceWork work = sequence_work(p, i);
    cost_before[i + 1] = work.n_splits_in_line * work.split_cost;
    if (i < kKeptWorks) works[i] = work;
    if (work.team > 1) atomicMax(team, work.team);
  }
  good = __syncthreads_and(good) != 0;
  if (thread == 0) {
    check_data(p.faults, good, FaultReason::kSeqlens, p.total_q);
    cost_before[0] = 0;
  }
  if (thread < 32) {
    int64_t before = 0;
    for (int i = 0; i < p.n_seqs; i += 32) {
      const bool inside = i + thread < p.n_seqs;
      int64_t x = good && inside ? cost_before[i + thread + 1] : 0;
      ZC_UNROLL for (int d = 1; d < 32; d *= 2) {
        const int64_t y = __shfl_up_sync(~0u, x, d);
        if (thread >= d) x += y;
      }
      x += before;
      if (inside) cost_before[i + thread + 1] = x;
      before = __shfl_sync(~0u, x, 31);
    }
  }
  __syncthreads();
  return {cost_before, p.n_seqs, *team, static_cast<int>(gridDim.x) / *team};
}

}  // namespace zc::cuda::mixed
