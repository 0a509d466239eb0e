#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"

// Tiles of 16-bit elements in shared memory as tensor copies write them and wgmma reads them: slabs
// of 64 columns, (rows, 64) each, rows of 128 bytes whose 16-byte chunks are permuted. Slabs begin
// at multiples of 1024 bytes.
namespace zc::cuda {

inline constexpr int kSlabColumns = 64;
inline constexpr int kSlabRowBytes = 2 * kSlabColumns;

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of kRows rows.
template <int kRows>
ZC_DEVICE uint32_t slab_offset(int row, int chunk) {
  return static_cast<uint32_t>((chunk / 8 * kRows + row) * kSlabRowBytes +
                               ((chunk % 8 ^ (row & 7)) << 4));
}

// Descriptors of wgmma, by the canonical layouts of the PTX ISA ("matrix descriptor"): address bits
// 4 to 17, then the offsets "leading" and "stride" in units of 16 bytes, then 1 for a permutation
// over 128 bytes. Eight rows lie kStride apart.
ZC_DEVICE uint64_t slab_descriptor(uint32_t address, uint32_t leading) {
  constexpr uint32_t kStride = 8 * kSlabRowBytes;
  return uint64_t{(address & 0x3ffffu) >> 4} | uint64_t{leading >> 4} << 16 |
         uint64_t{kStride >> 4} << 32 | uint64_t{1} << 62;
}

// Rows of a tile of kRows rows, their elements [16 k, 16 k + 16) being summed over: Q and K of Q
// K^T. `address`: of the first row, a multiple of 8.
template <int kRows>
ZC_DEVICE uint64_t rows_operand(uint32_t address, int k) {
  return slab_descriptor(address + k / 4 * kRows * kSlabRowBytes + k % 4 * 32, 16);
}

// Columns of a tile of kRows rows, its rows [16 k, 16 k + 16) being summed over: V of P V.
template <int kRows>
ZC_DEVICE uint64_t columns_operand(uint32_t address, int k) {
  return slab_descriptor(address + k * 16 * kSlabRowBytes, kRows * kSlabRowBytes);
}

}  // namespace zc::cuda
