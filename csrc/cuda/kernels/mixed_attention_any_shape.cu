#include "csrc/cuda/device/floats.h"
#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/kernels/mixed_attention.h"

// mixedAttention for what its tensor-core kernel does not take: float32 queries and head_dims other
// than 64, 96, 128 and 256. The same folding of scales, in float32.
namespace zc::cuda {

namespace {

constexpr int kMaxGroup = 64;
constexpr int kChannels = 2;  // that one thread accumulates, at most

struct Params {
  const void* q;  // (total_q, n_heads, head_dim)
  void* out;      // the same
  DType dtype;    // of both
  float* lse;
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* tables;
  int64_t tables_words;
  const int32_t* starts;
  const int32_t* cu_seqlens;
  const int32_t* positions;
  int32_t n_seqs;
  int32_t total_q;
  int32_t n_heads;
  int32_t head_dim;
  int32_t layer;
  float scale;
  int32_t sliding_window;
  bool tail;
  bool causal;
  FaultSink faults;
};

// The sum (or the largest) of x over the block, in the same order every time.
template <bool kMax, int kThreads>
ZC_DEVICE float reduce(float x, float* shared) {
  ZC_UNROLL for (int m = 16; m > 0; m /= 2) {
    const float y = __shfl_xor_sync(~0u, x, m);
    x = kMax ? fmaxf(x, y) : x + y;
  }
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float total = shared[0];
  for (int w = 1; w < kThreads / 32; ++w)
    total = kMax ? fmaxf(total, shared[w]) : total + shared[w];
  __syncthreads();
  return total;
}

// The sequence that a row belongs to; -1 when cu_seqlens lies.
template <int kThreads>
ZC_DEVICE int sequence_of(const Params& p, int row, int* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) shared[0] = p.cu_seqlens[0] == 0 && p.cu_seqlens[p.n_seqs] == p.total_q;
  __syncthreads();
  for (int i = thread; i < p.n_seqs; i += kThreads)
    if (p.cu_seqlens[i] > p.cu_seqlens[i + 1]) shared[0] = 0;
  __syncthreads();
  const bool good = shared[0] != 0;
  if (thread == 0) check_data(p.faults, good, FaultReason::kSeqlens, p.total_q);
  if (!good) return -1;
  int seq = 0;
  for (int end = p.n_seqs; end - seq > 1;) {
    const int middle = (seq + end) / 2;
    if (p.cu_seqlens[middle] <= row)
      seq = middle;
    else
      end = middle;
  }
  return seq;
}

// The table of a sequence, its numbers of heads checked; null words for one that is masked.
ZC_DEVICE SequenceTable checked_table(const Params& p, int seq) {
  const int64_t start = p.starts[seq];
  if (start == -1) return {nullptr, 0};
  if (!check_data(p.faults, start >= 0 && start + kTableHeader <= p.tables_words,
                  FaultReason::kTableStart, seq, start, p.tables_words))
    return {nullptr, 0};
  const int n_kv_heads = p.tables[start + kTableKvHeads];
  const bool divides = n_kv_heads >= 1 && p.n_heads % n_kv_heads == 0;
  if (!check_data(p.faults, divides, FaultReason::kKvHeads, n_kv_heads, p.n_heads))
    return {nullptr, 0};
  const int group = p.n_heads / n_kv_heads;
  if (!check_data(p.faults, group <= kMaxGroup, FaultReason::kGroup, group, kMaxGroup))
    return {nullptr, 0};
  return sequence_table(p.faults, p.tables, p.tables_words, p.starts, seq, p.layer, n_kv_heads);
}

// Slots of a segment whose tokens lie before `position`: slots are in order of position.
template <int kThreads>
ZC_DEVICE int slots_before(const SegmentView& view, int64_t position, float* shared) {
  const int64_t n = position - view.segment.start;
  if (n <= 0) return 0;
  if (view.segment.span == 0)
    return n < view.segment.n_tokens ? static_cast<int>(n) : view.segment.n_tokens;
  int64_t span = view.segment.span < 0 ? -int64_t{view.segment.span} : view.segment.span;
  if (n < span) span = n;
  int count = 0;
  for (int64_t i = threadIdx.x; i < span; i += kThreads) count += holds(view, i) ? 1 : 0;
  // Counts up to 2^24 are exact in float32.
  return static_cast<int>(reduce<false, kThreads>(static_cast<float>(count), shared));
}

// One block attends with one row of q and one head, of kChannels kThreads channels at most. A
// thread owns every kThreads-th token of a segment for the scores, every kThreads-th channel for
// the output. Bound by the arithmetic of reading codes one by one. Shared memory: 20 bytes a
// thread. So many blocks a multiprocessor that it has 512 threads: left to itself, ptxas aims at
// more on Hopper and spills.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    mixed_attention_any_shape_kernel(Params p) {
  ZC_SHARED(float, folded, [kChannels * kThreads]);
  ZC_SHARED(float, query, [kChannels * kThreads]);
  ZC_SHARED(float, weights, [kThreads]);
  ZC_SHARED(float, partial, [kThreads / 32]);
  ZC_SHARED(int, flag, [1]);
  const int thread = static_cast<int>(threadIdx.x);
  const int d = p.head_dim;
  const int row = static_cast<int>(blockIdx.x / static_cast<unsigned>(p.n_heads));
  const int head = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.n_heads));
  const int64_t at = int64_t{row} * p.n_heads + head;
  const int seq = sequence_of<kThreads>(p, row, flag);
  if (seq < 0) return;
  const SequenceTable table = checked_table(p, seq);
  float max = -INFINITY;
  float sum = 0.0f;
  float o[kChannels] = {};
  const int n_kv_heads = table.words ? table.words[kTableKvHeads] : 1;
  const int kv_head = head / (p.n_heads / n_kv_heads);
  const int n_segments =
      table.words ? checked_segment_count(p.faults, table.words, p.layer, kv_head) : 0;
  if (table.words)
    for (int c = thread; c < d; c += kThreads)
      query[c] = p.scale * load_float(p.q, p.dtype, at * d + c);

  for (int index = p.tail ? 0 : 1; index < n_segments; ++index) {
    const SegmentView view =
        view_segment(p.faults, table, p.pool, p.pool_bytes, p.layer, kv_head, index, d);
    const Segment& s = view.segment;
    if (s.n_tokens == 0) continue;
    int first = 0;
    int last = s.n_tokens;
    if (index == 0 && p.causal) last -= p.cu_seqlens[seq + 1] - 1 - row;
    if (p.sliding_window > 0)
      first =
          slots_before<kThreads>(view, int64_t{p.positions[row]} - p.sliding_window + 1, partial);
    if (first >= last) continue;

    float constant = 0.0f;
    __syncthreads();  // query is there; folded was read
    for (int c = thread; c < d; c += kThreads) {
      folded[c] = query[c];
      if (!view.k_quantized()) continue;
      constant = fmaf(query[c], to_float(view.channel_params(1)[c]), constant);
      folded[c] = query[c] * to_float(view.channel_params(0)[c]);
    }
    constant = reduce<false, kThreads>(constant, partial);

    float segment_o[kChannels] = {};
    float rest = 0.0f;  // sum_j p_j mu_j of this thread's tokens
    for (int slot0 = first; slot0 < last; slot0 += kThreads) {
      const int slot = slot0 + thread;
      const int page = slot / kPageTokens;
      const int token = slot % kPageTokens;
      const bool seen =
          slot < last && page_inside(p.faults, view, p.pool_bytes, page, p.layer, kv_head, index);
      float score = -INFINITY;
      if (seen) {
        score = constant;
        const uint8_t* part = view.k_part(page);
        for (int c = 0; c < d; ++c) {
          const float k = view.k_quantized()
                              ? static_cast<float>(read_code<true>(part, s.k_format, d, token, c))
                              : read_float<true>(part, s.k_format, d, token, c);
          score = fmaf(folded[c], k, score);
        }
      }
      const float largest = reduce<true, kThreads>(score, partial);
      // NaN must not vanish where nothing but -inf is seen beside it.
      const float nan = reduce<false, kThreads>(score != score ? 1.0f : 0.0f, partial);
      const float next = fmaxf(max, largest);
      if (next == -INFINITY) {
        if (nan > 0.0f) sum = NAN;
        continue;
      }
      const float correction = max == -INFINITY ? 0.0f : expf(max - next);
      max = next;
      const float weight = seen ? expf(score - next) : 0.0f;
      sum = sum * correction + reduce<false, kThreads>(weight, partial);
      rest *= correction;
      float own = weight;
      if (seen && view.v_quantized()) {
        const uint32_t params = view.token_params(page)[token];
        rest = fmaf(weight, to_float(token_zero(params)), rest);
        own *= to_float(token_scale(params));
      }
      weights[thread] = own;
      __syncthreads();
      const int n = last - slot0 < kThreads ? last - slot0 : kThreads;
      ZC_UNROLL for (int i = 0; i < kChannels; ++i) {
        const int c = thread + i * kThreads;
        o[i] *= correction;
        segment_o[i] *= correction;
        if (c >= d) continue;
        for (int j = 0; j < n; ++j) {
          const int v_page = (slot0 + j) / kPageTokens;
          if (!page_inside(p.faults, view, p.pool_bytes, v_page, p.layer, kv_head, index)) continue;
          const uint8_t* part = view.v_part(v_page);
          const int v_token = (slot0 + j) % kPageTokens;
          const float v =
              view.v_quantized()
                  ? static_cast<float>(read_code<false>(part, s.v_format, d, v_token, c))
                  : read_float<false>(part, s.v_format, d, v_token, c);
          segment_o[i] = fmaf(weights[j], v, segment_o[i]);
        }
      }
      __syncthreads();  // weights were read
    }
    rest = reduce<false, kThreads>(rest, partial);
    ZC_UNROLL for (int i = 0; i < kChannels; ++i) {
      const int c = thread + i * kThreads;
      if (c >= d) continue;
      o[i] += view.v_quantized() ? to_float(view.channel_params(2)[c]) * (segment_o[i] + rest)
                                 : segment_o[i];
    }
  }
  ZC_UNROLL for (int i = 0; i < kChannels; ++i) {
    const int c = thread + i * kThreads;
    if (c < d) store_float(p.out, p.dtype, at * d + c, sum == 0.0f ? 0.0f : o[i] / sum);
  }
  if (thread == 0) p.lse[at] = sum == 0.0f ? -INFINITY : max + logf(sum);
}

}  // namespace

void mixed_attention_any_shape(Context& context, const MixedAttentionArgs& a) {
  Params p{};
  p.q = a.q.data;
  p.out = a.out.data;
  p.dtype = a.q.dtype;
  p.lse = a.lse.as<float>();
  p.pool = a.pool.as<uint8_t>();
  p.pool_bytes = a.pool.size(0);
  p.tables = a.tables.as<int32_t>();
  p.tables_words = a.tables.size(0);
  p.starts = a.starts.as<int32_t>();
  p.cu_seqlens = a.cu_seqlens.as<int32_t>();
  p.positions = a.positions.as<int32_t>();
  p.n_seqs = static_cast<int32_t>(a.starts.size(0));
  p.total_q = static_cast<int32_t>(a.q.size(0));
  p.n_heads = static_cast<int32_t>(a.q.size(1));
  p.head_dim = static_cast<int32_t>(a.q.size(2));
  p.layer = a.layer;
  p.scale = a.scale;
  p.sliding_window = a.sliding_window;
  p.tail = a.tail;
  p.causal = a.causal;
  p.faults = context.faults();
  if (p.n_seqs == 0) return;
  const auto run = [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    launch(context, &mixed_attention_any_shape_kernel<kThreads>,
           blocks_for(int64_t{p.total_q} * p.n_heads, 1), kThreads, 0, p);
  };
  p.head_dim <= 256 ? run(std::integral_constant<int, 128>{})
                    : run(std::integral_constant<int, kMaxHeadDim / kChannels>{});
}

}  // namespace zc::cuda
