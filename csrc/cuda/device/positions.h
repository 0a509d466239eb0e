#pragma once

#include "csrc/cuda/device/scan.h"
#include "csrc/cuda/device/segment.h"

// The positions of a segment's tokens: its slots are in order of position.
namespace zc::cuda {

// Bits of a segment with a bitmap, 32 positions from 32 w on; a set bit is a token of the segment.
ZC_DEVICE uint32_t held_bits(const SegmentView& view, int64_t span, int64_t w) {
  const uint8_t* bytes = view.pool + int64_t{view.segment.bitmap_unit} * kPageUnitBytes + 4 * w;
  const int64_t left = span - 32 * w;
  if (left >= 32) {
    const uint32_t bits = *reinterpret_cast<const uint32_t*>(bytes);
    return view.segment.span > 0 ? bits : ~bits;
  }
  uint32_t bits = 0;  // the pool may end behind the last byte
  for (int i = 0; i < (left + 7) / 8; ++i) bits |= static_cast<uint32_t>(bytes[i]) << (8 * i);
  return (view.segment.span > 0 ? bits : ~bits) & ((1u << left) - 1u);
}

// Calls each(slot, position) once for every token of a segment, in no order; by all kThreads
// threads of a block together. False when the bitmap holds fewer tokens than the segment.
template <int kThreads, typename Each>
ZC_DEVICE bool each_position(const SegmentView& view, const Each& each) {
  const int n = view.segment.n_tokens;
  const int64_t start = view.segment.start;
  const int64_t span = view.segment.span < 0 ? -int64_t{view.segment.span} : view.segment.span;
  const int thread = threadIdx.x;
  if (span == 0) {
    for (int slot = thread; slot < n; slot += kThreads) each(slot, start + slot);
    return true;
  }
  int64_t done = 0;
  for (int64_t first = 0; first * 32 < span && done < n; first += kThreads) {
    const int64_t w = first + thread;
    uint32_t bits = 32 * w < span ? held_bits(view, span, w) : 0u;
    const Scanned scanned = block_scan<kThreads>(__popc(bits));
    int64_t slot = done + scanned.before;
    for (; bits != 0 && slot < n; bits &= bits - 1u)
      each(static_cast<int>(slot++), start + 32 * w + __ffs(static_cast<int>(bits)) - 1);
    done += scanned.total;
  }
  return done >= n;
}

// Where an ascending list first reaches `value`.
ZC_DEVICE int64_t lower_bound(const int32_t* list, int64_t n, int64_t value) {
  int64_t lo = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (list[lo + half] < value) {
      lo += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return lo;
}

// Byte i of the bitmap whose set bits, counted from `start` on, are an ascending list.
ZC_DEVICE uint8_t bitmap_byte(const int32_t* list, int64_t n, int64_t start, int64_t i) {
  const int64_t first = start + 8 * i;
  uint32_t bits = 0;
  for (int64_t at = lower_bound(list, n, first); at < n && list[at] < first + 8; ++at)
    if (list[at] >= first) bits |= 1u << (list[at] - first);
  return static_cast<uint8_t>(bits);
}

}  // namespace zc::cuda
