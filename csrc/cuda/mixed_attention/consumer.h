#pragma once

#include "csrc/cuda/mixed_attention/warp_state.h"

// A warp that multiplies: it attends to the units that the producer puts into its ring, and leaves
// what it has at the end of each split for the merger.
namespace zc::cuda::mixed {

// Floats between two columns of a warp's O in shared memory: lanes hit different banks.
template <int kDim>
inline constexpr int kColumnStride = kDim + 8;

template <typename Block>
class Consumer {
 public:
  using Memory = BlockMemory<Block>;
  static constexpr int kDim = Block::kDim;
  static constexpr bool kBulk = Block::kBulk;
  static constexpr int kStages = Block::kStages;
  static_assert(kColumns * kColumnStride<kDim> * sizeof(float) <= kSlotBytes<kDim>);

  ZC_DEVICE Consumer(const Params& p, Memory& memory) : p_(p), memory_(memory) {}

  ZC_DEVICE void run() {
    WarpState<kDim> state;
    state.clear();
    ZC_NO_UNROLL for (;;) {
      wait(count_);
      const Entry& entry = memory_.entries[warp()][stage_of(count_)];
      const uint32_t kind = entry.what & 0xff;
      if (kind == kUnit) {
        attend(entry, state);
        continue;
      }
      if (kind == kFold) {
        state.enter(p_, Layout{entry.layout}, reinterpret_cast<uint32_t*>(slot(count_)),
                    item_of(entry).q, memory_.running[warp()], lane());
        if (p_.sliding_window > 0 && lane() < kColumns)
          memory_.running[warp()].seen_from[lane()] =
              memory_.seen_from[warp()][stage_of(count_)][lane()];
        if constexpr (kBulk) simt::fence_async();  // the slot's next copy comes by another road
        advance();
        continue;
      }
      hand_over(kind == kEnd, state);
      if (kind == kQuit) return;
    }
  }

 private:
  // Not kept in registers, of which there are none to spare.
  ZC_DEVICE static int warp() { return static_cast<int>(threadIdx.x >> 5); }
  ZC_DEVICE static int lane() { return static_cast<int>(threadIdx.x & 31); }
  ZC_DEVICE static int stage_of(uint32_t count) { return static_cast<int>(count % kStages); }

  ZC_DEVICE uint8_t* slot(uint32_t count) const { return memory_.ring[warp()][stage_of(count)]; }
  ZC_DEVICE void wait(uint32_t count) const {
    simt::mbarrier_wait(simt::smem_u32(&memory_.full[warp()][stage_of(count)]),
                        count / kStages & 1);
    __syncwarp();
  }
  // n slots were read to their end: on to the next.
  ZC_DEVICE void advance(int n = 1) {
    __syncwarp();
    ZC_UNROLL for (int i = 0; i < 2; ++i) if (i < n) {
      if (lane() == 0)
        simt::mbarrier_arrive(simt::smem_u32(&memory_.empty[warp()][stage_of(count_)]));
      ++count_;
    }
  }

  // The unit at count_.
  ZC_DEVICE void attend(const Entry& entry, WarpState<kDim>& state) {
    const Layout layout{entry.layout};
    if ((entry.what & kHasTwoSlots) != 0) wait(count_ + 1);
    if (state.is_empty) state.begin_units(layout);
    state.is_empty = false;
    const int n_left = (entry.n_tokens - entry.first + kPageTokens - 1) / kPageTokens;
    const int n_pages = n_left < layout.pages() ? n_left : layout.pages();
    const int n_whole = whole_pages(entry, n_pages);
    // Not unrolled: what does not fit the cache of instructions is waited for by every warp anew.
    const auto each = [&](const auto& shape, const auto& with_k, const auto& with_v) {
      ZC_NO_UNROLL for (int page = 0; page < n_whole; ++page)
          attend_page<false>(shape, entry, page, state, with_k, with_v);
      ZC_NO_UNROLL for (int page = n_whole; page < n_pages; ++page)
          attend_page<true>(shape, entry, page, state, with_k, with_v);
    };
    const auto known = [&](auto k, auto v) {
      each(
          StaticShape<decltype(k)::value, decltype(v)::value, kDim>{}, [&](const auto& f) { f(k); },
          [&](const auto& f) { f(v); });
    };
    constexpr auto pair = [](Format k, Format v) {
      return static_cast<uint32_t>(k) | static_cast<uint32_t>(v) << 8;
    };
    switch (entry.layout & 0xffff) {
      case pair(Format::kU2, Format::kU2):
        known(kTag<Format::kU2>, kTag<Format::kU2>);
        break;
      case pair(Format::kU3, Format::kU2):
        known(kTag<Format::kU3>, kTag<Format::kU2>);
        break;
      case pair(Format::kU4, Format::kU4):
        known(kTag<Format::kU4>, kTag<Format::kU4>);
        break;
      case pair(Format::kF16, Format::kF16):
        known(kTag<Format::kF16>, kTag<Format::kF16>);
        break;
      default:
        each(
            AnyShape<kDim>{layout}, [&](const auto& f) { with_format(layout.k_format(), f); },
            [&](const auto& f) { with_format(layout.v_format(), f); });
    }
    advance((entry.what & kHasTwoSlots) != 0 ? 2 : 1);
  }

  // Which tokens of a segment there are, and which this lane's column sees.
  struct Mask {
    int n_tokens;
    int seen_from;
    int limit;
  };
  ZC_DEVICE Mask mask_of(const Entry& entry) const {
    Mask mask{entry.n_tokens, 0, entry.n_tokens};
    if ((entry.what & kIsCausal) != 0) {
      const ItemHead& head = item_of(entry).head;
      mask.limit += head.query(lane() & 3) - (head.q_len - 1);
    }
    if ((entry.what & kIsCut) != 0) mask.seen_from = memory_.running[warp()].seen_from[lane() & 3];
    return mask;
  }

  // How many of the first n_pages of a unit every column sees all tokens of.
  ZC_DEVICE int whole_pages(const Entry& entry, int n_pages) const {
    if ((entry.what & kIsCut) != 0) return 0;
    int n_tokens = entry.n_tokens - entry.first;
    if ((entry.what & kIsCausal) != 0) n_tokens -= item_of(entry).head.q_len - 1;
    const int n = n_tokens < 0 ? 0 : n_tokens / kPageTokens;
    return n < n_pages ? n : n_pages;
  }
  ZC_DEVICE const Item<kDim>& item_of(const Entry& entry) const {
    return memory_.items[(entry.what & kItemParity) != 0 ? 1 : 0];
  }

  // One page of a unit. with_k and with_v call what they are given with the format of K and of V as
  // a type. kMasked: not every column sees all of it.
  template <bool kMasked, typename Shape, typename WithK, typename WithV>
  ZC_DEVICE void attend_page(const Shape& shape, const Entry& entry, int page,
                             WarpState<kDim>& state, const WithK& with_k, const WithV& with_v) {
    const int in_slot = shape.in_slot();
    const uint8_t* const keys = slot(count_ + static_cast<uint32_t>(slot_of(in_slot, page))) +
                                place_of(in_slot, page) * shape.bytes();
    const uint8_t* const values = in_slot == 0 ? slot(count_ + 1) : keys + shape.k_bytes();
    float raw[2];
    with_k([&](auto k) { score<decltype(k)::value>(keys, state, raw); });
    const int first = entry.first + page * kPageTokens;
    const uint32_t* const params =
        reinterpret_cast<const uint32_t*>(values + shape.params_offset());
    with_v([&](auto v) {
      weigh<decltype(v)::value, kMasked>(values, params, first, kMasked ? mask_of(entry) : Mask{},
                                         state, raw);
    });
  }

  // Sums of accumulators over a page: of tokens g and g + 8.
  template <Format kFormat>
  ZC_DEVICE void score(const uint8_t* keys, const WarpState<kDim>& state, float (&raw)[2]) const {
    float products[2][4] = {};  // of even squares and of odd ones: half as many wait for each other
    each_operand<true, kFormat, kDim>(keys, lane(), [&](int s, const uint32_t(&a)[4]) {
      simt::mma_m16n8k16(products[s & 1], a, state.q[2 * s], state.q[2 * s + 1], f16{});
    });
    raw[0] = (products[0][0] + products[0][1]) + (products[1][0] + products[1][1]);
    raw[1] = (products[0][2] + products[0][3]) + (products[1][2] + products[1][3]);
  }

  // The running softmax over a page whose first token is `first`, and O += P V.
  template <Format kFormat, bool kMasked>
  ZC_DEVICE void weigh(const uint8_t* values, const uint32_t* token_params, int first,
                       const Mask& mask, WarpState<kDim>& state, float (&raw)[2]) const {
    const int g = lane() >> 2;
    uint32_t params[2];
    uint32_t largest_scale = 0;
    ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
      const int token = first + g + 8 * hi;
      if (kMasked && (token < mask.seen_from || token >= mask.limit)) raw[hi] = -INFINITY;
      if constexpr (kIsCode<kFormat>) {
        // Slots behind the last token hold anything.
        params[hi] = kMasked && token >= mask.n_tokens ? 0u : token_params[g + 8 * hi];
        const uint32_t scale = params[hi] & 0xffff;
        largest_scale = scale > largest_scale ? scale : largest_scale;
      }
    }
    const float largest = fmaxf(raw[0], raw[1]);
    const bool outgrown = largest > state.raw_limit || largest_scale > state.scale_limit;
    if (__any_sync(~0u, outgrown)) state.rescale(largest, largest_scale);

    const float unit_scale[2] = {state.unit, state.unit * exp2i(-column_shift(kFormat))};
    uint32_t weights[2];  // B operand: P^T in units of 2^-shift; the odd columns are zero
    ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
      const float p = simt::ex2(fmaf(raw[hi], state.step, state.offset));
      state.sum += p;
      float sigma = unit_scale[hi];
      if constexpr (kIsCode<kFormat>) {
        state.rest = fmaf(p, to_float(token_zero(params[hi])), state.rest);
        sigma *= to_float(token_scale(params[hi]));
      }
      weights[hi] = simt::movmatrix_trans(simt::pack2(p * sigma, 0.0f, f16{}));
    }
    // Floats that no column sees may be NaN, which a weight of zero would not take away.
    uint32_t exists[2] = {~0u, ~0u};
    if constexpr (kMasked && !kIsCode<kFormat>) {
      int seen_from = mask.seen_from;  // by any column
      int limit = mask.limit < mask.n_tokens ? mask.limit : mask.n_tokens;
      ZC_UNROLL for (int m = 1; m < 4; m *= 2) {
        const int from = __shfl_xor_sync(~0u, seen_from, m);
        const int to = __shfl_xor_sync(~0u, limit, m);
        seen_from = from < seen_from ? from : seen_from;
        limit = to > limit ? to : limit;
      }
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const int low = first + 2 * (lane() & 3) + 8 * hi;
        exists[hi] = (low >= seen_from && low < limit ? 0xffffu : 0u) |
                     (low + 1 >= seen_from && low + 1 < limit ? 0xffff0000u : 0u);
      }
    }
    each_operand<false, kFormat, kDim>(values, lane(), [&](int s, const uint32_t(&a)[4]) {
      const uint32_t seen[4] = {a[0] & exists[0], a[1] & exists[0], a[2] & exists[1],
                                a[3] & exists[1]};
      simt::mma_m16n8k16(state.o[s], seen, weights[0], weights[1], f16{});
    });
  }

  // Leaves a mark to the merger, in its slot what the warp has of a split, and goes on. Not more
  // than one mark ahead of the merger.
  ZC_DEVICE void hand_over(bool has_results, WarpState<kDim>& state) {
    const uint32_t place = n_marks_ & 1;
    simt::mbarrier_wait(simt::smem_u32(memory_.results_free + place), (n_marks_ >> 1 & 1) ^ 1);
    __syncwarp();
    if (has_results) store_results(state);
    if (lane() == 0) memory_.results[place][warp()] = stage_of(count_);
    __syncwarp();
    if (lane() == 0) simt::mbarrier_arrive(simt::smem_u32(memory_.results_full + place));
    ++n_marks_;
    ++count_;  // the merger frees the slot
  }

  ZC_DEVICE void store_results(WarpState<kDim>& state) {
    const int g = lane() >> 2;
    state.leave(memory_.running[warp()], lane());
    ZC_UNROLL for (int m = 4; m < 32; m *= 2) state.sum += __shfl_xor_sync(~0u, state.sum, m);
    float* own = reinterpret_cast<float*>(slot(count_)) + (lane() & 3) * kColumnStride<kDim>;
    ZC_UNROLL for (int s = 0; s < kDim / 16; ++s) {
      own[16 * s + g] = state.o[s][0];
      own[16 * s + g + 8] = state.o[s][2];
    }
    if (g == 0) {
      own[kDim] = state.max;  // behind O there is room
      own[kDim + 1] = state.sum;
    }
    state.clear();
    if constexpr (kBulk) simt::fence_async();  // the slot's next copy comes by another road
  }

  const Params& p_;
  Memory& memory_;
  uint32_t count_ = 0;    // slots that were read
  uint32_t n_marks_ = 0;  // that were handed over
};

}  // namespace zc::cuda::mixed
