#pragma once

#include "csrc/cuda/device/simt.h"

// Weights of 4 bits: value = (code - zero) scale, of which a group of a row's elements shares scale
// and zero. They become operands of 16 bits, the value rounded to them, by one function for all
// kernels: a row has the same bits in a prompt.
namespace zc::cuda {

// A byte of codes, two of them. A row is made of units of 64 codes, 16 half words: half word l has
// elements 16 j + l of its unit in bits 4 j to 4 j + 3. So a word has two neighbours of each of
// four times sixteen, as the operand of mma.m16n8k16 has them.
struct Nibbles {
  uint8_t bits;
};
inline constexpr int kUnit = 64;

// Elements that one W holds.
template <typename W>
inline constexpr int kElementsOf = 1;
template <>
inline constexpr int kElementsOf<Nibbles> = 2;

// Scales and zeros, (n, k / group) of a weight (n, k) of 4 bits; other weights have none.
template <typename W>
struct Grids {
  // Of the rows from `row` on.
  ZC_HD Grids behind(int64_t, int64_t) const { return {}; }
};
template <>
struct Grids<Nibbles> {
  const f16* scales;
  const uint8_t* zeros;
  int shift;  // 2^shift elements are a group: 32, 64 or 128

  ZC_HD Grids behind(int64_t row, int64_t k) const {
    const int64_t groups = row * (k >> shift);
    return {scales + groups, zeros + groups, shift};
  }
};

// The grid of one group as operands, each twice: -(c + zero) for a c that stands in front of a
// code, and the scale.
struct GridPair {
  uint32_t zero;
  uint32_t scale;
};
ZC_DEVICE GridPair grid_pair(f16 scale, uint32_t zero, f16) {
  return {zero * 0x10001u | 0xe400e400u, scale.bits * 0x10001u};  // c = 1024
}
ZC_DEVICE GridPair grid_pair(f16 scale, uint32_t zero, bf16) {
  const float wide = to_float(scale);
  return {zero * 0x10001u | 0xc300c300u, simt::pack2(wide, wide, bf16{})};  // c = 128
}

// Of a word, elements 16 j and 16 j + 1 behind those that j = 0 gives. j is known at compile time.
// What is before the scale is exact.
ZC_DEVICE uint32_t pair_of_nibbles(uint32_t word, int j, GridPair grid, f16) {
  const uint32_t codes = j < 2 ? word : word >> 8;
  // Behind 0x64 four bits are 1024 + code; four bits higher, behind 0x54, they are 64 + code.
  const uint32_t shifted = j % 2 == 0 ? simt::select_bits(0x000f000fu, codes, 0x64006400u)
                                      : simt::select_bits(0x00f000f0u, codes, 0x54005400u);
  const uint32_t zero =
      j % 2 == 0 ? grid.zero : simt::add_pairs(grid.zero, 0x63806380u, f16{});  // + 960
  return simt::multiply_pairs(simt::add_pairs(shifted, zero, f16{}), grid.scale, f16{});
}
ZC_DEVICE uint32_t pair_of_nibbles(uint32_t word, int j, GridPair grid, bf16) {
  // Behind 0x43 there are seven bits, so that all codes have to come down: 128 + code.
  const uint32_t shifted = simt::select_bits(0x000f000fu, word >> 4 * j, 0x43004300u);
  return simt::multiply_pairs(simt::add_pairs(shifted, grid.zero, bf16{}), grid.scale, bf16{});
}

}  // namespace zc::cuda
