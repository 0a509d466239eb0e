#pragma once

#include "csrc/cuda/mixed_attention/consumer.h"

// The warp that adds up what consumers, and blocks, have of a split and of a row, always in the
// same order, while the consumers are in the next split already.
namespace zc::cuda::mixed {

// Some channels of a column of O with the column's softmax state: what one lane merges.
template <int kDim>
struct ColumnPart {
  static constexpr int kLanes = 32 / kColumns;  // of a column
  static constexpr int kChannels = kDim / kLanes;
  float o[kChannels];
  float max;
  float sum;

  ZC_DEVICE void clear() {
    ZC_UNROLL for (int i = 0; i < kChannels; ++i) o[i] = 0.0f;
    max = -INFINITY;
    sum = 0.0f;
  }
  // Products fused by hand: left to the compiler, splits merged in one place and in another would
  // round differently.
  ZC_DEVICE void add(const ColumnPart& other) {
    const float larger = fmaxf(max, other.max);
    const bool nothing = larger == -INFINITY;  // seen yet; a sum may be NaN all the same
    const float own_factor = nothing ? 1.0f : simt::ex2(max - larger);
    const float other_factor = nothing ? 1.0f : simt::ex2(other.max - larger);
    ZC_UNROLL for (int i = 0; i < kChannels; ++i) o[i] =
        fmaf(o[i], own_factor, other.o[i] * other_factor);
    sum = fmaf(sum, own_factor, other.sum * other_factor);
    max = larger;
  }
  // The place of four channels in a column: neighbouring lanes have neighbouring ones.
  ZC_DEVICE static int channel(int i, int lane) { return 4 * (kLanes * i + lane % kLanes); }
  // kShared: of shared memory; else past L1, where others have written.
  template <bool kShared>
  ZC_DEVICE void load(const float* column, int lane) {
    ZC_UNROLL for (int i = 0; i < kChannels / 4; ++i) {
      const float4* from = reinterpret_cast<const float4*>(column + channel(i, lane));
      const float4 x = kShared ? *from : __ldcg(from);
      o[4 * i] = x.x, o[4 * i + 1] = x.y, o[4 * i + 2] = x.z, o[4 * i + 3] = x.w;
    }
    const float2* state = reinterpret_cast<const float2*>(column + kDim);
    const float2 x = kShared ? *state : __ldcg(state);
    max = x.x, sum = x.y;
  }
  ZC_DEVICE void store(float* column, int lane) const {
    ZC_UNROLL for (int i = 0; i < kChannels / 4; ++i) *
        reinterpret_cast<float4*>(column + channel(i, lane)) =
        make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
    if (lane % kLanes == 0) *reinterpret_cast<float2*>(column + kDim) = make_float2(max, sum);
  }
};

// Floats between two columns of partial results in device memory.
template <int kDim>
inline constexpr int kPartialStride = kDim + 4;

ZC_DEVICE void store_out(const Params& p, int64_t index, float x) {
  p.out[index] = p.bf16 ? to_bf16(x).bits : from_float<f16>(x).bits;
}

template <int kDim, int kStages>
class Merger {
 public:
  using Memory = BlockMemory<kDim, kStages>;
  static_assert(kColumns * kColumnStride<kDim> * sizeof(float) <= kSlotBytes<kDim>);

  ZC_DEVICE Merger(const Params& p, Memory& memory) : p_(p), memory_(memory) {}

  ZC_DEVICE void run() {
    ColumnPart<kDim> sum;  // of an item's splits, where it has the first
    sum.clear();
    ZC_NO_UNROLL for (uint32_t n = 0;; ++n) {
      const uint32_t place = n & 1;
      simt::mbarrier_wait(simt::smem_u32(memory_.results_full + place), n >> 1 & 1);
      __syncwarp();
      const int* stages = memory_.results[place];
      const Entry& mark = memory_.entries[0][stages[0]];
      const uint32_t what = mark.what;
      const int split = mark.first;
      const uint32_t kind = what & 0xff;
      if (kind == kQuit) return;
      const int item = (what & kItemParity) != 0 ? 1 : 0;
      const ItemHead& head = memory_.items[item].head;
      ColumnPart<kDim> own;
      own.clear();
      if (kind == kEnd) {
        ZC_UNROLL for (int w = 0; w < kConsumers; ++w) {
          ColumnPart<kDim> part;
          part.template load<true>(reinterpret_cast<const float*>(memory_.ring[w][stages[w]]) +
                                       column() * kColumnStride<kDim>,
                                   lane());
          own.add(part);
        }
      }
      const int stage = stages[lane() < kConsumers ? lane() : 0];
      __syncwarp();
      if (lane() < kConsumers) simt::mbarrier_arrive(simt::smem_u32(&memory_.empty[lane()][stage]));
      if (lane() == 0) simt::mbarrier_arrive(simt::smem_u32(memory_.results_free + place));

      if (kind == kEnd)
        finish_split(head, split, (what & kIsLast) != 0, own, sum);
      else
        clear_rows(head);
      if (kind != kEnd || (what & kIsLast) != 0) {
        __syncwarp();
        if (lane() == 0) simt::mbarrier_arrive(simt::smem_u32(memory_.item_free + item));
      }
    }
  }

 private:
  ZC_DEVICE static int lane() { return static_cast<int>(threadIdx.x & 31); }
  ZC_DEVICE static int column() { return lane() / ColumnPart<kDim>::kLanes; }

  // Splits from the first on are added to each other, in `sum`; others, and what an item has of the
  // first ones, are left for whoever comes last.
  ZC_DEVICE void finish_split(const ItemHead& head, int split, bool is_last,
                              const ColumnPart<kDim>& own, ColumnPart<kDim>& sum) const {
    const bool adds = head.first_split == 0;
    if (adds && split > 0)
      sum.add(own);
    else
      sum = own;
    if (adds && !is_last) return;
    if (adds && head.end_split == head.n_splits)
      store_column(head, sum);
    else
      share_splits(head, split, is_last, sum);
  }

  // Leaves the columns where the blocks that have splits of them meet: in the place of the first
  // split they are of. Whoever comes last merges all, in order.
  ZC_DEVICE void share_splits(const ItemHead& head, int split, bool is_last,
                              const ColumnPart<kDim>& own) const {
    const auto place = [&](int i) {
      return p_.partials +
             ((int64_t{head.origin} * kMaxSplits + i) * kColumns + column()) * kPartialStride<kDim>;
    };
    float* to = place(head.first_split == 0 ? 0 : split);
    own.store(to, lane());
    if (head.first_split == 0 && lane() % ColumnPart<kDim>::kLanes == 0)
      reinterpret_cast<int32_t*>(to)[kDim + 2] = head.end_split;
    if (!is_last) return;
    __syncwarp();
    __threadfence();
    int was_last = 0;
    if (lane() == 0) {
      int32_t* arrivals = p_.arrivals + head.origin;
      const int n_own = head.end_split - head.first_split;
      was_last = atomicAdd(arrivals, n_own) == head.n_splits - n_own;
      if (was_last != 0) *arrivals = 0;  // for the next op
    }
    if (__shfl_sync(~0u, was_last, 0) == 0) return;
    __threadfence();
    __syncwarp();
    const int n_first = __ldcg(reinterpret_cast<const int32_t*>(place(0)) + kDim + 2);
    ColumnPart<kDim> sum;
    sum.clear();
    constexpr int kTogether = 4;  // loads under way: each takes most of a microsecond
    ZC_NO_UNROLL for (int first = 0; first < head.n_splits; first += kTogether) {
      ColumnPart<kDim> part[kTogether];
      ZC_UNROLL for (int i = 0; i < kTogether; ++i) {
        part[i].clear();
        if (first + i < head.n_splits) part[i].template load<false>(place(first + i), lane());
      }
      if (first == 0) sum = part[0];
      ZC_UNROLL for (int i = 0; i < kTogether; ++i) {
        // Others within the first one's are old.
        if (first + i >= n_first && first + i < head.n_splits) sum.add(part[i]);
      }
    }
    store_column(head, sum);
  }

  ZC_DEVICE void store_column(const ItemHead& head, const ColumnPart<kDim>& x) const {
    using Part = ColumnPart<kDim>;
    if (column() >= head.n_columns) return;
    const int64_t row = head.row(p_, column());
    ZC_UNROLL for (int i = 0; i < Part::kChannels; ++i)
        store_out(p_, row * kDim + Part::channel(i / 4, lane()) + i % 4,
                  x.sum == 0.0f ? 0.0f : x.o[i] / x.sum);
    if (lane() % Part::kLanes == 0)
      p_.lse[row] = x.sum == 0.0f ? -INFINITY : fmaf(x.max, kLn2, logf(x.sum));
  }

  // A masked sequence attends to nothing.
  ZC_DEVICE void clear_rows(const ItemHead& head) const {
    const int64_t first = int64_t{head.q_begin} * p_.n_heads;
    const int64_t n = int64_t{head.q_len} * p_.n_heads;
    for (int64_t j = lane(); j < n * kDim; j += 32) store_out(p_, first * kDim + j, 0.0f);
    for (int64_t j = lane(); j < n; j += 32) p_.lse[first + j] = -INFINITY;
  }

  const Params& p_;
  Memory& memory_;
};

}  // namespace zc::cuda::mixed
