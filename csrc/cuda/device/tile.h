#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"
#include "csrc/math/float16.h"

// Tiles of 16-bit elements in shared memory, and tensor-core fragments made of them. A lane of a
// warp is 4 g + t.
namespace zc::cuda {

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of rows of kWidth elements. Chunks
// are permuted within a row, so that the 8 rows of a matrix that ldmatrix reads lie in 8 different
// groups of banks.
template <int kWidth>
ZC_DEVICE uint32_t tile_offset(int row, int chunk) {
  static_assert(kWidth % 32 == 0);
  // Rows of 64, 192, ... bytes: two neighbours fill a turn of the banks.
  const int swizzle = kWidth % 64 == 0 ? row & 7 : (row >> 1) & 3;
  return static_cast<uint32_t>(row * (kWidth * 2) + ((chunk ^ swizzle) << 4));
}

// Begins to copy kRows rows, `stride` elements apart, into a tile; rows from n_rows and chunks from
// n_chunks on become 0. All kThreads threads of the block take part.
template <int kRows, int kWidth, int kThreads, typename T>
ZC_DEVICE void load_tile(uint32_t tile, const T* from, int stride, int n_rows, int n_chunks) {
  // A thread copies one chunk of rows that lie kStep apart.
  constexpr int kChunks = kWidth / 8;
  constexpr int kAll = kThreads / kChunks;
  // If not all threads can take part: the permutation of chunks repeats after 8 rows.
  constexpr int kStep = kThreads % kChunks == 0 ? kAll : kAll / 8 * 8;
  static_assert(kStep > 0 && kRows % 8 == 0);
  const int chunk = threadIdx.x % kChunks;
  const int row0 = threadIdx.x / kChunks;
  if (kStep * kChunks != kThreads && row0 >= kStep) return;
  const bool in_row = chunk < n_chunks;
  const T* at = from + int64_t{row0} * stride + chunk * 8;
  ZC_UNROLL for (int i = 0; i < (kRows + kStep - 1) / kStep; ++i) {
    const int row = row0 + i * kStep;
    if (kRows % kStep != 0 && row >= kRows) return;
    const bool inside = in_row && row < n_rows;
    simt::cp_async_16(tile + tile_offset<kWidth>(row, chunk), at + int64_t{i * kStep} * stride,
                      inside ? 16 : 0);
  }
}

// The same of rows that lie anywhere: row i is number rows[i], `stride` elements apart.
template <int kRows, int kWidth, int kThreads, typename T>
ZC_DEVICE void gather_tile(uint32_t tile, const T* from, const int32_t* rows, int stride,
                           int n_chunks) {
  constexpr int kChunks = kWidth / 8;
  constexpr int kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
  const int chunk = threadIdx.x % kChunks;
  const int row0 = threadIdx.x / kChunks;
  ZC_UNROLL for (int i = 0; i < kRows / kStep; ++i) {
    const int row = row0 + i * kStep;
    simt::cp_async_16(tile + tile_offset<kWidth>(row, chunk),
                      from + int64_t{rows[row]} * stride + chunk * 8, chunk < n_chunks ? 16 : 0);
  }
}

// Where a lane begins to read fragments of a tile: with ldmatrix it names one row of a matrix.
// `row` is the first row, a multiple of 16.
template <int kWidth>
ZC_DEVICE uint32_t a_lane(uint32_t tile, int row) {
  const int lane = threadIdx.x % 32;
  return tile + tile_offset<kWidth>(row + lane % 16, lane / 16);
}
template <int kWidth>
ZC_DEVICE uint32_t b_lane(uint32_t tile) {
  const int lane = threadIdx.x % 32;
  return tile + tile_offset<kWidth>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// `row` rows and 2 k chunks further; both known at compile time, so that what is added is part of
// the instruction.
template <int kWidth>
ZC_DEVICE uint32_t fragment_address(uint32_t lane, int row, int k) {
  constexpr int kPermuted = kWidth % 64 == 0 ? 3 : 1;
  return (lane ^ ((k & kPermuted) * 32)) + (k & ~kPermuted) * 32 + row * (kWidth * 2);
}

// The A fragment of rows [row, row + 16) and elements [16 k, 16 k + 16), `lane` being a_lane.
template <int kWidth>
ZC_DEVICE void load_a(uint32_t (&a)[4], uint32_t lane, int row, int k) {
  simt::ldmatrix_x4(a, fragment_address<kWidth>(lane, row, k));
}

// Two B fragments, b[0], b[1] and b[2], b[3], whose columns are the rows [row, row + 8) and [row +
// 8, row + 16), from elements [16 k, 16 k + 16), `lane` being b_lane.
template <int kWidth>
ZC_DEVICE void load_b(uint32_t (&b)[4], uint32_t lane, int row, int k) {
  simt::ldmatrix_x4(b, fragment_address<kWidth>(lane, row, k));
}

// Two B fragments whose columns are the elements [16 n, 16 n + 8) and [16 n + 8, 16 n + 16), from
// rows [row, row + 16), `lane` being a_lane.
template <int kWidth>
ZC_DEVICE void load_b_trans(uint32_t (&b)[4], uint32_t lane, int row, int n) {
  simt::ldmatrix_x4_trans(b, fragment_address<kWidth>(lane, row, n));
}

// Lane t of four neighbours receives word t of each: x[i] = word t of lane i.
ZC_DEVICE void transpose_quad(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool upper = threadIdx.x & 2;
  ZC_UNROLL for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? x[i] : x[i + 1], 1);
    if (odd)
      x[i] = other;
    else
      x[i + 1] = other;
  }
  ZC_UNROLL for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + 2], 2);
    if (upper)
      x[i] = other;
    else
      x[i + 2] = other;
  }
}

// ---- what is not finite: 0 times it is NaN, so it must not meet the weight 0 of a key that a row
// does not see ----

template <typename T>
ZC_DEVICE constexpr uint32_t exponent_bits();
template <>
ZC_DEVICE constexpr uint32_t exponent_bits<bf16>() {
  return 0x7f80u;
}
template <>
ZC_DEVICE constexpr uint32_t exponent_bits<f16>() {
  return 0x7c00u;
}

template <typename T>
ZC_DEVICE bool finite(uint16_t bits) {
  return (bits & exponent_bits<T>()) != exponent_bits<T>();
}

// Eight neighbours.
template <typename T>
ZC_DEVICE bool finite8(const uint4& words) {
  bool good = true;
  for (const uint32_t word : {words.x, words.y, words.z, words.w})
    good = good && finite<T>(static_cast<uint16_t>(word)) &&
           finite<T>(static_cast<uint16_t>(word >> 16));
  return good;
}

// Puts 0 for what is not finite.
template <typename T>
ZC_DEVICE void clear_not_finite(uint4& words) {
  for (uint32_t* const word : {&words.x, &words.y, &words.z, &words.w}) {
    if (!finite<T>(static_cast<uint16_t>(*word))) *word &= 0xffff0000u;
    if (!finite<T>(static_cast<uint16_t>(*word >> 16))) *word &= 0x0000ffffu;
  }
}

}  // namespace zc::cuda
