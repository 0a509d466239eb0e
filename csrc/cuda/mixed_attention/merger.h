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
  // From a consumer's slot.
  ZC_DEVICE void load(const float* column, int lane) {
    ZC_UNROLL for (int i = 0; i < kChannels / 4; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(column + channel(i, lane));
      o[4 * i] = x.x, o[4 * i + 1] = x.y, o[4 * i + 2] = x.z, o[4 * i + 3] = x.w;
    }
    const float2 x = *reinterpret_cast<const float2*>(column + kDim);
    max = x.x, sum = x.y;
  }
};

// A column's part on its way to another block: words of three floats and a flag, which arrive one
// by one, in no order.
template <int kDim>
struct LeftPart {
  using Part = ColumnPart<kDim>;
  static constexpr int kWords = (Part::kChannels + 2 + 2) / 3;  // of a lane
  static constexpr int kWarpWords = 32 * kWords;
  uint4 words[kWords];

  // flag: not zero.
  ZC_DEVICE static void leave(const Part& part, uint32_t flag, uint4* to, int lane) {
    const auto bits = [&](int i) {
      const float x = i < Part::kChannels ? part.o[i < Part::kChannels ? i : 0]
                                          : (i == Part::kChannels ? part.max : part.sum);
      return float_to_bits(x);
    };
    ZC_UNROLL for (int w = 0; w < kWords; ++w) simt::store_whole(
        to + 32 * w + lane, make_uint4(bits(3 * w), bits(3 * w + 1), bits(3 * w + 2), flag));
  }
  // Makes the place ready for the next part.
  ZC_DEVICE static void clear(uint4* at, int lane) {
    ZC_UNROLL for (int w = 0; w < kWords; ++w) at[32 * w + lane] = make_uint4(0, 0, 0, 0);
  }
  ZC_DEVICE void load(const uint4* from, int lane) {
    ZC_UNROLL for (int w = 0; w < kWords; ++w) words[w] = simt::load_whole(from + 32 * w + lane);
  }
  ZC_DEVICE bool is_there() const {
    bool all = true;
    ZC_UNROLL for (int w = 0; w < kWords; ++w) all = all & (words[w].w != 0);
    return all;
  }
  ZC_DEVICE uint32_t flag() const { return words[0].w; }
  ZC_DEVICE Part part() const {
    const auto value = [&](int i) {
      const uint4& word = words[i / 3];
      return bits_to_float(i % 3 == 0 ? word.x : (i % 3 == 1 ? word.y : word.z));
    };
    Part part;
    ZC_UNROLL for (int i = 0; i < Part::kChannels; ++i) part.o[i] = value(i);
    part.max = value(Part::kChannels);
    part.sum = value(Part::kChannels + 1);
    return part;
  }
};

template <typename Block>
class Merger {
 public:
  using Memory = BlockMemory<Block>;
  static constexpr int kDim = Block::kDim;
  static constexpr int kConsumers = Block::kConsumers;
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
      if (kind == kEnd) add_consumers(stages, own);
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

  // What the consumers have of a split. In a loop that is not unrolled: a block that has few splits
  // finds no instructions in a cache.
  ZC_DEVICE void add_consumers(const int* stages, ColumnPart<kDim>& sum) const {
    const auto column_of = [&](int w) {
      return reinterpret_cast<const float*>(memory_.ring[w][stages[w]]) +
             column() * kColumnStride<kDim>;
    };
    ZC_UNROLL for (int w = 0; w < kConsumers; ++w) sum.max = fmaxf(sum.max, column_of(w)[kDim]);
    const bool nothing = sum.max == -INFINITY;  // seen; a sum may be NaN all the same
    ZC_NO_UNROLL for (int w = 0; w < kConsumers; ++w) {
      ColumnPart<kDim> part;
      part.load(column_of(w), lane());
      const float factor = nothing ? 1.0f : simt::ex2(part.max - sum.max);
      ZC_UNROLL for (int i = 0; i < part.kChannels; ++i) sum.o[i] =
          fmaf(part.o[i], factor, sum.o[i]);
      sum.sum = fmaf(part.sum, factor, sum.sum);
    }
  }

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
  // split they are of, the number of splits as the flag. Whoever comes last merges all, in order,
  // waiting for words that are still on their way.
  ZC_DEVICE void share_splits(const ItemHead& head, int split, bool is_last,
                              const ColumnPart<kDim>& own) const {
    using Left = LeftPart<kDim>;
    const auto place = [&](int i) {
      return p_.partials + (int64_t{head.origin} * kMaxSplits + i) * Left::kWarpWords;
    };
    const bool has_first = head.first_split == 0;
    Left::leave(own, has_first ? static_cast<uint32_t>(head.end_split) : 1u,
                place(has_first ? 0 : split), lane());
    if (!is_last) return;
    int was_last = 0;
    if (lane() == 0) {
      int32_t* arrivals = p_.arrivals + head.origin;
      const int n_own = head.end_split - head.first_split;
      was_last = atomicAdd(arrivals, n_own) == head.n_splits - n_own;
      if (was_last != 0) atomicExch(arrivals, 0);  // for the next op
    }
    if (__shfl_sync(~0u, was_last, 0) == 0) return;
    Left first;
    do {
      first.load(place(0), lane());
    } while (!first.is_there());
    ColumnPart<kDim> sum = first.part();
    const int n_first = static_cast<int>(first.flag());  // splits in it
    constexpr int kTogether = 2;                         // under way
    ZC_NO_UNROLL for (int i0 = n_first; i0 < head.n_splits; i0 += kTogether) {
      Left left[kTogether];
      bool all;
      do {
        all = true;
        ZC_UNROLL for (int i = 0; i < kTogether; ++i) {
          const bool exists = i0 + i < head.n_splits;
          left[i].load(place(exists ? i0 + i : 0), lane());
          all = all & left[i].is_there();
        }
      } while (!all);
      ZC_UNROLL for (int i = 0; i < kTogether; ++i) if (i0 + i < head.n_splits)
          sum.add(left[i].part());
    }
    store_column(head, sum);
    ZC_NO_UNROLL for (int i = 0; i < head.n_splits; i = i == 0 ? n_first : i + 1)
        Left::clear(place(i), lane());
  }

  ZC_DEVICE void store_column(const ItemHead& head, const ColumnPart<kDim>& x) const {
    using Part = ColumnPart<kDim>;
    if (column() >= head.n_columns) return;
    const int64_t row = head.row(p_, column());
    const float inverse = 1.0f / x.sum;
    const auto pair = [&](int i) {
      const float a = x.sum == 0.0f ? 0.0f : x.o[i] * inverse;
      const float b = x.sum == 0.0f ? 0.0f : x.o[i + 1] * inverse;
      return p_.bf16 ? simt::pack2(a, b, bf16{}) : simt::pack2(a, b, f16{});
    };
    ZC_UNROLL for (int i = 0; i < Part::kChannels; i += 4) *
        reinterpret_cast<uint2*>(p_.out + row * kDim + Part::channel(i / 4, lane())) =
        make_uint2(pair(i), pair(i + 2));
    if (lane() % Part::kLanes == 0)
      p_.lse[row] = x.sum == 0.0f ? -INFINITY : fmaf(x.max, kLn2, logf(x.sum));
  }

  // A masked sequence attends to nothing.
  ZC_DEVICE void clear_rows(const ItemHead& head) const {
    const int64_t first = int64_t{head.q_begin} * p_.n_heads;
    const int64_t n = int64_t{head.q_len} * p_.n_heads;
    for (int64_t j = lane(); j < n * kDim; j += 32) p_.out[first * kDim + j] = 0;
    for (int64_t j = lane(); j < n; j += 32) p_.lse[first + j] = -INFINITY;
  }

  const Params& p_;
  Memory& memory_;
};

}  // namespace zc::cuda::mixed
